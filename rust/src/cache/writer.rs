//! Writer's half of the algorithm, which runs under one mutex; no reader waits for it.
//!
//! Only the copying of new rows does not need the mutex; `upsert` does it outside.

use super::rebuild::Rebuild;
use super::reclaim::{Reclaim, Retired, RetiredTable};
use super::s3_fifo::{Rows, S3Fifo};
use super::store::{Store, prefetch};
use super::table::{Location, MAX_ROWS, Table};
use super::{Bound, MAX_OVERRUN};
use crate::error::{Error, Result};
use crate::sync::plain::{Ordering, PoisonError};
use crate::sync::{MutexGuard, pause};
use std::time::{Duration, Instant};

/// Rows retired at a time.
const RETIRE_ROWS: usize = 256;

/// Rows whose slots are prefetched together when rows are adopted.
const ADOPTED_ROWS: usize = 64;

/// Time that a writer waits for readers when a bounded cache has no row left. A gather takes less than a
/// millisecond, but its thread may be preempted for longer. Loom has no time: there a writer waits once.
const READER_WAIT: Duration = Duration::from_millis(if cfg!(aif_loom) { 0 } else { 100 });

/// Time between two looks of a waiting writer.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// State of the writers, guarded by the mutex.
pub(super) struct Writer {
    /// Free rows, in the lists in which they were returned.
    free: Vec<Vec<u32>>,
    /// Empty list for the next rows to retire, which saves an allocation.
    spare: Vec<u32>,
    /// Unlinked rows that have not been retired yet.
    pub(super) pending: Vec<u32>,
    /// Number of retired rows that the reclaimer holds.
    waiting: usize,
    /// Bytes of the retired tables that the reclaimer holds.
    waiting_table_bytes: usize,
    /// Tables that the reclaimer has released. Freeing one takes milliseconds, so it is done without the lock.
    released_tables: Vec<RetiredTable>,
    /// True from the moment a write was refused until readers release a row.
    refusing: bool,
    pub(super) rebuild: Option<Rebuild>,
    /// Number of rows in the slab; those from `issued` on were never used.
    made: usize,
    issued: usize,
    /// Upper limit of `issued`.
    limit: usize,
    /// Rows that an `upsert` has taken and not yet published.
    pub(super) reserved: usize,
    pub(super) live: usize,
    /// Slots of the table that are not `EMPTY`.
    pub(super) used: usize,
    pub(super) eviction: Option<S3Fifo>,
}

impl Writer {
    pub(super) fn new(bound: Option<Bound>) -> Self {
        Self {
            free: Vec::new(),
            spare: Vec::new(),
            pending: Vec::new(),
            waiting: 0,
            waiting_table_bytes: 0,
            released_tables: Vec::new(),
            refusing: false,
            rebuild: None,
            made: 0,
            issued: 0,
            reserved: 0,
            limit: bound.map_or(MAX_ROWS, |bound| bound.rows),
            live: 0,
            used: 0,
            eviction: bound.map(|bound| S3Fifo::new(bound.live_rows)),
        }
    }
}

impl<R: Reclaim> Store<R> {
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Writer>> {
        self.writer.lock().map_err(|_| Error::Poisoned("the cache"))
    }

