//! The embedding cache: a concurrent store of fixed-size rows of named columns under 64-bit keys.
//!
//! One structure serves item rows (unbounded) and user states (bounded bytes, eviction, time to live).
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
//! torn. Each key behaves as one atomic register: what an `upsert` or `delete` wrote is seen by every
//! `gather` that starts after it returned, and by later ones of the same thread. A batch is not a
//! transaction: a `gather` that runs beside an `upsert` of many keys may see some of its rows and not
//! others, and a failed `upsert` has written the keys before the one that failed.
//! A `gather` runs under one guard from start to end: rows it can reach are not reused meanwhile.
//!
//! # Progress
//! Readers take no lock and wait for nobody: not for a writer that stopped half-way, not for growth, not
//! for each other. Writers copy their rows side by side and take turns at the table (one mutex). In a
//! bounded cache, a writer that finds every row
//! either live or still visible to a reader waits up to 100 ms for the readers to leave; if they do not,
//! the cache exceeds its bound by a sixteenth (counted, and kept from then on), up to twice the bound.
//! Only then a write fails, with [`Error::RowsHeld`]; the key's old row stays.
//!
//! # Trade-offs
//! - A replaced row is memory until every reader that was inside this cache has left. A stalled reader
//!   delays that, without limit in an unbounded cache; in a bounded one such rows count against the
//!   bound, and a sixteenth of it (at most 1,024 rows) is kept for them.
//! - Overhead is 12.8 bytes a slot (17.1 a key at the 75 % that `initial_keys` aims at), and 4 beside each
//!   row for its time stamp; 30 more if bounded. A growing table moves between 60 % and 86 % load, a bounded
//!   one between 50 % and 86 %; while it is rebuilt, the old and the new one exist together, which
//!   [`MemoryUsage`] reports.
//! - Growth and the removal of deleted keys' slots copy the table (not the rows) under the writers' lock:
//!   other writers wait for it, readers do not.
//! - Rows come in segments: eight of each size before the size doubles, the first eight large enough for
//!   `initial_keys`. From 2 MB on they lie on huge pages where the system gives them.
//! - Memory is given back to the system when the cache is dropped, not before.
//! - A [`Snapshot`] keeps the rows of its moment: all that writers replace meanwhile stays memory until it
//!   is dropped.
//! - An allocation that grows with the data fails with [`Error::OutOfMemory`]; fixed bookkeeping of some
//!   tens of bytes a batch (here and in crossbeam) ends the process like any small allocation in Rust.

mod clock;
mod copy;
mod eviction;
mod hash;
mod layout;
mod reclaim;
pub mod registry;
mod rows_file;
mod s3_fifo;
mod single_flight;
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
pub use single_flight::{Failure, SingleFlight};
pub use snapshot::{RowView, Snapshot};
pub use stats::{MemoryUsage, Stats};

use crate::buffer::Pages;
use crate::error::{Error, Result};
use crate::sync::plain::OnceLock;
use reclaim::Epochs;
use std::fmt;
use std::time::Duration;
use store::Store;

/// Bytes beside each row of a bounded cache: key, time stamp and mark, the eviction order, and two slots of
/// the table: one that is in use, and one so that evicted keys' slots need not be cleared away often.
const BOUNDED_ROW_BYTES: usize =
    slab::EVICTING_SIDE_BYTES + s3_fifo::ROW_BYTES + table::bytes_for(10) / 5;

/// The smallest table: fewer slots would only grow again at once.
const LEAST_SLOTS: usize = if cfg!(aif_loom) { 4 } else { 64 };

/// How many rows a bounded cache may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// All rows, those that wait for readers included.
    rows: usize,
    /// Rows under keys.
    live_rows: usize,
}

/// What the rows of a bounded cache may become while readers stall, as a multiple of the bound.
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

/// How much a store has from the start, and on what pages.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    bound: Option<Bound>,
    /// Slots of the first table, and the fewest of any.
    slots: usize,
    /// Rows that will come, if that is known.
    rows: usize,
    pages: Pages,
}

