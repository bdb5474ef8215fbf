//! The hash table from keys to rows: open addressing over 8-byte slots, one writer, any number of readers.
//!
//! A slot is one atomic word: 32 bits of the key's hash (the tag) above a 32-bit row number. The key
//! itself is not in the slot but beside the row, where [`find`](Table::find) has it checked: so a slot
//! changes from one row to another, or from one key to another, in one store that no reader can see
//! half of, and a key costs 8 bytes of table instead of 16.
//!
//! # What readers may meet
//! *Update*: the slot goes from the old row to the new one; a reader gets either. *Delete, then another
//! key in the same slot*: a reader after the first key either still sees its old row (which its guard
//! keeps intact) or a row whose key differs, and probes on; it misses a key that was deleted while it
//! looked, and nothing else. *Delete and insert of the same key into an earlier slot*: a reader past
//! that slot misses the key; it was absent for a moment during the look-up.
//!
//! A slot that was never used, or beyond which nobody probes, is `EMPTY` and ends a probe; one in the
//! middle of a run is `GONE` and does not. The writer keeps at least a quarter of the slots `EMPTY`,
//! so probes end.

use crate::buffer::ZeroedArray;
use crate::error::Result;
use crate::sync::{AtomicU64, Ordering};

const EMPTY: u64 = 0;
const GONE: u64 = 1;
/// Row numbers are stored after the two special values.
const FIRST_ROW: u64 = 2;

/// Rows that 32 bits can tell apart from the special slots.
pub(super) const MAX_ROWS: usize = (u32::MAX as u64 - FIRST_ROW) as usize;

/// Slots are used up to this share, deleted ones included.
const MAX_LOAD: (usize, usize) = (3, 4);

/// Slots that hold `keys` keys at 70 % load, where probes are short and a key costs 11.4 bytes.
pub(super) fn slots_for(keys: usize) -> usize {
    (keys.saturating_mul(10) / 7 + 8).min(MAX_ROWS * 2)
}

/// Where a key is, or where it would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The key's slot and row.
    Found { slot: usize, row: u32 },
    /// The key is absent; it would take this slot.
    Absent { slot: usize },
}

/// The table. Methods that change it are for the one thread that holds the writer's lock.
#[derive(Debug)]
pub(super) struct Table {
    slots: ZeroedArray<AtomicU64>,
}

