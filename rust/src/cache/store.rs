//! The algorithm of the cache: what is shared between readers and the writer, and the readers' half.
//!
//! # Interleavings
//! A reader pins, loads the table, finds a slot, and reads the row the slot names. A writer fills a row
//! that nobody can reach, stores the slot (one word), and retires the row that the slot named before.
//! - The slot's Release store and the reader's Acquire load order the row's bytes, key and stamp before
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
use super::{Bound, MAX_OVERRUN};
use crate::error::Result;
use crate::metrics::Counter;
use crate::sync::plain::{AtomicUsize, Ordering as PlainOrdering};
use crate::sync::{AtomicPtr, Mutex, Ordering};
use std::ptr::{self, NonNull};

/// Rows whose bytes are on their way while an earlier row is copied, in bytes: as much as the first
/// level of cache holds beside the output.
const AHEAD_BYTES: usize = 12 << 10;

/// Rows ahead at most.
const AHEAD_ROWS: usize = 16;

/// How much further ahead slots are fetched.
const AHEAD_SLOTS: usize = 16;

/// Lines of a row that are fetched ahead; in longer rows the processor sees the pattern by itself.
const AHEAD_LINES: usize = 24;

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
    pub(super) counters: Counters,
    pub(super) gauges: Gauges,
}

impl<R: Reclaim> Store<R> {
    pub(super) fn new(
        layout: RowLayout,
        bound: Option<Bound>,
        least_slots: usize,
        clock: Clock,
        ttl: Option<u32>,
        reclaim: R,
    ) -> Result<Self> {
        let limit = bound.map_or(MAX_ROWS, |bound| bound.rows * MAX_OVERRUN);
        let table = Box::new(Table::new(least_slots)?);
        let gauges = Gauges::default();
        gauges
            .table_bytes
            .store(table.bytes(), PlainOrdering::Relaxed);
        Ok(Self {
            slab: Slab::new(&layout, limit, bound.is_some()),
            layout,
            table: AtomicPtr::new(Box::into_raw(table)),
            reclaim,
            writer: Mutex::new(Writer::new(bound)),
            clock,
            ttl,
            bound,
            least_slots,
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

    /// The row of `key`.
    #[inline]
    fn find(&self, table: &Table, key: u64, hash: u64) -> Option<RowRef<'_>> {
        let row = table.find(hash, |row| self.slab.row(row).key() == key)?;
        Some(self.slab.row(row))
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
        let guard = self.reclaim.pin();
        let table = self.table(&guard);
        let now = self.now_if_ttl();
        // A power of two, so that places in the ring are cheap.
        let ahead = 1
            << (AHEAD_BYTES / self.layout.row_bytes())
                .clamp(1, AHEAD_ROWS)
                .ilog2();
        let (mut hits, mut expired) = (0, 0);
        let mut coming: [Option<RowRef<'_>>; AHEAD_ROWS] = [None; AHEAD_ROWS];
        for &key in keys.iter().take(AHEAD_SLOTS) {
            prefetch(table.first_slot(spread(key)));
        }
        // Three stages run at different distances: slots are fetched furthest ahead, then the row that a
        // slot's tag suggests, and only the last stage waits for memory, compares keys and copies.
        for step in 0..keys.len() + ahead {
            if let Some(&key) = keys.get(step + AHEAD_SLOTS) {
                prefetch(table.first_slot(spread(key)));
            }
            let place = &mut coming[step & (ahead - 1)];
            let suggested = std::mem::replace(
                place,
                keys.get(step)
                    .and_then(|&key| self.send_for(table, spread(key))),
            );
            let Some(i) = step.checked_sub(ahead) else {
                continue;
            };
            let key = keys[i];
            let row = suggested.and_then(|row| {
                // Another key: one with the same tag, or a slot that was reused. Look again, comparing.
                if row.key() == key {
                    Some(row)
                } else {
                    self.find(table, key, spread(key))
                }
            });
            if let Some(row) = row
                && !self.expired(&row, now)
            {
                row.mark();
                found[i] = 1;
                hits += 1;
                // SAFETY: the caller's; `i` is below `keys.len()`.
                unsafe { self.copy_out(row, i, columns) };
            } else {
                expired += u64::from(row.is_some());
                found[i] = 0;
                for (column, &out) in self.layout.columns().iter().zip(columns) {
                    // SAFETY: the caller's; `i` is below `keys.len()`.
                    unsafe { ptr::write_bytes(out.add(i * column.bytes()), 0, column.bytes()) };
                }
            }
        }
        self.counters.hits.add(hits as u64);
        self.counters.misses.add((keys.len() - hits) as u64);
        self.counters.expiries.add(expired);
        hits
    }

    /// The row that the first slot with this tag names, with all its lines on their way.
    #[inline]
    fn send_for(&self, table: &Table, hash: u64) -> Option<RowRef<'_>> {
        let row = self.slab.row(table.find(hash, |_| true)?);
        row.side_lines(self.ttl.is_some(), prefetch);
        for line in 0..self.layout.row_bytes().div_ceil(64).min(AHEAD_LINES) {
            prefetch(row.bytes().wrapping_add(line * 64));
        }
        Some(row)
    }

    /// Copies a row to place `i` of every column.
    ///
    /// # Safety
    /// The row is under a guard, and every column has place for `i + 1` rows.
    #[inline]
    unsafe fn copy_out(&self, row: RowRef<'_>, i: usize, columns: &[*mut u8]) {
        row.watch().read(|| {
            for (column, &out) in self.layout.columns().iter().zip(columns) {
                // SAFETY: the column lies inside the row, which is immutable under the guard; the
                // destination is the caller's.
                unsafe {
                    ptr::copy_nonoverlapping(
                        row.bytes().add(column.offset()),
                        out.add(i * column.bytes()),
                        column.bytes(),
                    );
                }
            }
        });
    }

    /// Calls `see` with each key's place in `keys` and its age in ticks, if it has a living row. Counts
    /// and marks nothing.
    pub(super) fn ages(&self, keys: &[u64], mut see: impl FnMut(usize, Option<u32>)) {
        let guard = self.reclaim.pin();
        let table = self.table(&guard);
        let now = self.clock.ticks();
        for (i, &key) in keys.iter().enumerate() {
            let row = self
                .find(table, key, spread(key))
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
fn prefetch<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing as far as the language goes, and faults on no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
