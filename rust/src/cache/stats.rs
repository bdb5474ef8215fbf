//! What a cache tells about itself.

use super::reclaim::Reclaim;
use super::store::Store;
use crate::sync::plain::Ordering;

/// How often things happened since the cache was made, and how many rows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys looked up by `gather` that had a row.
    pub hits: u64,
    /// Keys looked up by `gather` that had none, the expired ones included.
    pub misses: u64,
    /// Misses whose row was there but too old.
    pub expiries: u64,
    /// Rows written under new keys.
    pub inserts: u64,
    /// Rows written under keys that had one.
    pub updates: u64,
    /// Keys deleted on request, by `delete` or `clear`.
    pub deletes: u64,
    /// Keys given up because the cache was full.
    pub evictions: u64,
    /// Expired rows removed when the table was rebuilt.
    pub expired_removed: u64,
    /// Keys with a row, expired ones that were not removed yet included.
    pub live_rows: u64,
    /// Replaced rows that wait until no reader can see them.
    pub retired_rows: u64,
    /// Keys that a bounded cache holds before it evicts; 0 if it is not bounded.
    pub max_rows: u64,
    /// Rows that a bounded cache has made beyond its bound because readers stalled.
    pub overrun_rows: u64,
    /// Bytes of the columns of live rows.
    pub payload_bytes: u64,
    /// All other bytes in use for live rows: table, keys, time stamps, eviction order, padding.
    pub overhead_bytes: u64,
}

impl Stats {
    /// The numbers by name.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u64); 14] {
        [
            ("hits", self.hits),
            ("misses", self.misses),
            ("expiries", self.expiries),
            ("inserts", self.inserts),
            ("updates", self.updates),
            ("deletes", self.deletes),
            ("evictions", self.evictions),
            ("expired_removed", self.expired_removed),
            ("live_rows", self.live_rows),
            ("retired_rows", self.retired_rows),
            ("max_rows", self.max_rows),
            ("overrun_rows", self.overrun_rows),
            ("payload_bytes", self.payload_bytes),
            ("overhead_bytes", self.overhead_bytes),
        ]
    }
}

/// Where a cache's bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Columns of live rows.
    pub payload_bytes: u64,
    /// What rounds live rows up to whole cache lines.
    pub padding_bytes: u64,
    /// Replaced rows that wait until no reader can see them.
    pub retired_bytes: u64,
    /// Rows that were used and are free.
    pub free_bytes: u64,
    /// The hash table.
    pub table_bytes: u64,
    /// Keys, time stamps and marks beside rows.
    pub side_bytes: u64,
    /// The eviction order.
    pub order_bytes: u64,
    /// Rows that lie in a mapped file: among the above, but memory of the system's own cache of the file, shared
    /// with others who map it, as long as nobody writes to them.
    pub mapped_bytes: u64,
    /// All of the above but `mapped_bytes`, which stand among them.
    pub total_bytes: u64,
    /// Rows, with what is beside them, that were reserved and never touched: address space that most
    /// systems have not yet backed with memory. Not in the total.
    pub untouched_bytes: u64,
    /// The most that an old and a new table took together while the table was rebuilt.
    pub growth_peak_bytes: u64,
}

impl MemoryUsage {
    /// The numbers by name.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u64); 11] {
        [
            ("payload_bytes", self.payload_bytes),
            ("padding_bytes", self.padding_bytes),
            ("retired_bytes", self.retired_bytes),
            ("free_bytes", self.free_bytes),
            ("table_bytes", self.table_bytes),
            ("side_bytes", self.side_bytes),
            ("order_bytes", self.order_bytes),
            ("mapped_bytes", self.mapped_bytes),
            ("total_bytes", self.total_bytes),
            ("untouched_bytes", self.untouched_bytes),
            ("growth_peak_bytes", self.growth_peak_bytes),
        ]
    }
}

impl<R: Reclaim> Store<R> {
    /// Live rows as of the last finished write; takes no lock.
    pub(super) fn live(&self) -> usize {
        self.gauges.live.load(Ordering::Relaxed)
    }

    pub(super) fn stats(&self) -> Stats {
        let memory = self.memory_usage();
        let per_row = self.slab.side_bytes() as u64;
        let live = self.live() as u64;
        Stats {
            hits: self.counters.hits.sum(),
            misses: self.counters.misses.sum(),
            expiries: self.counters.expiries.sum(),
            inserts: self.counters.inserts.sum(),
            updates: self.counters.updates.sum(),
            deletes: self.counters.deletes.sum(),
            evictions: self.counters.evictions.sum(),
            expired_removed: self.counters.expired_removed.sum(),
            live_rows: live,
            retired_rows: self.gauges.retired.load(Ordering::Relaxed) as u64,
            max_rows: self.bound.map_or(0, |bound| bound.live_rows as u64),
            overrun_rows: self.bound.map_or(0, |bound| {
                self.gauges
                    .dealt
                    .load(Ordering::Relaxed)
                    .saturating_sub(bound.rows) as u64
            }),
            payload_bytes: memory.payload_bytes,
            overhead_bytes: memory.padding_bytes
                + memory.table_bytes
                + memory.order_bytes
                + live * per_row,
        }
    }

    pub(super) fn memory_usage(&self) -> MemoryUsage {
        let load = |gauge: &crate::sync::plain::AtomicUsize| gauge.load(Ordering::Relaxed) as u64;
        let (payload, row) = (
            self.layout.payload_bytes() as u64,
            self.layout.row_bytes() as u64,
        );
        let (live, retired) = (load(&self.gauges.live), load(&self.gauges.retired));
        let dealt = load(&self.gauges.dealt);
        let side = self.slab.side_bytes() as u64;
        let table_bytes = load(&self.gauges.table_bytes);
        let order_bytes = load(&self.gauges.order_bytes);
        // Saturating throughout: a write under way has moved some of the gauges and not yet the others.
        MemoryUsage {
            payload_bytes: live * payload,
            padding_bytes: live * (row - payload),
            retired_bytes: retired * row,
            free_bytes: dealt.saturating_sub(live + retired) * row,
            table_bytes,
            side_bytes: dealt * side,
            order_bytes,
            mapped_bytes: load(&self.gauges.mapped_bytes),
            total_bytes: dealt * (row + side) + table_bytes + order_bytes,
            untouched_bytes: load(&self.gauges.made).saturating_sub(dealt) * (row + side),
            growth_peak_bytes: load(&self.gauges.growth_peak_bytes),
        }
    }
}
