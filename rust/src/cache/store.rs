//! Shared state of readers and writers, and the readers' half of the algorithm.
//!
//! # Interleavings
//! A reader pins, loads the table, finds the key's slot, and reads the row that the slot names. A writer
//! fills a row that no reader can reach, stores its number in the slot (one word), and retires the row that
//! the slot named before.
//! - The slot's Release store and the reader's Acquire load order the row's bytes and stamp before
//!   anything the reader does with the row number.
//! - A row is rewritten only after the reclaimer has released it: after every reader that was pinned when
//!   it was retired has left. So bytes under a guard do not change, and one reader sees all columns of one
//!   version.
//! - A reader that pins after a row was released sees the slot store that unlinked it, so it cannot read
//!   the old row number.
//! - A new table is filled before the pointer to it is stored. Readers of the old table see rows as they
//!   were at that moment, which their guard keeps intact.
//! - Readers take no lock and never wait, neither for a writer that stops anywhere in the above nor for
//!   each other.

use super::clock::Clock;
use super::hash::mix64;
use super::layout::RowLayout;
use super::reclaim::{Reclaim, RetiredTable};
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

/// Keys that move from one stage of a gather to the next together.
const BURST: usize = 8;

/// Bytes of rows that are prefetched, a fraction of the L2 cache; of a longer row only this many bytes are
/// prefetched.
const AHEAD_BYTES: usize = 32 << 10;

/// Maximum number of bursts whose rows are prefetched.
const AHEAD_BURSTS: usize = 2;

/// Keys whose buckets are prefetched beyond those.
const AHEAD_BUCKETS: usize = 2 * BURST;

/// Keys between their first stage and the end of their last, in whole bursts.
const RING: usize = AHEAD_BUCKETS + (AHEAD_BURSTS + 1) * BURST;

/// Event counters.
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

/// Gauges maintained by the writer, read without waiting for it.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) live: AtomicUsize,
    pub(super) retired: AtomicUsize,
    pub(super) made: AtomicUsize,
    pub(super) issued: AtomicUsize,
    pub(super) mapped_bytes: AtomicUsize,
    pub(super) table_bytes: AtomicUsize,
    pub(super) retired_table_bytes: AtomicUsize,
    pub(super) new_table_bytes: AtomicUsize,
    pub(super) order_bytes: AtomicUsize,
    pub(super) growth_peak_bytes: AtomicUsize,
}

