//! The algorithm of the cache: what is shared between readers and the writer, and the readers' half.
//!
//! # Interleavings
//! A reader pins, loads the table, finds the key's slot, and reads the row that the slot names. A writer
//! fills a row that nobody can reach, stores its number in the slot (one word), and retires the row that
//! the slot named before.
//! - The slot's Release store and the reader's Acquire load order the row's bytes and stamp before
//!   anything the reader does with the row number.
//! - A row is written again only after it came back from the reclaimer: after every reader that was
//!   pinned when it was retired has left. So bytes under a guard do not change, and one reader sees all
//!   columns of one version.
//! - A reader that pins after a row came back sees the slot store that took it away, so it cannot get
//!   the old row's number.
//! - A grown table is filled before the pointer to it is stored. Readers in the old table see rows as
//!   they were at that moment, which their guard keeps intact.
//! - Readers take no lock and never wait: not for a writer that stands still anywhere in the above, and
//!   not for each other.

use super::clock::Clock;
use super::hash::spread;
use super::layout::RowLayout;
use super::reclaim::{OldTable, Reclaim};
use super::slab::{RowRef, Slab};
use super::table::{MAX_ROWS, Table};
use super::writer::Writer;
use super::{Bound, MAX_OVERRUN, Sizes};
use crate::buffer::Pages;
use crate::error::Result;
use crate::metrics::Counter;
use crate::sync::plain::{AtomicUsize, Ordering as PlainOrdering};
use crate::sync::{AtomicPtr, Mutex, Ordering};
use std::ops::Range;
use std::ptr::NonNull;

/// Keys that go from one stage of a gather to the next together.
const BURST: usize = 8;

/// Bytes of rows that are fetched ahead, a fraction of the second level of cache; of a longer row only so
/// much is fetched.
const AHEAD_BYTES: usize = 32 << 10;

/// Bursts whose rows are fetched ahead, at most.
const AHEAD_BURSTS: usize = 2;

/// Keys whose buckets are fetched still further ahead.
const AHEAD_BUCKETS: usize = 2 * BURST;

/// Keys between their first stage and the end of their last, in whole bursts.
const RING: usize = AHEAD_BUCKETS + (AHEAD_BURSTS + 1) * BURST;

/// How often things happened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) expiries: Counter,
    pub(super) inserts: Counter,
    pub(super) updates: Counter,
    pub(super) deletes: Counter,
    pub(super) evictions: Counter,
    pub(super) expired_removed: Counter,
}

/// How much there is, kept by the writer for those who must not wait for it.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) live: AtomicUsize,
    pub(super) retired: AtomicUsize,
    pub(super) made: AtomicUsize,
    pub(super) dealt: AtomicUsize,
    pub(super) mapped_bytes: AtomicUsize,
    pub(super) table_bytes: AtomicUsize,
    pub(super) order_bytes: AtomicUsize,
    pub(super) growth_peak_bytes: AtomicUsize,
}

/// Everything of a cache but its argument checks.
pub(super) struct Store<R: Reclaim> {
    pub(super) layout: RowLayout,
    pub(super) slab: Slab,
    // Invariant: points to a table made by `Box::into_raw`, owned by the store until it is replaced
    // and retired.
    table: AtomicPtr<Table>,
    pub(super) reclaim: R,
    pub(super) writer: Mutex<Writer>,
    pub(super) clock: Clock,
    /// Rows older than this many ticks are misses.
    pub(super) ttl: Option<u32>,
    pub(super) bound: Option<Bound>,
    pub(super) least_slots: usize,
    pub(super) pages: Pages,
    pub(super) counters: Counters,
    pub(super) gauges: Gauges,
}

impl<R: Reclaim> Store<R> {
    pub(super) fn new(
        layout: RowLayout,
        sizes: Sizes,
        clock: Clock,
        ttl: Option<u32>,
        reclaim: R,
    ) -> Result<Self> {
        let Sizes {
            bound, rows, pages, ..
        } = sizes;
        let limit = bound.map_or(MAX_ROWS, |bound| bound.rows * MAX_OVERRUN);
        let slab = Slab::new(&layout, limit, rows, bound.is_some(), pages);
        Self::on(slab, layout, sizes, clock, ttl, reclaim)
    }