    /// Excludes writers in order to list the rows, also after a writer panicked: each of its stores left a
    /// table that readers may use, and no other writer changes it any more.
    pub(super) fn lock_to_list(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes keys; returns how many had a row that had not expired.
    pub(super) fn delete(&self, keys: &[u64]) -> Result<usize> {
        let mut writer = self.lock()?;
        let now = self.clock.ticks();
        let mut deleted = 0;
        let mut done = Ok(());
        for (i, &key) in keys.iter().enumerate() {
            if let Err(error) = self.step_rebuild(&mut writer) {
                done = Err(with_progress(error, i, keys.len()));
                break;
            }
            let Location::Found { slot, row } = self.locate(&writer, key, self.hash(key)) else {
                continue;
            };
            if writer.pending.try_reserve(1).is_err() {
                done = Err(with_progress(
                    no_memory("the list of deleted rows"),
                    i,
                    keys.len(),
                ));
                break;
            }
            deleted += usize::from(!self.expired(&self.slab.row(row), now));
            if let Some(eviction) = &mut writer.eviction {
                eviction.removed(row);
            }
            self.remove_row(&mut writer, slot, key, row);
        }
        self.counters.deletes.add(deleted as u64);
        self.finish_write(writer);
        done.map(|()| deleted)
    }

    /// Deletes all rows. Concurrent readers see the rows as they were.
    pub(super) fn clear(&self) -> Result<()> {
        let mut writer = self.lock()?;
        let table = Box::new(Table::new(self.min_slots, self.pages)?);
        let live = writer.live;
        writer
            .pending
            .try_reserve(live)
            .map_err(|_| no_memory("the list of deleted rows"))?;
        writer.rebuild = None;
        let old = self.replace_table(&mut writer, table);
        writer
            .pending
            .extend(old.table().entries().map(|(_, row)| row));
        self.retire_table(&mut writer, old);
        (writer.live, writer.used) = (0, 0);
        if let Some(eviction) = &mut writer.eviction {
            eviction.clear();
        }
        self.counters.deletes.add(live as u64);
        self.finish_write(writer);
        Ok(())
    }

    /// Returns the keys of rows that have not expired, in no order, as of one moment between writes.
    pub(super) fn keys(&self) -> Result<Vec<u64>> {
        let writer = self.lock_to_list();
        let now = self.clock.ticks();
        let mut keys = Vec::new();
        keys.try_reserve_exact(writer.live)
            .map_err(|_| no_memory("the list of keys"))?;
        let living = self
            .writers_table(&writer)
            .entries()
            .filter(|&(_, row)| !self.expired(&self.slab.row(row), now));
        keys.extend(living.map(|(key, _)| key));
        Ok(keys)
    }

    /// Makes `row`, which is filled and owned by the caller, the row of `key`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::RowsHeld`]; then nothing was changed and the caller still owns the
    /// row.
    pub(super) fn publish(&self, writer: &mut Writer, key: u64, row: u32) -> Result<()> {
        let hash = self.hash(key);
        // Everything that can fail precedes the first change that readers see.
        self.step_rebuild(writer)?;
        let mut location = self.locate(writer, key, hash);
        if matches!(location, Location::Absent { .. }) && self.make_room(writer)? {
            location = self.locate(writer, key, hash);
        }
        writer
            .pending
            .try_reserve(1)
            .map_err(|_| no_memory("the list of replaced rows"))?;
        match location {
            Location::Found { slot, row: old } => {
                self.put(writer, slot, key, row);
                if let Some(eviction) = &mut writer.eviction {
                    eviction.replaced(old, row);
                    // Replacing a row counts as a use of it, and the uses of the old row carry over.
                    let fresh = self.slab.row(row);
                    fresh.inherit_frequency(&self.slab.row(old));
                    fresh.touch();
                }
                self.queue_retired(writer, old);
                self.counters.updates.add(1);
            }
            Location::Absent { slot } => {
                self.put(writer, slot, key, row);
                writer.live += 1;
                if let Some(eviction) = &mut writer.eviction {
                    eviction.inserted(row, hash);
                }
                self.counters.inserts.add(1);
            }
        }
        Ok(())
    }

    /// Makes the first rows of the slab, which are filled, the rows of `keys`, which are distinct.
    ///
    /// # Errors
    /// [`Error::Request`] if a key is repeated, [`Error::OutOfMemory`]; then the store is unusable.
    pub(super) fn adopt(&self, keys: &[u64]) -> Result<()> {
        let mut writer = self.lock()?;
        let now = self.clock.ticks();
        while writer.made < keys.len() {
            self.grow(&mut writer)?;
        }
        writer.issued = keys.len();
        for (chunk, some) in keys.chunks(ADOPTED_ROWS).enumerate() {
            for &key in some {
                prefetch(self.writers_table(&writer).first_line(self.hash(key)));
            }
            for (i, &key) in some.iter().enumerate() {
                let row = (chunk * ADOPTED_ROWS + i) as u32;
                let Location::Absent { slot } = self.locate(&writer, key, self.hash(key)) else {
                    return Err(Error::Request(format!(
                        "key {key} is repeated; give each row a key of its own"
                    )));
                };
                self.slab.row(row).init_header(key, now);
                self.put(&mut writer, slot, key, row);
                writer.live += 1;
            }
        }
        self.counters.inserts.add(keys.len() as u64);
        self.finish_write(writer);
        Ok(())
    }

    fn locate(&self, writer: &Writer, key: u64, hash: u64) -> Location {
        self.writers_table(writer).locate(key, hash)
    }

    /// Removes a row from the table. The caller has updated the eviction order and reserved `pending`.
    fn remove_row(&self, writer: &mut Writer, slot: usize, key: u64, row: u32) {
        self.unlink(writer, slot, key);
        writer.live -= 1;
        self.queue_retired(writer, row);
    }

    /// Queues an unlinked row for retirement; `pending` has room for it.
    fn queue_retired(&self, writer: &mut Writer, row: u32) {
        writer.pending.push(row);
        self.flush_if_long(writer);
    }

    /// Retires the pending rows if they are many.
    pub(super) fn flush_if_long(&self, writer: &mut Writer) {
        if writer.pending.len() >= RETIRE_ROWS {
            self.flush_retired(writer);
        }
    }

    /// Retires the pending rows.
    fn flush_retired(&self, writer: &mut Writer) {
        if !writer.pending.is_empty() {
            let empty = std::mem::take(&mut writer.spare);
            let rows = std::mem::replace(&mut writer.pending, empty);
            writer.waiting += rows.len();
            self.reclaim.retire(Retired::Rows(rows));
        }
    }

    pub(super) fn retire_table(&self, writer: &mut Writer, table: RetiredTable) {
        writer.waiting_table_bytes += table.table().bytes();
        self.reclaim.retire(Retired::Table(table));
    }

    /// Makes room in the table, and in a bounded cache among the rows, for one more key. Returns whether
    /// the table was replaced.
    fn make_room(&self, writer: &mut Writer) -> Result<bool> {
        if let Some(bound) = self.bound {
            while writer.live >= bound.live_rows {
                self.evict(writer)?;
            }
        }
        self.make_slot(writer)
    }

    fn evict(&self, writer: &mut Writer) -> Result<()> {
        writer
            .pending
            .try_reserve(1)
            .map_err(|_| no_memory("the list of evicted rows"))?;
        let now = self.clock.ticks();
        let victim = writer
            .eviction
            .as_mut()
            .and_then(|eviction| eviction.victim(&mut LiveRows { store: self, now }));
        let victim = victim.expect("a policy knows every live row, and the cache is full of them");
        let key = self.slab.row(victim).key();
        match self.locate(writer, key, self.hash(key)) {
            Location::Found { slot, row } if row == victim => {
                self.remove_row(writer, slot, key, row);
            }
            other => {
                unreachable!("the policy evicted row {victim} of key {key}, which is {other:?}")
            }
        }
        self.counters.evictions.add(1);
        Ok(())
    }

    /// Takes a row for the caller. In a bounded cache without one, waits without the lock for readers to
    /// release one, and then sets `now` to the tick at which the lock was back.
    ///
    /// # Errors
    /// The outer error: [`Error::Poisoned`], by a writer that panicked meanwhile. The inner one:
    /// [`Error::OutOfMemory`], [`Error::RowsHeld`].
    pub(super) fn take_row<'a>(
        &'a self,
        mut writer: MutexGuard<'a, Writer>,
        now: &mut u32,
    ) -> Result<(MutexGuard<'a, Writer>, Result<u32>)> {
        let mut began = None;
        loop {
            if let Some(row) = self.free_row(&mut writer).transpose() {
                return Ok((writer, row));
            }
            let wait_is_over = began.is_some_and(|at: Instant| at.elapsed() >= READER_WAIT);
            if writer.refusing || wait_is_over {
                if let Err(error) = self.overrun(&mut writer) {
                    return Ok((writer, Err(error)));
                }
                continue;
            }
            began.get_or_insert_with(Instant::now);
            self.finish_write(writer);
            pause(LOOK_EVERY);
            // Others have written: everything is looked at anew.
            writer = self.lock()?;
            *now = self.clock.ticks();
        }
    }

