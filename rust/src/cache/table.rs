//! Hash table from keys to rows: buckets of one cache line, one writer, any number of readers.
//!
//! A bucket holds five slots of 12 bytes, each a key and a 32-bit row number: a look-up costs one cache
//! line in most cases, and a key 17.1 bytes at 75 % load. A key whose bucket is full goes to the next
//! bucket.
//!
//! # What readers may meet
//! A slot belongs to the first key that takes it for the lifetime of the table: deleted keys leave
//! tombstones, and the table is rebuilt when there are too many. So the row number is the only word of a
//! slot that ever changes, and a reader that has read a slot's key and then its row number has a row of
//! that key: no reader sees half of a change, or one key's row under another. Hence each key is an atomic
//! register, as in Cliff Click's *lock-free wait-free hash table* (2007).
//!
//! Slots of a bucket are taken in order, so a bucket whose last slot is `EMPTY` ends a probe. The writer
//! leaves at least a seventh of the slots `EMPTY`, so probes end.

use crate::buffer::{Pages, ZeroedArray};
use crate::error::Result;
use crate::sync::{AtomicU32, AtomicU64, Ordering, Zeroable};
use std::ops::{ControlFlow, Range};

/// Slot without a key.
const EMPTY: u32 = 0;
/// Slot whose key has no row.
const TOMBSTONE: u32 = 1;
/// Offset of row numbers, after the two special values.
const FIRST_ROW: u32 = 2;

/// Maximum number of rows that 32 bits distinguish from the special slots.
pub(super) const MAX_ROWS: usize = (u32::MAX - FIRST_ROW) as usize;

/// Slots of a bucket: as many as fit a cache line; two under loom, so that two keys fill one.
pub(super) const BUCKET_SLOTS: usize = if cfg!(aif_loom) { 2 } else { 5 };

/// Maximum share of used slots, tombstones included.
const MAX_LOAD: (usize, usize) = (6, 7);

/// Returns the number of slots that hold `keys` keys at 75 % load, where a key costs 17.1 bytes.
pub(super) fn slots_for(keys: usize) -> usize {
    (keys.saturating_mul(4) / 3 + 8).min(MAX_ROWS * 2)
}

/// Returns the bytes of a table of this many slots.
pub(super) const fn bytes_for(slots: usize) -> usize {
    slots.div_ceil(BUCKET_SLOTS) * size_of::<Bucket>()
}

/// Cache line of slots. The key of a slot is written before its first row number, and never again.
#[repr(align(64))]
#[derive(Debug)]
struct Bucket {
    keys: [AtomicU64; BUCKET_SLOTS],
    rows: [AtomicU32; BUCKET_SLOTS],
}

const _: () = assert!(cfg!(aif_loom) || size_of::<Bucket>() == 64);

// SAFETY: atomics of which each is zero at zero bytes, and padding.
unsafe impl Zeroable for Bucket {
    fn zero() -> Self {
        Self {
            keys: std::array::from_fn(|_| AtomicU64::new(0)),
            rows: std::array::from_fn(|_| AtomicU32::new(EMPTY)),
        }
    }
}

impl Bucket {
    /// Returns the slot of `key`, if the bucket has one that is or was in use.
    #[inline]
    fn slot_of(&self, key: u64) -> Option<usize> {
        // All are compared, because the position cannot be predicted.
        let mut equal = 0u32;
        for (i, slot_key) in self.keys.iter().enumerate() {
            equal |= u32::from(slot_key.load(Ordering::Relaxed) == key) << i;
        }
        (equal != 0).then(|| equal.trailing_zeros() as usize)
    }

    /// Looks up key 0, which slots without a key also hold: breaks with its row or its absence, or
    /// continues with the next bucket.
    #[cold]
    fn row_of_zero(&self) -> ControlFlow<Option<u32>> {
        for (key, row) in self.keys.iter().zip(&self.rows) {
            // Acquire: a reader that sees a row number sees the slot's key.
            let row = row.load(Ordering::Acquire);
            if row == EMPTY {
                return ControlFlow::Break(None);
            }
            if key.load(Ordering::Relaxed) == 0 {
                return ControlFlow::Break(row.checked_sub(FIRST_ROW));
            }
        }
        ControlFlow::Continue(())
    }