/// Cache without argument checks.
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
    pub(super) min_slots: usize,
    hash_seed: u64,
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
        Self::with_slab(slab, layout, sizes, clock, ttl, reclaim)
    }

    /// Makes a store whose rows are allocated from `slab`, which is still empty.
    pub(super) fn with_slab(
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
            hash_seed,
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
            min_slots: slots,
            hash_seed,
            pages,
            counters: Counters::default(),
            gauges,
        })
    }

    /// Returns the hash of `key` in this store. Without its seed nobody can choose keys that lie together in
    /// the table, which would make all look-ups near them slow.
    #[inline]
    pub(super) fn hash(&self, key: u64) -> u64 {
        mix64(key ^ self.hash_seed)
    }

    /// Returns the current table, which the guard keeps alive.
    #[inline]
    fn table<'a>(&'a self, _guard: &'a R::Guard<'_>) -> &'a Table {
        // Acquire pairs with `replace_table`: the table's slots precede its address.
        // SAFETY: by the field's invariant; the reclaimer frees a replaced table only after the guard, which was
        // made before the load, is gone.
        unsafe { &*self.table.load(Ordering::Acquire) }
    }

    /// Returns the current table, valid until the writer replaces it. Writer only.
    pub(super) fn writers_table(&self, _writer: &Writer) -> &Table {
        // SAFETY: by the field's invariant; only the holder of the lock replaces the table, and it retires
        // the old one only in `replace_table`, after its last use of this reference.
        unsafe { &*self.table.load(Ordering::Relaxed) }
    }

    /// Makes `table` the current one and returns the old one to be retired. Writer only.
    pub(super) fn replace_table(&self, _writer: &mut Writer, table: Box<Table>) -> RetiredTable {
        self.gauges
            .table_bytes
            .store(table.bytes(), PlainOrdering::Relaxed);
        self.gauges.new_table_bytes.store(0, PlainOrdering::Relaxed);
        // Release: the new table's slots precede its address. Acquire is not needed: only the lock's holder
        // ever stores here.
        let old = self.table.swap(Box::into_raw(table), Ordering::Release);
        // SAFETY: by the field's invariant, made by `Box::into_raw` and now owned by nobody; writers retire
        // it, and the reclaimer drops it after the last reader has left.
        unsafe { RetiredTable::new(NonNull::new_unchecked(old)) }
    }

    /// Returns whether a row has expired. The stamp, a cache line of its own, is not read without a time to
    /// live.
    #[inline]
    pub(super) fn expired(&self, row: &RowRef<'_>, now: u32) -> bool {
        // A writer may have stamped the row after this reader read the clock.
        self.ttl
            .is_some_and(|ttl| now.saturating_sub(row.stamp()) > ttl)
    }

    /// Returns the current tick, or 0 without reading the clock if no row can expire.
    #[inline]
    pub(super) fn now_if_ttl(&self) -> u32 {
        if self.ttl.is_some() {
            self.clock.ticks()
        } else {
            0
        }
    }

    /// Copies the rows of `keys` into `columns`, zeroing the missing ones; returns the number found.
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
        let mut copier = self.layout.copier(columns);
        self.visit(keys, |place, row| {
            found[place] = u8::from(row.is_some());
            // SAFETY: the row is under the guard. Rows are copied in the order of the keys, each to the
            // next row of the caller's columns.
            unsafe {
                match row {
                    Some(row) => copier.copy_row(row),
                    None => copier.zero_row(),
                }
            }
        })
    }

    /// Calls `visit` with the index of each key, in order, and the bytes of its row, if it has one, which
    /// do not change during the call. Returns the number found.
    #[inline]
    pub(super) fn visit(
        &self,
        keys: &[u64],
        mut visit: impl FnMut(usize, Option<*const u8>),
    ) -> usize {
        let guard = self.reclaim.pin();
        let table = self.table(&guard);
        let now = self.now_if_ttl();
        let fetched = self.layout.row_bytes().min(AHEAD_BYTES);
        let ahead = (AHEAD_BYTES / fetched).clamp(1, AHEAD_BURSTS) * BURST;
        let (mut hits, mut expired) = (0, 0);
        let mut hashes = [0; RING];
        let mut rows = [None; RING];
        // Each key passes three stages: its bucket is prefetched, then the row that the bucket names, and
        // only the last stage waits for memory and reads. Bursts of keys pass the stages in turn, so that
        // the number of outstanding loads stays about constant.
        let burst = |first: usize| first.min(keys.len())..(first + BURST).min(keys.len());
        let ring = |keys: &Range<usize>| keys.start % RING..keys.start % RING + keys.len();
        for first in (0..keys.len() + ahead + AHEAD_BUCKETS).step_by(BURST) {
            let now_seen = burst(first);
            for (hash, &key) in hashes[ring(&now_seen)].iter_mut().zip(&keys[now_seen]) {
                *hash = self.hash(key);
                prefetch(table.first_line(*hash));
            }
            let Some(first) = first.checked_sub(AHEAD_BUCKETS) else {
                continue;
            };
            let looked_up = burst(first);
            let places = ring(&looked_up);
            let of_keys = keys[looked_up].iter().zip(&hashes[places.clone()]);
            for (row, (&key, &hash)) in rows[places].iter_mut().zip(of_keys) {
                *row = table
                    .find(key, hash)
                    .map(|row| self.fetch_ahead(row, fetched));
            }
            let Some(first) = first.checked_sub(ahead) else {
                continue;
            };
            let arrived = burst(first);
            for (row, place) in rows[ring(&arrived)].iter().zip(arrived) {
                let living = row.filter(|row| !self.expired(row, now));
                if let Some(row) = living {
                    row.touch();
                    hits += 1;
                    row.watch().read(|| visit(place, Some(row.bytes())));
                } else {
                    expired += u64::from(row.is_some());
                    visit(place, None);
                }
            }
        }
        self.counters.hits.add(hits as u64);
        self.counters.misses.add((keys.len() - hits) as u64);
        self.counters.expiries.add(expired);
        hits
    }

    /// Returns the row of this number after prefetching its first `fetched` bytes, a multiple of 64.
    #[inline]
    fn fetch_ahead(&self, row: u32, fetched: usize) -> RowRef<'_> {
        let row = self.slab.row(row);
        row.metadata_lines(self.ttl.is_some(), prefetch);
        let bytes = row.bytes();
        let mut offset = 0;
        while offset < fetched {
            prefetch_row(bytes.wrapping_add(offset));
            offset += 64;
        }
        row
    }

    /// Calls `visit` with the index of each key and its age in ticks, if it has a live row. Counts neither
    /// hits nor uses.
    pub(super) fn ages(&self, keys: &[u64], mut visit: impl FnMut(usize, Option<u32>)) {
        let guard = self.reclaim.pin();
        let table = self.table(&guard);
        let now = self.clock.ticks();
        for (i, &key) in keys.iter().enumerate() {
            let row = table
                .find(key, self.hash(key))
                .map(|row| self.slab.row(row))
                .filter(|row| !self.expired(row, now));
            visit(i, row.map(|row| now.saturating_sub(row.stamp())));
        }
    }
}

impl<R: Reclaim> Drop for Store<R> {
    fn drop(&mut self) {
        // SAFETY: by the field's invariant; `&mut self` proves that no reader is left.
        drop(unsafe { Box::from_raw(self.table.load(Ordering::Relaxed)) });
    }
}

/// Prefetches a cache line into L1.
#[inline]
pub(super) fn prefetch<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing as far as the language is concerned, and faults on no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Prefetches a cache line of a row into L2, since L1 supports too few outstanding lines. (On Zen 4 a batch
/// of long rows takes two thirds of the time.)
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
