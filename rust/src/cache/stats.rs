//! Statistics and memory usage of a cache.

use super::reclaim::Reclaim;
use super::store::Store;
use crate::metrics::fields;
use crate::sync::plain::Ordering;

/// Event counts since the cache was made, and current row counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys looked up by `gather` that had a row.
    pub hits: u64,
    /// Keys looked up by `gather` without a row, including expired ones.
    pub misses: u64,
    /// Misses whose row had expired.
    pub expiries: u64,
    /// Rows written under new keys.
    pub inserts: u64,
    /// Rows written under keys that had one.
    pub updates: u64,
    /// Keys deleted by `delete` or `clear`.
    pub deletes: u64,
    /// Keys evicted because the cache was full.
    pub evictions: u64,
    /// Expired rows removed when the table was rebuilt.
    pub expired_removed: u64,
    /// Keys with a row, including expired ones not yet removed.
    pub live_rows: u64,
    /// Replaced rows that readers may still see.
    pub retired_rows: u64,
    /// Keys that a bounded cache holds before it evicts; 0 if unbounded.
    pub max_rows: u64,
    /// Rows that a bounded cache has allocated beyond its bound because readers stalled.
    pub overrun_rows: u64,
    /// Bytes of the columns of live rows.
    pub payload_bytes: u64,
    /// Other bytes in use for live rows: table, keys, time stamps, eviction order, padding.
    pub overhead_bytes: u64,
}

impl Stats {
    /// Returns the numbers by name.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u64); 14] {
        fields!(self; hits misses expiries inserts updates deletes evictions expired_removed live_rows
            retired_rows max_rows overrun_rows payload_bytes overhead_bytes)
    }
}

/// Memory usage of a cache by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Columns of live rows.
    pub payload_bytes: u64,
    /// Padding of live rows to whole cache lines.
    pub padding_bytes: u64,
    /// Replaced rows that readers may still see.
    pub retired_bytes: u64,
    /// Free rows that were used before.
    pub free_bytes: u64,
    /// Hash table.
    pub table_bytes: u64,
    /// Replaced hash tables that readers may still see.
    pub retired_table_bytes: u64,
    /// New table that a rebuild has not filled yet.
    pub new_table_bytes: u64,
    /// Metadata of rows: keys, time stamps and frequencies.
    pub side_bytes: u64,
    /// Eviction order.
    pub order_bytes: u64,
    /// Rows in a mapped file: included above, but pages of the system's page cache, shared with other
    /// processes that map the file as long as nobody writes to them.
    pub mapped_bytes: u64,
    /// Sum of the above, except `mapped_bytes`, which are included in them.
    pub total_bytes: u64,
    /// Rows and metadata that are reserved but untouched: address space that most systems have not backed
    /// with memory. Not in the total.
    pub untouched_bytes: u64,
    /// Maximum size of an old and a new table together during a rebuild.
    pub growth_peak_bytes: u64,
}

impl MemoryUsage {
    /// Returns the numbers by name.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u64); 13] {
        fields!(self; payload_bytes padding_bytes retired_bytes free_bytes table_bytes retired_table_bytes
            new_table_bytes side_bytes order_bytes mapped_bytes total_bytes untouched_bytes growth_peak_bytes)
    }
}

impl<R: Reclaim> Store<R> {
    /// Returns the live rows as of the last finished write; takes no lock.
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
                    .issued
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
        let issued = load(&self.gauges.issued);
        let side = self.slab.side_bytes() as u64;
        let table_bytes = load(&self.gauges.table_bytes);
        let retired_table_bytes = load(&self.gauges.retired_table_bytes);
        let new_table_bytes = load(&self.gauges.new_table_bytes);
        let order_bytes = load(&self.gauges.order_bytes);
        let tables = table_bytes + retired_table_bytes + new_table_bytes;
        // Saturating throughout: a concurrent write has updated some of the gauges and not yet the others.
        MemoryUsage {
            payload_bytes: live * payload,
            padding_bytes: live * (row - payload),
            retired_bytes: retired * row,
            free_bytes: issued.saturating_sub(live + retired) * row,
            table_bytes,
            retired_table_bytes,
            new_table_bytes,
            side_bytes: issued * side,
            order_bytes,
            mapped_bytes: load(&self.gauges.mapped_bytes),
            total_bytes: issued * (row + side) + tables + order_bytes,
            untouched_bytes: load(&self.gauges.made).saturating_sub(issued) * (row + side),
            growth_peak_bytes: load(&self.gauges.growth_peak_bytes),
        }
    }
}
