//! The writer's half of the algorithm: everything here runs under the one lock, and no reader waits for it.
//!
//! Only the copying of new rows does not need the lock; `upsert` does it outside.

use super::eviction::{Eviction, Rows};
use super::hash::spread;
use super::reclaim::{Reclaim, Retired};
use super::s3_fifo::S3Fifo;
use super::store::{Store, prefetch};
use super::table::{MAX_ROWS, Place, Table};
use super::{Bound, MAX_OVERRUN};
use crate::error::{Error, Result};
use crate::sync::MutexGuard;
use crate::sync::plain::Ordering;
use std::time::{Duration, Instant};

/// Rows handed to the reclaimer at a time.
const RETIRE_ROWS: usize = 256;

/// Rows whose slots are fetched ahead together when rows are adopted.
const ADOPTED_ROWS: usize = 64;

/// How long a writer waits for readers when a bounded cache has no row left. A gather takes less than
/// a millisecond, but its thread may be off the processor for some.
const PATIENCE: Duration = Duration::from_millis(if cfg!(aif_loom) { 0 } else { 100 });

/// What only the writer knows.
pub(super) struct Writer {
    /// Rows that nobody uses, in the lists in which they came back.
    free: Vec<Vec<u32>>,
    /// An empty list for the next rows to hand over, so that not every one is a new allocation.
    spare: Vec<u32>,
    /// Rows out of readers' sight that the reclaimer has not been given yet.
    pending: Vec<u32>,
    /// Rows that the reclaimer keeps.
    waiting: usize,
    /// Rows the slab has made; those from `dealt` on were never used.
    made: usize,
    dealt: usize,
    /// How far `dealt` may go.
    limit: usize,
    /// Rows that an `upsert` has taken and not yet published.
    pub(super) reserved: usize,
    live: usize,
    /// Slots of the table that are not `EMPTY`.
    used: usize,
    eviction: Option<Box<dyn Eviction>>,
}

impl Writer {
    pub(super) fn new(bound: Option<Bound>) -> Self {
        Self {
            free: Vec::new(),
            spare: Vec::new(),
            pending: Vec::new(),
            waiting: 0,
            made: 0,
            dealt: 0,
            reserved: 0,
            limit: bound.map_or(MAX_ROWS, |bound| bound.rows),
            live: 0,
            used: 0,
            eviction: bound
                .map(|bound| Box::new(S3Fifo::new(bound.live_rows)) as Box<dyn Eviction>),
        }
    }
}

impl<R: Reclaim> Store<R> {
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Writer>> {
        self.writer.lock().map_err(|_| Error::Poisoned("the cache"))
    }

    /// Deletes keys; returns how many had a row that had not expired.
    pub(super) fn delete(&self, keys: &[u64]) -> Result<usize> {
        let mut writer = self.lock()?;
        let now = self.clock.ticks();
        let mut deleted = 0;
        let mut done = Ok(());
        for (i, &key) in keys.iter().enumerate() {
            let Place::Found { slot, row } = self.place(&writer, key, spread(key)) else {
                continue;
            };
            if writer.pending.try_reserve(1).is_err() {
                done = Err(after(no_memory("the list of deleted rows"), i, keys.len()));
                break;
            }
            deleted += usize::from(!self.expired(&self.slab.row(row), now));
            if let Some(eviction) = &mut writer.eviction {
                eviction.removed(row);
            }
            self.take_out(&mut writer, slot, row);
        }
        self.counters.deletes.add(deleted as u64);
        self.settle(&mut writer);
        done.map(|()| deleted)
    }

    /// Deletes everything. Readers that are inside see the rows as they were.
    pub(super) fn clear(&self) -> Result<()> {
        let mut writer = self.lock()?;
        let table = Box::new(Table::new(self.least_slots, self.pages)?);
        let live = writer.live;
        writer
            .pending
            .try_reserve(live)
            .map_err(|_| no_memory("the list of deleted rows"))?;
        let old = self.swing(&mut writer, table);
        writer
            .pending
            .extend(old.table().entries().map(|(_, row)| row));
        self.reclaim.retire(Retired::Table(old));
        (writer.live, writer.used) = (0, 0);
        if let Some(eviction) = &mut writer.eviction {
            eviction.clear();
        }
        self.counters.deletes.add(live as u64);
        self.settle(&mut writer);
        Ok(())
    }