    /// A store whose rows come from `slab`, which has made none yet.
    pub(super) fn on(
        slab: Slab,
        layout: RowLayout,
        sizes: Sizes,
        clock: Clock,
        ttl: Option<u32>,
        reclaim: R,
    ) -> Result<Self> {
        let Sizes {
            bound,
            slots,
            pages,
            ..
        } = sizes;
        let table = Box::new(Table::new(slots, pages)?);
        let gauges = Gauges::default();
        gauges
            .table_bytes
            .store(table.bytes(), PlainOrdering::Relaxed);
        Ok(Self {
            slab,
            layout,
            table: AtomicPtr::new(Box::into_raw(table)),
            reclaim,
            writer: Mutex::new(Writer::new(bound)),
            clock,
            ttl,
            bound,
            least_slots: slots,
            pages,
            counters: Counters::default(),
            gauges,
        })
    }

    /// The current table. The guard is what keeps it alive.
    #[inline]
    fn table<'a>(&'a self, _guard: &'a R::Guard<'_>) -> &'a Table {
        // Acquire pairs with `swing`: the table's slots come before its address.
        // SAFETY: by the field's invariant; a replaced table is freed by the reclaimer only, after the
        // guard, which was made before the load, is gone.
        unsafe { &*self.table.load(Ordering::Acquire) }
    }

    /// Writer only: the current table, for as long as the writer does not swing to another.
    pub(super) fn writers_table(&self, _writer: &Writer) -> &Table {
        // SAFETY: by the field's invariant; only the holder of the lock replaces the table, and it
        // retires the old one only in `swing`, after its last use of this reference.
        unsafe { &*self.table.load(Ordering::Relaxed) }
    }

    /// Writer only: makes `table` the one that readers find, and returns the old one to be retired.
    pub(super) fn swing(&self, _writer: &mut Writer, table: Box<Table>) -> OldTable {
        self.gauges
            .table_bytes
            .store(table.bytes(), PlainOrdering::Relaxed);
        // Release: the new table's slots come before its address. Acquire is not needed: only the
        // lock's holder ever stores here.
        let old = self.table.swap(Box::into_raw(table), Ordering::Release);
        // SAFETY: by the field's invariant, made by `Box::into_raw` and now in nobody's charge; writers
        // give it to the reclaimer, which drops it after the last reader has left.
        unsafe { OldTable::new(NonNull::new_unchecked(old)) }
    }

    /// Whether a row has outlived its time. The stamp is not looked at if no row can: it is a cache
    /// line of its own.
    #[inline]
    pub(super) fn expired(&self, row: &RowRef<'_>, now: u32) -> bool {
        // A writer may have stamped the row after this reader looked at the clock.
        self.ttl
            .is_some_and(|ttl| now.saturating_sub(row.stamp()) > ttl)
    }

    /// The tick to judge rows by; the clock is not read if no row can expire.
    #[inline]
    fn now_if_ttl(&self) -> u32 {
        if self.ttl.is_some() {
            self.clock.ticks()
        } else {
            0
        }
    }

    /// Copies the rows of `keys` into `columns`, zeroing the missing ones; returns how many were found.
    ///
    /// # Safety
    /// `columns` has one entry per column of the layout, `columns[c]` is valid for writes of
    /// `keys.len() * layout.columns()[c].bytes()` bytes and overlaps nothing else given here, and
    /// `found` is as long as `keys`.
    pub(super) unsafe fn gather(
        &self,
        keys: &[u64],
        columns: &[*mut u8],
        found: &mut [u8],
    ) -> usize {
        let mut copies = self.layout.copies(columns);
        self.visit(keys, |place, row| {
            found[place] = u8::from(row.is_some());
            // SAFETY: the row is under the guard. Rows are copied in the order of the keys, each to the next
            // place of the caller's columns.
            unsafe {
                match row {
                    Some(row) => copies.next_row(row),
                    None => copies.next_zeros(),
                }
            }
        })
    }

    /// Shows `see` each key's place in `keys`, in order, and the bytes of its row, if it has one; they do
    /// not change while `see` runs. Returns how many have one.
    #[inline]
    pub(super) fn visit(
        &self,
        keys: &[u64],
        mut see: impl FnMut(usize, Option<*const u8>),
    ) -> usize {
        let guard = self.reclaim.pin();
        let table = self.table(&guard);
        let now = self.now_if_ttl();
        let fetched = self.layout.row_bytes().min(AHEAD_BYTES);
        let ahead = (AHEAD_BYTES / fetched).clamp(1, AHEAD_BURSTS) * BURST;
        let (mut hits, mut expired) = (0, 0);
        let mut hashes = [0; RING];
        let mut rows = [None; RING];
        // Each key goes through three stages: its bucket is fetched, then the row that the bucket names, and
        // only the last stage waits for memory and reads. A burst of keys moves through each stage in turn,
        // so that the memory always has about as much to do.
        let burst = |first: usize| first.min(keys.len())..(first + BURST).min(keys.len());
        let ring = |keys: &Range<usize>| keys.start % RING..keys.start % RING + keys.len();
        for first in (0..keys.len() + ahead + AHEAD_BUCKETS).step_by(BURST) {
            let now_seen = burst(first);
            for (hash, &key) in hashes[ring(&now_seen)].iter_mut().zip(&keys[now_seen]) {
                *hash = spread(key);
                prefetch(table.first_line(*hash));
            }
            let Some(first) = first.checked_sub(AHEAD_BUCKETS) else {
                continue;
            };
            let looked_up = burst(first);
            let places = ring(&looked_up);
            let of_keys = keys[looked_up].iter().zip(&hashes[places.clone()]);
            for (row, (&key, &hash)) in rows[places].iter_mut().zip(of_keys) {
                *row = table.find(key, hash).map(|row| self.send_for(row, fetched));
            }
            let Some(first) = first.checked_sub(ahead) else {
                continue;
            };
            let arrived = burst(first);
            for (row, place) in rows[ring(&arrived)].iter().zip(arrived) {
                let living = row.filter(|row| !self.expired(row, now));
                if let Some(row) = living {
                    row.mark();
                    hits += 1;
                    row.watch().read(|| see(place, Some(row.bytes())));
                } else {
                    expired += u64::from(row.is_some());
                    see(place, None);
                }
            }
        }
        self.counters.hits.add(hits as u64);
        self.counters.misses.add((keys.len() - hits) as u64);
        self.counters.expiries.add(expired);
        hits
    }

    /// The row of this number, with its first `fetched` bytes, a multiple of 64, on their way.
    #[inline]
    fn send_for(&self, row: u32, fetched: usize) -> RowRef<'_> {
        let row = self.slab.row(row);
        row.side_lines(self.ttl.is_some(), prefetch);
        let bytes = row.bytes();
        let mut offset = 0;
        while offset < fetched {
            prefetch_row(bytes.wrapping_add(offset));
            offset += 64;
        }
        row
    }

    /// Calls `see` with each key's place in `keys` and its age in ticks, if it has a living row. Counts
    /// and marks nothing.
    pub(super) fn ages(&self, keys: &[u64], mut see: impl FnMut(usize, Option<u32>)) {
        let guard = self.reclaim.pin();
        let table = self.table(&guard);
        let now = self.clock.ticks();
        for (i, &key) in keys.iter().enumerate() {
            let row = table
                .find(key, spread(key))
                .map(|row| self.slab.row(row))
                .filter(|row| !self.expired(row, now));
            see(i, row.map(|row| now.saturating_sub(row.stamp())));
        }
    }
}

impl<R: Reclaim> Drop for Store<R> {
    fn drop(&mut self) {
        // SAFETY: by the field's invariant; `&mut self` says that no reader is left.
        drop(unsafe { Box::from_raw(self.table.load(Ordering::Relaxed)) });
    }
}

/// Asks for a cache line; a hint without effect on what the program does.
#[inline]
pub(super) fn prefetch<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing as far as the language goes, and faults on no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Asks for a cache line of a row, into the second level of cache: the first has too few lines under way at
/// a time. (On Zen 4, a batch of long rows takes two thirds of the time by that.)
#[inline]
fn prefetch_row(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as for `prefetch`.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