/// How a cache is made; the default is unbounded, without time to live, on huge pages.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The most bytes to take, overhead included; a second table while it is rebuilt is not. Full, the
    /// cache evicts by S3-FIFO.
    pub capacity_bytes: Option<usize>,
    /// Rows older than this are misses. Kept to one [tick](TICK_MS); never early.
    pub ttl: Option<Duration>,
    /// For how many keys to make the table, and the segments of rows, from the start.
    pub initial_keys: usize,
    /// Ask for huge pages wherever 2 MB or more are taken at once.
    pub huge_pages: bool,
    /// Back memory when it is taken and not when it is first used: a segment of rows then takes longer to
    /// come, and no row in it waits for a page.
    pub prefault: bool,
    /// Where the time comes from.
    pub clock: Clock,
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
        }
    }
}

/// A concurrent store of fixed-size rows under 64-bit keys; see the [module](self) for what it promises.
///
/// All methods take `&self` and may be called from any number of threads.
pub struct EmbeddingCache {
    store: Store<Epochs>,
    handle: OnceLock<u64>,
}

impl EmbeddingCache {
    /// An empty cache.
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
            slots: table::slots_for(keys).max(LEAST_SLOTS),
            rows: bound.map_or(config.initial_keys, |bound| bound.rows),
            pages: Pages {
                huge: config.huge_pages,
                prefault: config.prefault,
            },
        };
        let ttl = config.ttl.map(clock::ticks_of);
        let store = Store::new(layout, sizes, config.clock, ttl, Epochs::new())?;
        Ok(Self {
            store,
            handle: OnceLock::new(),
        })
    }

    /// The layout of its rows.
    #[must_use]
    pub fn layout(&self) -> &RowLayout {
        &self.store.layout
    }

    /// Writes one row per key, in order; of a key that comes twice the last row stays.
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

    /// Copies the rows of `keys`, column by column, into `columns`; returns how many were found.
    ///
    /// `columns` has one buffer per column of the layout, in its order, of exactly
    /// `keys.len() * column.bytes()` bytes. `found[i]` becomes 1 if `keys[i]` has a row; else it becomes
    /// 0 and the row's place in every column is zeroed. (Bytes, because foreign buffers need not hold
    /// valid `bool`s.)
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

    /// Shows `see` each key's place in `keys`, in order, and its row as the layout lays it out, if it has
    /// one; returns how many have. Nothing is copied: a row does not change while `see` reads it. All run
    /// under one guard, so rows that writers replace meanwhile stay memory until the last was seen.
    pub fn read_rows(&self, keys: &[u64], mut see: impl FnMut(usize, Option<&[u8]>)) -> usize {
        let bytes = self.layout().row_bytes();
        self.store.visit(keys, |place, row| {
            // SAFETY: a row has `row_bytes` bytes, which nobody writes to while the guard of `visit` lives.
            see(
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

    /// Deletes everything; the counts go on.
    pub fn clear(&self) -> Result<()> {
        self.store.clear()
    }

    /// Calls `see` with each key's place in `keys` and whether it has a row. Counts as no use of the row.
    pub fn contains(&self, keys: &[u64], mut see: impl FnMut(usize, bool)) {
        self.store.ages(keys, |i, age| see(i, age.is_some()));
    }

    /// Calls `see` with each key's place in `keys` and the time since its row was written, to one
    /// [tick](TICK_MS). Counts as no use of the row.
    pub fn ages(&self, keys: &[u64], mut see: impl FnMut(usize, Option<Duration>)) {
        self.store.ages(keys, |i, age| {
            see(
                i,
                age.map(|ticks| Duration::from_millis(u64::from(ticks) * TICK_MS)),
            );
        });
    }

    /// The keys that have a row, in no order. Waits for writers, unlike look-ups.
    pub fn keys(&self) -> Result<Vec<u64>> {
        self.store.keys()
    }

    /// All rows that have not expired, as of one moment between writes. Waits for writers, unlike look-ups;
    /// writers do not wait for the snapshot, but what they replace stays memory until it is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no memory for the list of rows, 12 bytes each.
    pub fn snapshot(&self) -> Result<Snapshot<'_>> {
        Ok(Snapshot::new(self.store.snapshot()?))
    }

    /// Rows under keys as of the last finished write; expired ones count until they are removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.live()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often things happened, and how many rows there are. Takes no lock: the numbers are those of
    /// slightly different moments.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.store.stats()
    }

    /// Where the bytes are. Takes no lock, like [`stats`](Self::stats).
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
