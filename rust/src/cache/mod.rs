//! Embedding cache: a concurrent store of fixed-size rows of named columns under 64-bit keys.
//!
//! One structure serves item rows (unbounded) and user states (bounded, with eviction and a time to live).
//!
//! ```
//! use aif_core::cache::{CacheConfig, DType, EmbeddingCache, RowLayout};
//!
//! let layout = RowLayout::new([("score", DType::Float32, vec![]), ("code", DType::UInt8, vec![4])])?;
//! let cache = EmbeddingCache::new(layout, CacheConfig::default())?;
//! cache.upsert(&[7, u64::MAX], &[&[1u8; 8], &[2u8; 8]])?;
//!
//! let (mut score, mut code, mut found) = ([9u8; 12], [9u8; 12], [9u8; 3]);
//! let hits = cache.gather_into(&[7, 8, u64::MAX], &mut [&mut score, &mut code], &mut found)?;
//! assert_eq!((hits, found), (2, [1, 0, 1]));
//! assert_eq!(code, [2, 2, 2, 2, 0, 0, 0, 0, 2, 2, 2, 2]);
//! # Ok::<(), aif_core::error::Error>(())
//! ```
//!
//! # Consistency
//! Each row is read and written as a whole: all columns of a row come from one `upsert`, and no read is
//! torn. Each key is an atomic register: a write by `upsert` or `delete` is visible to every `gather` that
//! starts after it returned, and to later ones of the same thread. A batch is not a transaction: a `gather`
//! concurrent with an `upsert` of many keys may see some of its rows and not others, and a failed `upsert`
//! has written the keys before the one that failed. A `gather` runs under one guard from start to end: rows
//! it can reach are not reused meanwhile.
//!
//! # Progress
//! Readers are lock-free: they wait neither for a stopped writer, nor for growth, nor for each other.
//! Writers copy their rows in parallel and serialise on the table (one mutex). In a bounded cache, a writer
//! that finds every row either live or still visible to a reader waits up to 100 ms for the readers to
//! leave. It releases the mutex meanwhile: whoever needs no new row goes on. If the readers do not leave,
//! the cache exceeds its bound by a sixteenth (counted, and kept from then on), up to twice the bound. Only
//! then the write fails, with [`Error::RowsHeld`]; the key's old row stays. Later writes that need a row
//! fail at once, until readers have released one.
//!
//! # Trade-offs
//! - A replaced row occupies memory until every reader that was inside this cache has left. A stalled
//!   reader delays that, without limit in an unbounded cache. In a bounded one such rows count against the
//!   bound, and a sixteenth of it (at most 1,024 rows) is reserved for them.
//! - Overhead is 12.8 bytes a slot (17.1 a key at the 75 % load that `initial_keys` aims at) and 4 bytes a
//!   row for its time stamp; 30 more if bounded. The load of a growing table is between 60 % and 86 %, that
//!   of a bounded one between 50 % and 86 %. During a rebuild the old and the new table exist together,
//!   which [`MemoryUsage`] reports; the old one is freed by the first write after its readers have left.
//! - Growth and the removal of tombstones copy the table (not the rows), 64 buckets at each write, under
//!   the writers' mutex. Readers do not wait. Until the end of a rebuild, a write looks its key up twice.
//! - Rows are allocated in segments: eight of each size before the size doubles, the first eight large
//!   enough for `initial_keys`. Segments of 2 MB or more use huge pages where available.
//! - Memory is returned to the system when the cache is dropped, not before.
//! - A [`Snapshot`] retains its rows: all rows that writers replace meanwhile occupy memory until it is
//!   dropped.
//! - An allocation that grows with the data fails with [`Error::OutOfMemory`]. Fixed bookkeeping of some
//!   tens of bytes a batch (here and in crossbeam) aborts the process like any small allocation in Rust.

