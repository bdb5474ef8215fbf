//! Rebuilding of the table, some buckets at each write: a larger table, or one without tombstones.
//!
//! The new table is private to the writers until it holds every key; then it replaces the old one in one
//! store. Until then readers use the old table, and a write to a slot that has been copied goes to both.
//! Slots do not move within a table, so the number of copied slots tells which these are. A rebuild begins
//! when the free slots just suffice for the inserts until its end. So the mutex is held for the copying of
//! [`STEP_BUCKETS`] at a time, however large the table is.

use super::reclaim::Reclaim;
use super::store::Store;
use super::table::{BUCKET_SLOTS, Location, Table};
use super::writer::{Writer, no_memory};
use crate::error::Result;
use crate::sync::plain::Ordering;

/// Buckets that one write copies. A table of no more buckets is rebuilt by one write.
const STEP_BUCKETS: usize = if cfg!(aif_loom) { 2 } else { 64 };

/// New table that does not hold every key yet.
pub(super) struct Rebuild {
    table: Box<Table>,
    /// Slots of the new table that are not `EMPTY`.
    used: usize,
    /// Buckets of the old table that have been copied.
    copied: usize,
}

impl Rebuild {
    fn has_copied(&self, slot: usize) -> bool {
        slot < self.copied * BUCKET_SLOTS
    }

    fn put(&mut self, key: u64, hash: u64, row: u32) {
        let (Location::Found { slot, .. } | Location::Absent { slot }) =
            self.table.locate(key, hash);
        self.used += usize::from(self.table.publish(slot, key, row));
    }

    fn remove(&mut self, key: u64, hash: u64) {
        if let Location::Found { slot, .. } = self.table.locate(key, hash) {
            self.table.remove(slot);
        }
    }
}

/// Returns the number of writes that copy `buckets` buckets.
fn steps(buckets: usize) -> usize {
    buckets.div_ceil(STEP_BUCKETS)
}

impl<R: Reclaim> Store<R> {
    /// Makes `row` the row of `key`, which has `slot` of the table.
    pub(super) fn put(&self, writer: &mut Writer, slot: usize, key: u64, row: u32) {
        let emptied = self.writers_table(writer).publish(slot, key, row);
        writer.used += usize::from(emptied);
        if let Some(rebuild) = writer.rebuild.as_mut()
            && rebuild.has_copied(slot)
        {
            rebuild.put(key, self.hash(key), row);
        }
    }

    /// Leaves `key`, which has `slot` of the table, without a row.
    pub(super) fn unlink(&self, writer: &mut Writer, slot: usize, key: u64) {
        self.writers_table(writer).remove(slot);
        if let Some(rebuild) = writer.rebuild.as_mut()
            && rebuild.has_copied(slot)
        {
            rebuild.remove(key, self.hash(key));
        }
    }

    /// Makes a slot available for one more key. Returns whether the table was replaced.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory) if a new table is needed now and refused.
    pub(super) fn make_slot(&self, writer: &mut Writer) -> Result<bool> {
        let table = self.writers_table(writer);
        if writer.rebuild.is_none() {
            if writer.used + steps(table.buckets()) <= table.max_used() {
                return Ok(false);
            }
            if let Err(error) = self.begin_rebuild(writer) {
                // Tried again at the next insert, as long as there are free slots.
                return if writer.used < table.max_used() {
                    Ok(false)
                } else {
                    Err(error)
                };
            }
        }
        let mut replaced = false;
        while let Some(rebuild) = &writer.rebuild
            && writer.used + steps(table.buckets() - rebuild.copied) > table.max_used()
        {
            replaced = self.step_rebuild(writer)?;
        }
        Ok(replaced)
    }

    #[cfg(all(test, aif_loom))]
    pub(super) fn is_rebuilding(&self) -> bool {
        self.lock().unwrap().rebuild.is_some()
    }

    fn begin_rebuild(&self, writer: &mut Writer) -> Result<()> {
        let old = self.writers_table(writer);
        // Each insert until the end copies a step. At half load if keys come and go, so that rebuilds are
        // rare; else at three fifths.
        let keys = writer.live + steps(old.buckets());
        let slots = if self.bound.is_some() {
            keys.saturating_mul(2)
        } else {
            keys.saturating_mul(5) / 3
        };
        let table = Box::new(Table::new(slots.max(self.min_slots), self.pages)?);
        let both = table.bytes() + old.bytes();
        self.gauges
            .new_table_bytes
            .store(table.bytes(), Ordering::Relaxed);
        self.gauges
            .growth_peak_bytes
            .fetch_max(both, Ordering::Relaxed);
        writer.rebuild = Some(Rebuild {
            table,
            used: 0,
            copied: 0,
        });
        Ok(())
    }

    /// Copies the next buckets of the table, if it is being rebuilt, and removes their expired rows. Returns
    /// whether the table was replaced.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory); then nothing was changed.
    pub(super) fn step_rebuild(&self, writer: &mut Writer) -> Result<bool> {
        if writer.rebuild.is_some() && self.ttl.is_some() {
            writer
                .pending
                .try_reserve(STEP_BUCKETS * BUCKET_SLOTS)
                .map_err(|_| no_memory("the list of expired rows"))?;
        }
        let Some(mut rebuild) = writer.rebuild.take() else {
            return Ok(false);
        };
        let now = self.now_if_ttl();
        let old = self.writers_table(writer);
        let end = (rebuild.copied + STEP_BUCKETS).min(old.buckets());
        let mut expired = 0;
        for (slot, key, row) in old.entries_in(rebuild.copied..end) {
            if self.expired(&self.slab.row(row), now) {
                old.remove(slot);
                if let Some(eviction) = &mut writer.eviction {
                    eviction.removed(row);
                }
                writer.pending.push(row);
                expired += 1;
            } else {
                rebuild.put(key, self.hash(key), row);
            }
        }
        writer.live -= expired;
        self.counters.expired_removed.add(expired as u64);
        rebuild.copied = end;
        let replaced = end == old.buckets();
        if replaced {
            writer.used = rebuild.used;
            let old = self.replace_table(writer, rebuild.table);
            self.retire_table(writer, old);
        } else {
            writer.rebuild = Some(rebuild);
        }
        self.flush_if_long(writer);
        Ok(replaced)
    }
}