impl Table {
    /// A table of `slots` empty slots, of which three quarters may be used.
    pub(super) fn new(slots: usize) -> Result<Self> {
        Ok(Self {
            slots: ZeroedArray::new(slots.max(4), "the cache's hash table")?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }

    /// How many slots may be used, deleted ones included, before the table must be rebuilt.
    pub(super) fn max_used(&self) -> usize {
        self.slots.len() * MAX_LOAD.0 / MAX_LOAD.1
    }

    /// The upper end of the hash scales to a slot, so that a table may have any length.
    #[inline]
    fn start(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    #[inline]
    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() {
            0
        } else {
            slot + 1
        }
    }

    /// Where a probe for `hash` starts, for prefetching.
    #[inline]
    pub(super) fn first_slot(&self, hash: u64) -> *const AtomicU64 {
        &raw const self.slots[self.start(hash)]
    }

    /// The first row whose slot carries the tag of `hash` and which `is_it` confirms.
    ///
    /// `is_it` must compare the key kept beside the row: tags repeat, and slots are reused.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut slot = self.start(hash);
        for _ in 0..self.slots.len() {
            // Acquire pairs with `publish`: whoever sees the row number sees the row's bytes and key.
            let entry = self.slots[slot].load(Ordering::Acquire);
            if entry == EMPTY {
                return None;
            }
            if let Some(row) = row_of(entry, hash)
                && is_it(row)
            {
                return Some(row);
            }
            slot = self.after(slot);
        }
        None
    }

    /// Writer only: where the key is or would go.
    pub(super) fn place(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Place {
        let mut slot = self.start(hash);
        let mut reusable = None;
        loop {
            // Relaxed: only this thread stores to slots.
            let entry = self.slots[slot].load(Ordering::Relaxed);
            match entry {
                EMPTY => {
                    return Place::Absent {
                        slot: reusable.unwrap_or(slot),
                    };
                }
                GONE => reusable = reusable.or(Some(slot)),
                _ => {
                    if let Some(row) = row_of(entry, hash)
                        && is_it(row)
                    {
                        return Place::Found { slot, row };
                    }
                }
            }
            slot = self.after(slot);
        }
    }

    /// Writer only: makes `row` what readers of this slot see. Returns whether an `EMPTY` slot was used.
    pub(super) fn publish(&self, slot: usize, hash: u64, row: u32) -> bool {
        let entry = (hash << 32) | (u64::from(row) + FIRST_ROW);
        let fresh = self.slots[slot].load(Ordering::Relaxed) == EMPTY;
        // Release: the row's bytes, key and stamp were written before.
        self.slots[slot].store(entry, Ordering::Release);
        fresh
    }

    /// Writer only: takes a row out. Returns how many slots became `EMPTY` by that.
    ///
    /// A run that ends here needs no marker: nobody stands behind an `EMPTY` slot, so this slot and
    /// the `GONE` ones before it become `EMPTY` too. A reader beyond them goes on to an `EMPTY` slot
    /// as before.
    pub(super) fn take_out(&self, slot: usize) -> usize {
        // Relaxed loads: only this thread stores. Relaxed stores: they publish nothing; that the row is
        // not reused while a reader holds it is the reclaimer's business.
        if self.slots[self.after(slot)].load(Ordering::Relaxed) != EMPTY {
            self.slots[slot].store(GONE, Ordering::Relaxed);
            return 0;
        }
        self.slots[slot].store(EMPTY, Ordering::Relaxed);
        let mut freed = 1;
        let mut before = slot;
        loop {
            before = if before == 0 {
                self.slots.len() - 1
            } else {
                before - 1
            };
            if self.slots[before].load(Ordering::Relaxed) != GONE {
                return freed;
            }
            self.slots[before].store(EMPTY, Ordering::Relaxed);
            freed += 1;
        }
    }

    /// The rows in the table. Under concurrent change: those that stay throughout, and any of the others.
    pub(super) fn rows(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter_map(|slot| {
            let entry = slot.load(Ordering::Acquire) & u64::from(u32::MAX);
            (entry >= FIRST_ROW).then(|| (entry - FIRST_ROW) as u32)
        })
    }
}

/// The row of a slot whose tag is that of `hash`.
#[inline]
fn row_of(entry: u64, hash: u64) -> Option<u32> {
    let row = entry & u64::from(u32::MAX);
    (entry >> 32 == hash & u64::from(u32::MAX) && row >= FIRST_ROW)
        .then(|| (row - FIRST_ROW) as u32)
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;

    /// A hash that starts at slot 0 of any table, with the given tag.
    fn colliding(tag: u32) -> u64 {
        u64::from(tag)
    }

    #[test]
    fn equal_tags_are_told_apart_by_the_check() {
        let table = Table::new(16).unwrap();
        for row in 0..4 {
            let Place::Absent { slot } = table.place(colliding(9), |_| false) else {
                panic!("absent")
            };
            assert!(table.publish(slot, colliding(9), row));
        }
        assert_eq!(table.find(colliding(9), |row| row == 3), Some(3));
        assert_eq!(table.find(colliding(9), |row| row == 4), None);
        assert_eq!(table.find(colliding(8), |_| true), None);
    }

    #[test]
    fn deleted_slots_keep_runs_together_and_vanish_at_their_end() {
        let table = Table::new(16).unwrap();
        for row in 0..4 {
            assert!(table.publish(row as usize, colliding(row), row));
        }
        assert_eq!(table.take_out(1), 0);
        assert_eq!(table.take_out(2), 0);
        assert_eq!(table.find(colliding(3), |_| true), Some(3));
        assert_eq!(
            table.place(colliding(7), |_| true),
            Place::Absent { slot: 1 }
        );
        assert_eq!(
            table.take_out(3),
            3,
            "the end of the run frees the two markers before it"
        );
        assert_eq!(table.rows().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn runs_go_round_the_end_of_the_table() {
        let table = Table::new(4).unwrap();
        let last = u64::MAX << 32;
        for row in 0..3 {
            let Place::Absent { slot } = table.place(last | u64::from(row), |_| true) else {
                panic!("absent")
            };
            table.publish(slot, last | u64::from(row), row);
        }
        for row in 0..3 {
            assert_eq!(table.find(last | u64::from(row), |_| true), Some(row));
        }
    }
}