    /// Returns a free row: a returned one, else a new one. `None` in a bounded cache whose rows are all
    /// live or visible to readers.
    fn free_row(&self, writer: &mut Writer) -> Result<Option<u32>> {
        if let Some(row) = Self::pop_free(writer) {
            return Ok(Some(row));
        }
        if writer.waiting > 0 {
            self.collect(writer);
            if let Some(row) = Self::pop_free(writer) {
                return Ok(Some(row));
            }
        }
        if writer.issued == writer.limit {
            self.flush_retired(writer);
            self.reclaim.try_advance();
            self.collect(writer);
            return Ok(Self::pop_free(writer));
        }
        if writer.issued == writer.made {
            self.grow(writer)?;
        }
        writer.issued += 1;
        Ok(Some((writer.issued - 1) as u32))
    }

    /// Lets a bounded cache exceed its bound because readers stall, by a sixteenth at a time, so that a
    /// long stall is waited for a few times and not at every row.
    fn overrun(&self, writer: &mut Writer) -> Result<()> {
        let rows = self.bound.map_or(MAX_ROWS, |bound| bound.rows);
        let more = (rows / 16)
            .max(16)
            .min((rows * MAX_OVERRUN).min(MAX_ROWS) - writer.limit);
        if more == 0 {
            writer.refusing = true;
            return Err(Error::RowsHeld {
                retired: writer.waiting,
                limit: writer.limit,
            });
        }
        writer.limit += more;
        Ok(())
    }