mod clock;
mod copy;
mod hash;
mod layout;
mod rebuild;
mod reclaim;
pub mod registry;
mod rows_file;
mod s3_fifo;
mod slab;
mod snapshot;
mod stats;
mod store;
mod table;
mod upsert;
mod writer;

#[cfg(all(test, aif_loom))]
mod models;
#[cfg(all(test, not(aif_loom)))]
mod tests;

pub use clock::{Clock, ManualClock, TICK_MS};
pub use hash::key_of;
pub use layout::{Column, DType, ROW_ALIGN, RowLayout};
pub use rows_file::{BLOCK_BYTES, block_checksums};
pub use snapshot::{RowView, Snapshot};
pub use stats::{MemoryUsage, Stats};

use crate::buffer::Pages;
use crate::error::{Error, Result};
use crate::sync::plain::OnceLock;
use reclaim::Epochs;
use std::fmt;
use std::time::Duration;
use store::Store;

/// Bytes per row of a bounded cache besides the row: key, time stamp and frequency, the eviction order, and
/// two slots of the table: one in use, and one so that tombstones need not be removed often.
const BOUNDED_ROW_BYTES: usize =
    slab::EVICTING_SIDE_BYTES + s3_fifo::ROW_BYTES + table::bytes_for(10) / 5;

/// Minimum slots of a table.
const MIN_SLOTS: usize = if cfg!(aif_loom) { 4 } else { 64 };

/// Size limits of a bounded cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// Maximum number of rows, including retired ones.
    rows: usize,
    /// Maximum number of rows under keys.
    live_rows: usize,
}

/// Upper limit of the rows of a bounded cache while readers stall, as a multiple of the bound.
const MAX_OVERRUN: usize = 2;

impl Bound {
    fn new(layout: &RowLayout, capacity_bytes: usize) -> Result<Self> {
        let each = layout.row_bytes() + BOUNDED_ROW_BYTES;
        let rows = (capacity_bytes / each).min(table::MAX_ROWS / MAX_OVERRUN);
        if rows < 2 {
            return Err(Error::Config(format!(
                "capacity_bytes is {capacity_bytes}, which holds {rows} rows of {each} bytes (with overhead); \
                 at least 2 are needed, so give {} or more",
                2 * each
            )));
        }
        Ok(Self {
            rows,
            live_rows: rows - (rows / 16).clamp(1, 1024),
        })
    }
}

/// Initial sizes of a store, its page settings and its hash seed.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    bound: Option<Bound>,
    /// Slots of the first table, and the minimum of later ones.
    slots: usize,
    /// Expected number of rows, 0 if unknown.
    rows: usize,
    pages: Pages,
    hash_seed: u64,
}

/// Cache configuration; the default is unbounded, without time to live, on huge pages.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Maximum bytes, overhead included, except for the second table during a rebuild. A full cache evicts
    /// by S3-FIFO.
    pub capacity_bytes: Option<usize>,
    /// Rows older than this are misses. Resolution is one [tick](TICK_MS); never early.
    pub ttl: Option<Duration>,
    /// Number of keys for which to size the table and the segments of rows initially.
    pub initial_keys: usize,
    /// Request huge pages for allocations of 2 MB or more.
    pub huge_pages: bool,
    /// Back memory on allocation instead of on first use: allocating a segment takes longer, and no access
    /// to it faults.
    pub prefault: bool,
    /// Source of the time.
    pub clock: Clock,
    /// Seed of the hash by which keys are placed in memory, for reproducible order and evictions. `None`: a
    /// random one, which nobody who chooses keys can know.
    pub hash_seed: Option<u64>,
}

impl CacheConfig {
    fn hash_seed(&self) -> u64 {
        self.hash_seed.unwrap_or_else(hash::random_seed)
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            capacity_bytes: None,
            ttl: None,
            initial_keys: 0,
            huge_pages: true,
            prefault: false,
            clock: Clock::default(),
            hash_seed: None,
        }
    }
}