    /// The keys of rows that have not expired, in no order, as of one moment between writes.
    pub(super) fn keys(&self) -> Result<Vec<u64>> {
        let writer = self.lock()?;
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

    /// Makes `row`, which is filled and which nobody else has, the row of `key`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::RowsHeld`]; then nothing was changed and the row is still the
    /// caller's.
    pub(super) fn publish(&self, writer: &mut Writer, key: u64, row: u32) -> Result<()> {
        let hash = spread(key);
        let mut place = self.place(writer, key, hash);
        // All that can fail comes before the first change that readers see.
        if matches!(place, Place::Absent { .. }) && self.make_room(writer)? {
            place = self.place(writer, key, hash);
        }
        writer
            .pending
            .try_reserve(1)
            .map_err(|_| no_memory("the list of replaced rows"))?;
        match place {
            Place::Found { slot, row: old } => {
                self.writers_table(writer).publish(slot, key, row);
                if let Some(eviction) = &mut writer.eviction {
                    eviction.replaced(old, row);
                    // A row that was worth replacing is in use, and so was the old one.
                    let fresh = self.slab.row(row);
                    fresh.inherit_marks(&self.slab.row(old));
                    fresh.mark();
                }
                self.give_up(writer, old);
                self.counters.updates.add(1);
            }
            Place::Absent { slot } => {
                let emptied = self.writers_table(writer).publish(slot, key, row);
                writer.used += usize::from(emptied);
                writer.live += 1;
                if let Some(eviction) = &mut writer.eviction {
                    eviction.inserted(row, hash);
                }
                self.counters.inserts.add(1);
            }
        }
        Ok(())
    }

    /// Makes the first rows of the slab, which are filled, those of `keys`, which all differ.
    ///
    /// # Errors
    /// [`Error::Request`] if a key comes twice, [`Error::OutOfMemory`]; then the store is of no use.
    pub(super) fn adopt(&self, keys: &[u64]) -> Result<()> {
        let mut writer = self.lock()?;
        let now = self.clock.ticks();
        while writer.made < keys.len() {
            self.grow(&mut writer)?;
        }
        writer.dealt = keys.len();
        for (chunk, some) in keys.chunks(ADOPTED_ROWS).enumerate() {
            for &key in some {
                prefetch(self.writers_table(&writer).first_line(spread(key)));
            }
            for (i, &key) in some.iter().enumerate() {
                let row = (chunk * ADOPTED_ROWS + i) as u32;
                let Place::Absent { slot } = self.place(&writer, key, spread(key)) else {
                    return Err(Error::Request(format!(
                        "key {key} stands there twice; a row can be that of one key only"
                    )));
                };
                self.slab.row(row).dedicate(key, now);
                let emptied = self.writers_table(&writer).publish(slot, key, row);
                writer.used += usize::from(emptied);
                writer.live += 1;
            }
        }
        self.counters.inserts.add(keys.len() as u64);
        self.settle(&mut writer);
        Ok(())
    }

    fn place(&self, writer: &Writer, key: u64, hash: u64) -> Place {
        self.writers_table(writer).place(key, hash)
    }

    /// Takes a row out of the table. The caller has told the eviction policy and reserved `pending`.
    fn take_out(&self, writer: &mut Writer, slot: usize, row: u32) {
        self.writers_table(writer).take_out(slot);
        writer.live -= 1;
        self.give_up(writer, row);
    }

    /// Notes a row that no slot names any more; `pending` has room for it.
    fn give_up(&self, writer: &mut Writer, row: u32) {
        writer.pending.push(row);
        if writer.pending.len() >= RETIRE_ROWS {
            self.hand_over(writer);
        }
    }

    /// Gives the pending rows to the reclaimer.
    fn hand_over(&self, writer: &mut Writer) {
        if !writer.pending.is_empty() {
            let empty = std::mem::take(&mut writer.spare);
            let rows = std::mem::replace(&mut writer.pending, empty);
            writer.waiting += rows.len();
            self.reclaim.retire(Retired::Rows(rows));
        }
    }

    /// Makes the table, and in a bounded cache the number of rows, fit one key more. Returns whether slots
    /// have moved.
    fn make_room(&self, writer: &mut Writer) -> Result<bool> {
        if let Some(bound) = self.bound {
            while writer.live >= bound.live_rows {
                self.evict(writer)?;
            }
        }
        let is_full = writer.used + 1 > self.writers_table(writer).max_used();
        if is_full {
            self.rebuild(writer)?;
        }
        Ok(is_full)
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
            .and_then(|eviction| eviction.victim(&mut Living { store: self, now }));
        let victim = victim.expect("a policy knows every live row, and the cache is full of them");
        let key = self.slab.row(victim).key();
        match self.place(writer, key, spread(key)) {
            Place::Found { slot, row } if row == victim => self.take_out(writer, slot, row),
            other => {
                unreachable!("the policy gave up row {victim} of key {key}, which is {other:?}")
            }
        }
        self.counters.evictions.add(1);
        Ok(())
    }

    /// Moves the living rows to a new table: a larger one, or one without deleted slots.
    fn rebuild(&self, writer: &mut Writer) -> Result<()> {
        let now = self.clock.ticks();
        // Half full if keys come and go, so that a rebuild serves for many of them; else three fifths.
        let keys = writer.live + 1;
        let slots = if self.bound.is_some() {
            keys.saturating_mul(2)
        } else {
            keys.saturating_mul(5) / 3
        };
        let slots = slots.max(self.least_slots);
        let table = Box::new(Table::new(slots, self.pages)?);
        let both = table.bytes() + self.writers_table(writer).bytes();
        self.gauges
            .growth_peak_bytes
            .fetch_max(both, Ordering::Relaxed);
        let old = self.writers_table(writer);
        let is_dead = |row| self.expired(&self.slab.row(row), now);
        let dead = old.entries().filter(|&(_, row)| is_dead(row)).count();
        writer
            .pending
            .try_reserve(dead)
            .map_err(|_| no_memory("the list of expired rows"))?;
        let mut used = 0;
        for (key, row) in old.entries() {
            if is_dead(row) {
                if let Some(eviction) = &mut writer.eviction {
                    eviction.removed(row);
                }
                writer.pending.push(row);
            } else {
                // Keys are unique in the old table, so none can be found in the new one.
                let Place::Absent { slot } = table.place(key, spread(key)) else {
                    unreachable!()
                };
                used += usize::from(table.publish(slot, key, row));
            }
        }
        self.counters.expired_removed.add(dead as u64);
        (writer.live, writer.used) = (used, used);
        let old = self.swing(writer, table);
        self.reclaim.retire(Retired::Table(old));
        if writer.pending.len() >= RETIRE_ROWS {
            self.hand_over(writer);
        }
        Ok(())
    }

    /// A row that nobody uses: a returned one, else a new one, else, in a bounded cache, the first that
    /// readers let go of.
    pub(super) fn free_row(&self, writer: &mut Writer) -> Result<u32> {
        if let Some(row) = Self::pop_free(writer) {
            return Ok(row);
        }
        if writer.waiting > 0 {
            self.collect(writer);
            if let Some(row) = Self::pop_free(writer) {
                return Ok(row);
            }
        }
        if writer.dealt == writer.limit {
            if let Some(row) = self.wait_for_row(writer) {
                return Ok(row);
            }
            self.overrun(writer)?;
        }
        if writer.dealt == writer.made {
            self.grow(writer)?;
        }
        writer.dealt += 1;
        Ok((writer.dealt - 1) as u32)
    }

    /// Lets a bounded cache exceed its bound, because readers stall: by a sixteenth at a time, so that a
    /// long stall is waited for a few times and not at every row.
    fn overrun(&self, writer: &mut Writer) -> Result<()> {
        let rows = self.bound.map_or(MAX_ROWS, |bound| bound.rows);
        let more = (rows / 16)
            .max(16)
            .min((rows * MAX_OVERRUN).min(MAX_ROWS) - writer.limit);
        if more == 0 {
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

    /// Takes a list of rows that nobody uses.
    fn push_free(writer: &mut Writer, mut rows: Vec<u32>) {
        match writer.free.last_mut() {
            Some(list) if list.capacity() - list.len() >= rows.len() => list.append(&mut rows),
            _ => writer.free.push(rows),
        }
    }

    /// Takes back rows that were not published after all.
    pub(super) fn put_back(writer: &mut Writer, rows: &[u32]) {
        let mut list = std::mem::take(&mut writer.spare);
        // Rows that came from a list left their places in it. For new rows, when memory is so short that
        // not even their numbers can be kept, they stay unused.
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

    /// Takes what the reclaimer gives back.
    fn collect(&self, writer: &mut Writer) {
        self.reclaim.collect(&mut |what| match what {
            Retired::Rows(rows) => {
                writer.waiting -= rows.len();
                Self::push_free(writer, rows);
            }
            Retired::Table(table) => drop(table),
        });
    }

    /// A row that readers let go of in time.
    fn wait_for_row(&self, writer: &mut Writer) -> Option<u32> {
        self.hand_over(writer);
        let start = Instant::now();
        while writer.waiting > 0 {
            self.reclaim.nudge();
            self.collect(writer);
            if !writer.free.is_empty() || start.elapsed() >= PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Self::pop_free(writer)
    }

    /// Ends a write: hands over what it replaced and brings the gauges up to date.
    pub(super) fn settle(&self, writer: &mut Writer) {
        self.hand_over(writer);
        self.collect(writer);
        self.gauges.live.store(writer.live, Ordering::Relaxed);
        self.gauges.retired.store(writer.waiting, Ordering::Relaxed);
        self.gauges.dealt.store(writer.dealt, Ordering::Relaxed);
        let order = writer
            .eviction
            .as_ref()
            .map_or(0, |eviction| eviction.bytes());
        self.gauges.order_bytes.store(order, Ordering::Relaxed);
    }
}

/// The rows as a policy sees them: those that have expired were not read.
struct Living<'a, R: Reclaim> {
    store: &'a Store<R>,
    now: u32,
}

impl<R: Reclaim> Rows for Living<'_, R> {
    fn take_marks(&mut self, row: u32) -> u8 {
        let row = self.store.slab.row(row);
        let marks = row.take_marks();
        if self.store.expired(&row, self.now) {
            0
        } else {
            marks
        }
    }

    fn hash(&self, row: u32) -> u64 {
        spread(self.store.slab.row(row).key())
    }
}

pub(super) fn no_memory(what: &str) -> Error {
    Error::OutOfMemory {
        what: what.into(),
        bytes: size_of::<u32>(),
    }
}

/// `error`, saying how far the batch had come.
pub(super) fn after(error: Error, done: usize, of: usize) -> Error {
    match error {
        Error::OutOfMemory { what, bytes } => Error::OutOfMemory {
            what: format!("{what} (after {done} of {of} keys of this batch)"),
            bytes,
        },
        other => other,
    }
}