    fn pop_free(writer: &mut Writer) -> Option<u32> {
        let list = writer.free.last_mut()?;
        let row = list.pop();
        if list.is_empty()
            && let Some(list) = writer.free.pop()
        {
            writer.spare = list;
        }
        row
    }

    /// Adds a list of free rows.
    fn push_free(writer: &mut Writer, mut rows: Vec<u32>) {
        match writer.free.last_mut() {
            Some(list) if list.capacity() - list.len() >= rows.len() => list.append(&mut rows),
            _ => writer.free.push(rows),
        }
    }

    /// Returns rows that were not published.
    pub(super) fn put_back(writer: &mut Writer, rows: &[u32]) {
        let mut list = std::mem::take(&mut writer.spare);
        // Rows taken from a list left their places in it. New rows stay unused if memory is too short for
        // their numbers.
        if list.try_reserve(rows.len()).is_ok() {
            list.extend_from_slice(rows);
            Self::push_free(writer, list);
        }
    }

    fn grow(&self, writer: &mut Writer) -> Result<()> {
        if let Some(eviction) = &mut writer.eviction {
            eviction.reserve(writer.made + self.slab.next_rows(writer.made))?;
        }
        writer.made += self.slab.grow(writer.made)?;
        self.gauges.made.store(writer.made, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the rows and tables that the reclaimer releases.
    fn collect(&self, writer: &mut Writer) {
        self.reclaim.collect(&mut |what| match what {
            Retired::Rows(rows) => {
                writer.waiting -= rows.len();
                writer.refusing = false;
                Self::push_free(writer, rows);
            }
            Retired::Table(table) => {
                writer.waiting_table_bytes -= table.table().bytes();
                // Without memory for the list, it is freed here.
                if writer.released_tables.try_reserve(1).is_ok() {
                    writer.released_tables.push(table);
                }
            }
        });
    }

    /// Ends a write: retires the rows it replaced, updates the gauges, releases the lock, and frees replaced
    /// tables.
    pub(super) fn finish_write(&self, mut writer: MutexGuard<'_, Writer>) {
        self.flush_retired(&mut writer);
        if writer.waiting_table_bytes > 0 {
            // Inserts retire nothing, and so would not advance.
            self.reclaim.try_advance();
        }
        self.collect(&mut writer);
        self.gauges.live.store(writer.live, Ordering::Relaxed);
        self.gauges.retired.store(writer.waiting, Ordering::Relaxed);
        self.gauges
            .retired_table_bytes
            .store(writer.waiting_table_bytes, Ordering::Relaxed);
        self.gauges.issued.store(writer.issued, Ordering::Relaxed);
        let order = writer.eviction.as_ref().map_or(0, S3Fifo::bytes);
        self.gauges.order_bytes.store(order, Ordering::Relaxed);
        let released = std::mem::take(&mut writer.released_tables);
        drop(writer);
        drop(released);
    }
}

/// Rows as seen by the eviction order: an expired row counts as unread.
struct LiveRows<'a, R: Reclaim> {
    store: &'a Store<R>,
    now: u32,
}

impl<R: Reclaim> Rows for LiveRows<'_, R> {
    fn take_frequency(&mut self, row: u32) -> u8 {
        let row = self.store.slab.row(row);
        let marks = row.take_frequency();
        if self.store.expired(&row, self.now) {
            0
        } else {
            marks
        }
    }

    fn hash(&self, row: u32) -> u64 {
        self.store.hash(self.store.slab.row(row).key())
    }
}

pub(super) fn no_memory(what: &str) -> Error {
    Error::OutOfMemory {
        what: what.into(),
        bytes: size_of::<u32>(),
    }
}

/// Adds the progress of the batch to the message of `error`.
pub(super) fn with_progress(error: Error, done: usize, of: usize) -> Error {
    match error {
        Error::OutOfMemory { what, bytes } => Error::OutOfMemory {
            what: format!("{what} (after {done} of {of} keys of this batch)"),
            bytes,
        },
        other => other,
    }
}