/// Concurrent store of fixed-size rows under 64-bit keys; the [module](self) documents its guarantees.
///
/// All methods take `&self` and may be called from any number of threads.
pub struct EmbeddingCache {
    store: Store<Epochs>,
    handle: OnceLock<u64>,
}

impl EmbeddingCache {
    /// Makes an empty cache.
    ///
    /// # Errors
    /// [`Error::Config`] if the capacity holds fewer than two rows or the time to live is zero;
    /// [`Error::OutOfMemory`] if there is no memory for the table.
    pub fn new(layout: RowLayout, config: CacheConfig) -> Result<Self> {
        let bound = config
            .capacity_bytes
            .map(|bytes| Bound::new(&layout, bytes))
            .transpose()?;
        if config.ttl == Some(Duration::ZERO) {
            return Err(Error::Config(
                "ttl is 0, so every row would be too old at once; leave it out".into(),
            ));
        }
        if config.initial_keys > table::MAX_ROWS {
            return Err(Error::Config(format!(
                "initial_keys is {}; a cache holds at most {} rows",
                config.initial_keys,
                table::MAX_ROWS
            )));
        }
        let keys = bound.map_or(config.initial_keys, |bound| {
            config.initial_keys.min(bound.live_rows)
        });
        let sizes = Sizes {
            bound,
            slots: table::slots_for(keys).max(MIN_SLOTS),
            rows: bound.map_or(config.initial_keys, |bound| bound.rows),
            pages: Pages {
                huge: config.huge_pages,
                prefault: config.prefault,
            },
            hash_seed: config.hash_seed(),
        };
        let ttl = config.ttl.map(clock::ticks_of);
        let store = Store::new(layout, sizes, config.clock, ttl, Epochs::new())?;
        Ok(Self {
            store,
            handle: OnceLock::new(),
        })
    }

    /// Returns the layout of the rows.
    #[must_use]
    pub fn layout(&self) -> &RowLayout {
        &self.store.layout
    }

    /// Writes one row per key, in order; for a repeated key the last row stays.
    ///
    /// `columns` has one buffer per column of the layout, in its order, of exactly
    /// `keys.len() * column.bytes()` bytes.
    ///
    /// # Errors
    /// [`Error::Layout`] if the buffers do not fit; then nothing was written. [`Error::OutOfMemory`] and
    /// [`Error::RowsHeld`] stop at a key: the ones before it are written.
    pub fn upsert(&self, keys: &[u64], columns: &[&[u8]]) -> Result<()> {
        self.check(keys.len(), columns.len(), |c| columns[c].len())?;
        let columns: Vec<*const u8> = columns.iter().map(|column| column.as_ptr()).collect();
        // SAFETY: `check` has compared number and lengths.
        unsafe { self.store.upsert(keys, &columns) }
    }

    /// Copies the rows of `keys`, column by column, into `columns`; returns the number found.
    ///
    /// `columns` has one buffer per column of the layout, in its order, of exactly `keys.len() *
    /// column.bytes()` bytes. `found[i]` becomes 1 if `keys[i]` has a row; else it becomes 0 and its range
    /// of every column is zeroed. (Bytes, because foreign buffers need not hold valid `bool`s.)
    ///
    /// # Errors
    /// [`Error::Layout`] if the buffers do not fit; then nothing was written.
    pub fn gather_into(
        &self,
        keys: &[u64],
        columns: &mut [&mut [u8]],
        found: &mut [u8],
    ) -> Result<usize> {
        self.check(keys.len(), columns.len(), |c| columns[c].len())?;
        if found.len() != keys.len() {
            return Err(Error::Request(format!(
                "found has {} places for {} keys; give one byte per key",
                found.len(),
                keys.len()
            )));
        }
        let columns: Vec<*mut u8> = columns
            .iter_mut()
            .map(|column| column.as_mut_ptr())
            .collect();
        // SAFETY: `check` has compared number and lengths; `&mut` slices do not overlap.
        Ok(unsafe { self.store.gather(keys, &columns, found) })
    }