    #[inline]
    fn is_full(&self, order: Ordering) -> bool {
        self.rows[BUCKET_SLOTS - 1].load(order) != EMPTY
    }
}

/// Location of a key in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// Slot and row of the key.
    Found { slot: usize, row: u32 },
    /// The key is absent and would take this slot.
    Absent { slot: usize },
}

/// Hash table. Methods that change it require the writer's lock.
#[derive(Debug)]
pub(super) struct Table {
    buckets: ZeroedArray<Bucket>,
}

impl Table {
    /// Makes a table of at least `slots` empty slots, of which six in seven may be used.
    pub(super) fn new(slots: usize, pages: Pages) -> Result<Self> {
        let buckets = slots.div_ceil(BUCKET_SLOTS).max(1);
        Ok(Self {
            buckets: ZeroedArray::new(buckets, pages, "the cache's hash table")?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    pub(super) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Returns the number of slots that may be used, tombstones included, before the table must be rebuilt.
    pub(super) fn max_used(&self) -> usize {
        self.buckets.len() * BUCKET_SLOTS * MAX_LOAD.0 / MAX_LOAD.1
    }

    /// Maps the upper bits of the hash to a bucket, so that a table may have any length and keys are stored
    /// in the order of their hashes: a rebuild reads and writes sequentially.
    #[inline]
    fn start(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }

    #[inline]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() {
            0
        } else {
            bucket + 1
        }
    }

    /// Returns the address that a probe for `hash` reads first, for prefetching.
    #[inline]
    pub(super) fn first_line(&self, hash: u64) -> *const u8 {
        (&raw const self.buckets[self.start(hash)]).cast()
    }

    /// Returns the row of `key`, whose hash is `hash`.
    #[inline]
    pub(super) fn find(&self, key: u64, hash: u64) -> Option<u32> {
        let mut number = self.start(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[number];
            if let Some(i) = bucket.slot_of(key) {
                // Acquire pairs with `publish`: a reader that sees the row number sees the row's bytes and
                // the slot's key.
                let row = bucket.rows[i].load(Ordering::Acquire);
                // A slot without a key holds key 0. Since there is a row number, the key is the slot's own.
                if row >= FIRST_ROW && bucket.keys[i].load(Ordering::Relaxed) == key {
                    return Some(row - FIRST_ROW);
                }
                if key != 0 {
                    return None;
                }
                // Only for key 0: the slot was being taken by another key, or is its own without a row.
                if let ControlFlow::Break(row) = bucket.row_of_zero() {
                    return row;
                }
            }
            // Relaxed: nothing is read through this word. A key in a later bucket was published when this
            // bucket was full, and that happens before any read that must see the key.
            if !bucket.is_full(Ordering::Relaxed) {
                return None;
            }
            number = self.after(number);
        }
        None
    }

    /// Locates the key, or the slot that it would take. Writer only.
    pub(super) fn locate(&self, key: u64, hash: u64) -> Location {
        let mut number = self.start(hash);
        loop {
            // Relaxed throughout: only this thread stores to slots.
            let bucket = &self.buckets[number];
            for i in 0..BUCKET_SLOTS {
                let slot = number * BUCKET_SLOTS + i;
                let row = bucket.rows[i].load(Ordering::Relaxed);
                if row == EMPTY {
                    return Location::Absent { slot };
                }
                if bucket.keys[i].load(Ordering::Relaxed) == key {
                    return if row == TOMBSTONE {
                        Location::Absent { slot }
                    } else {
                        Location::Found {
                            slot,
                            row: row - FIRST_ROW,
                        }
                    };
                }
            }
            number = self.after(number);
        }
    }

    /// Publishes `row` under `key` in the slot returned by [`locate`](Self::locate). Returns whether an
    /// `EMPTY` slot was used. Writer only.
    pub(super) fn publish(&self, slot: usize, key: u64, row: u32) -> bool {
        let (bucket, i) = (&self.buckets[slot / BUCKET_SLOTS], slot % BUCKET_SLOTS);
        let fresh = bucket.rows[i].load(Ordering::Relaxed) == EMPTY;
        if fresh {
            bucket.keys[i].store(key, Ordering::Relaxed);
        }
        // Release: the slot's key, and the row's bytes and stamp, were written before.
        bucket.rows[i].store(row + FIRST_ROW, Ordering::Release);
        fresh
    }

    /// Removes a row and leaves a tombstone. Writer only.
    pub(super) fn remove(&self, slot: usize) {
        let (bucket, i) = (&self.buckets[slot / BUCKET_SLOTS], slot % BUCKET_SLOTS);
        // Relaxed: it publishes nothing. The reclaimer ensures that the row is not reused while a reader
        // holds it.
        bucket.rows[i].store(TOMBSTONE, Ordering::Relaxed);
    }

    /// Returns the keys that have a row, with their rows, in the order of the table. Concurrent with a
    /// writer: those that stay throughout, and any of the others.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.entries_in(0..self.buckets.len())
            .map(|(_, key, row)| (key, row))
    }