    /// Calls `visit` with the index of each key, in order, and its row in the layout's format, if it has
    /// one; returns the number found. Nothing is copied: a row does not change during the call. All calls
    /// run under one guard, so rows that writers replace meanwhile occupy memory until the last call
    /// returns.
    pub fn read_rows(&self, keys: &[u64], mut visit: impl FnMut(usize, Option<&[u8]>)) -> usize {
        let bytes = self.layout().row_bytes();
        self.store.visit(keys, |place, row| {
            // SAFETY: a row has `row_bytes` bytes, which nobody writes to while the guard of `visit` lives.
            visit(
                place,
                row.map(|row| unsafe { std::slice::from_raw_parts(row, bytes) }),
            );
        })
    }

    fn check(&self, keys: usize, given: usize, len: impl Fn(usize) -> usize) -> Result<()> {
        let columns = self.layout().columns();
        if given != columns.len() {
            return Err(Error::Layout(format!(
                "{given} column buffers were given for {:?}; give one per column, in this order",
                self.layout()
            )));
        }
        for (c, column) in columns.iter().enumerate() {
            let expected = keys.checked_mul(column.bytes());
            if expected != Some(len(c)) {
                return Err(Error::Layout(format!(
                    "the buffer of column {:?} has {} bytes; {keys} keys of {} bytes each need {}",
                    column.name(),
                    len(c),
                    column.bytes(),
                    expected.map_or("more than memory".into(), |bytes| bytes.to_string())
                )));
            }
        }
        Ok(())
    }

    /// Deletes keys; returns how many had a row. Each is a miss for every `gather` that starts later.
    pub fn delete(&self, keys: &[u64]) -> Result<usize> {
        self.store.delete(keys)
    }

    /// Deletes all rows; the statistics continue.
    pub fn clear(&self) -> Result<()> {
        self.store.clear()
    }

    /// Calls `visit` with the index of each key and whether it has a row. Does not count as a use of the
    /// row.
    pub fn contains(&self, keys: &[u64], mut visit: impl FnMut(usize, bool)) {
        self.store.ages(keys, |i, age| visit(i, age.is_some()));
    }

    /// Calls `visit` with the index of each key and the time since its row was written, to one
    /// [tick](TICK_MS). Does not count as a use of the row.
    pub fn ages(&self, keys: &[u64], mut visit: impl FnMut(usize, Option<Duration>)) {
        self.store.ages(keys, |i, age| {
            visit(
                i,
                age.map(|ticks| Duration::from_millis(u64::from(ticks) * TICK_MS)),
            );
        });
    }

    /// Returns the keys that have a row, in no order. Waits for writers, unlike look-ups.
    pub fn keys(&self) -> Result<Vec<u64>> {
        self.store.keys()
    }

    /// Returns all rows that have not expired, as of one moment between writes. Waits for writers, unlike
    /// look-ups; writers do not wait for the snapshot, but rows they replace occupy memory until it is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no memory for the list of rows, 12 bytes each.
    pub fn snapshot(&self) -> Result<Snapshot<'_>> {
        Ok(Snapshot::new(self.store.snapshot()?))
    }

    /// Returns the number of rows under keys as of the last finished write, including expired ones not yet
    /// removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.live()
    }

    /// Returns whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns event counts and row counts. Takes no lock: the numbers belong to slightly different
    /// moments.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.store.stats()
    }

    /// Returns the memory usage by purpose. Takes no lock, like [`stats`](Self::stats).
    #[must_use]
    pub fn memory_usage(&self) -> MemoryUsage {
        self.store.memory_usage()
    }
}

impl fmt::Debug for EmbeddingCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EmbeddingCache({} rows of {:?})",
            self.len(),
            self.layout()
        )
    }
}