    /// Returns slot, key and row of each key that has a row in these buckets, like
    /// [`entries`](Self::entries).
    pub(super) fn entries_in(
        &self,
        buckets: Range<usize>,
    ) -> impl Iterator<Item = (usize, u64, u32)> + '_ {
        buckets.flat_map(|number| {
            let bucket = &self.buckets[number];
            (0..BUCKET_SLOTS).filter_map(move |i| {
                let row = bucket.rows[i].load(Ordering::Acquire);
                (row >= FIRST_ROW).then(|| {
                    let key = bucket.keys[i].load(Ordering::Relaxed);
                    (number * BUCKET_SLOTS + i, key, row - FIRST_ROW)
                })
            })
        })
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;

    fn table(slots: usize) -> Table {
        Table::new(slots, Pages::default()).unwrap()
    }

    /// Inserts a key as if its hash were `hash`.
    fn put(table: &Table, key: u64, hash: u64, row: u32) -> bool {
        match table.locate(key, hash) {
            Location::Found { slot, .. } | Location::Absent { slot } => {
                table.publish(slot, key, row)
            }
        }
    }

    #[test]
    fn keys_that_share_a_start_fill_the_next_buckets_and_go_round_the_end() {
        let table = table(15);
        let last = u64::MAX;
        for key in 0..12 {
            assert!(put(&table, key, last, key as u32 + 100));
        }
        for key in 0..12 {
            assert_eq!(table.find(key, last), Some(key as u32 + 100));
        }
        assert_eq!(table.find(12, last), None);
        let mut entries: Vec<_> = table.entries().collect();
        entries.sort_unstable();
        assert!(entries.iter().map(|&(key, _)| key).eq(0..12));
    }

    #[test]
    fn a_slot_stays_its_keys() {
        let table = table(10);
        for key in [5, 0, 7] {
            assert!(put(&table, key, 0, key as u32));
        }
        for key in [0, 5] {
            let Location::Found { slot, .. } = table.locate(key, 0) else {
                panic!("key {key} has a row")
            };
            table.remove(slot);
            assert_eq!(table.find(key, 0), None);
            assert_eq!(table.locate(key, 0), Location::Absent { slot });
        }
        assert_eq!(table.find(7, 0), Some(7));
        assert!(put(&table, 9, 0, 9), "a new key takes a new slot");
        assert!(!put(&table, 0, 0, 1), "and an old one its own");
        assert_eq!((table.find(0, 0), table.find(9, 0)), (Some(1), Some(9)));
    }

    #[test]
    fn key_0_is_not_taken_for_a_slot_without_a_key() {
        let table = table(10);
        assert_eq!(table.find(0, 0), None);
        assert!(put(&table, 3, 0, 3));
        assert_eq!(table.find(0, 0), None);
        for key in 4..9 {
            put(&table, key, 0, key as u32);
        }
        assert_eq!(table.find(0, 0), None, "past a full bucket");
        put(&table, 0, 0, 0);
        assert_eq!(table.find(0, 0), Some(0));
    }

    #[test]
    fn a_full_load_leaves_a_bucket_that_ends_probes() {
        for slots in [1, 5, 6, 100, 1001] {
            let table = table(slots);
            assert!(table.max_used() < table.buckets.len() * BUCKET_SLOTS);
            assert!(table.max_used() > 0);
            assert_eq!(table.bytes(), bytes_for(slots));
        }
        assert!(Table::new(usize::MAX / 100, Pages::default()).is_err());
    }
}
