//! The hash table from keys to rows: buckets of one cache line, one writer, any number of readers.
//!
//! A bucket is five slots of 12 bytes, a key and a 32-bit row number each: so a look-up costs one line of
//! memory in most cases, and a key 17.1 bytes at 75 % load. Keys that find their bucket full go to the next.
//!
//! # What readers may meet
//! A slot belongs to the first key that takes it for as long as the table lives: deleted keys leave their
//! slot behind, and the table is rebuilt when too many have. So the row number is the only part of a slot
//! that ever changes, one word, and whoever has read a slot's key and then its row number has a row of that
//! key: no reader can see half of a change, or one key's row under another. Hence each key is an atomic
//! register, as Cliff Click's *lock-free wait-free hash table* (2007) has it.
//!
//! Slots of a bucket are taken in order, so a bucket whose last slot is `EMPTY` ends a probe. The writer
//! leaves at least a seventh of the slots `EMPTY`, so probes end.

use crate::buffer::{Pages, ZeroedArray};
use crate::error::Result;
use crate::sync::{AtomicU32, AtomicU64, Ordering, Zeroable};
use std::ops::ControlFlow;

/// A slot without a key.
const EMPTY: u32 = 0;
/// A slot whose key has no row.
const GONE: u32 = 1;
/// Row numbers are stored after the two special values.
const FIRST_ROW: u32 = 2;

/// Rows that 32 bits can tell apart from the special slots.
pub(super) const MAX_ROWS: usize = (u32::MAX - FIRST_ROW) as usize;

/// Slots of a bucket: as many as fit a cache line; two under loom, so that two keys fill one.
const BUCKET_SLOTS: usize = if cfg!(aif_loom) { 2 } else { 5 };

/// Slots are used up to this share, those of deleted keys included.
const MAX_LOAD: (usize, usize) = (6, 7);

/// Slots that hold `keys` keys at 75 % load, where a key costs 17.1 bytes.
pub(super) fn slots_for(keys: usize) -> usize {
    (keys.saturating_mul(4) / 3 + 8).min(MAX_ROWS * 2)
}

/// Bytes that the table takes for this many slots.
pub(super) const fn bytes_for(slots: usize) -> usize {
    slots.div_ceil(BUCKET_SLOTS) * size_of::<Bucket>()
}

/// One cache line of slots. The key of a slot is written before its row number first is, and never again.
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
    /// The slot of `key`, if the bucket has one with a row number or had one.
    #[inline]
    fn slot_of(&self, key: u64) -> Option<usize> {
        // All are compared, because which one it is cannot be predicted.
        let mut equal = 0u32;
        for (i, slot_key) in self.keys.iter().enumerate() {
            equal |= u32::from(slot_key.load(Ordering::Relaxed) == key) << i;
        }
        (equal != 0).then(|| equal.trailing_zeros() as usize)
    }

    /// What the bucket says about key 0, which slots without a key have too: its row or that it has none, or
    /// to look further.
    #[cold]
    fn row_of_zero(&self) -> ControlFlow<Option<u32>> {
        for (key, row) in self.keys.iter().zip(&self.rows) {
            // Acquire: whoever sees a row number sees the slot's key.
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
    buckets: ZeroedArray<Bucket>,
}

impl Table {
    /// A table of at least `slots` empty slots, of which six in seven may be used.
    pub(super) fn new(slots: usize, pages: Pages) -> Result<Self> {
        let buckets = slots.div_ceil(BUCKET_SLOTS).max(1);
        Ok(Self {
            buckets: ZeroedArray::new(buckets, pages, "the cache's hash table")?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    /// How many slots may be used, those of deleted keys included, before the table must be rebuilt.
    pub(super) fn max_used(&self) -> usize {
        self.buckets.len() * BUCKET_SLOTS * MAX_LOAD.0 / MAX_LOAD.1
    }

    /// The upper end of the hash scales to a bucket, so that a table may have any length, and keys lie in
    /// the order of their hashes: a rebuild reads and writes from one end to the other.
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

    /// What a probe for `hash` reads first, for prefetching.
    #[inline]
    pub(super) fn first_line(&self, hash: u64) -> *const u8 {
        (&raw const self.buckets[self.start(hash)]).cast()
    }

    /// The row of `key`, whose hash is `hash`.
    #[inline]
    pub(super) fn find(&self, key: u64, hash: u64) -> Option<u32> {
        let mut number = self.start(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[number];
            if let Some(i) = bucket.slot_of(key) {
                // Acquire pairs with `publish`: whoever sees the row number sees the row's bytes, and the
                // slot's key.
                let row = bucket.rows[i].load(Ordering::Acquire);
                // A slot without a key has key 0 until it gets one. Now that there is a row number, the
                // key is the slot's own.
                if row >= FIRST_ROW && bucket.keys[i].load(Ordering::Relaxed) == key {
                    return Some(row - FIRST_ROW);
                }
                if key != 0 {
                    return None;
                }
                // Only for key 0: the slot was another's in the making, or its own without a row.
                if let ControlFlow::Break(row) = bucket.row_of_zero() {
                    return row;
                }
            }
            // Relaxed: nothing is read by way of this word. A key in a later bucket was published when
            // this one was full, and whoever is to see that key has that in its past.
            if !bucket.is_full(Ordering::Relaxed) {
                return None;
            }
            number = self.after(number);
        }
        None
    }

    /// Writer only: where the key is or would go.
    pub(super) fn place(&self, key: u64, hash: u64) -> Place {
        let mut number = self.start(hash);
        loop {
            // Relaxed throughout: only this thread stores to slots.
            let bucket = &self.buckets[number];
            for i in 0..BUCKET_SLOTS {
                let slot = number * BUCKET_SLOTS + i;
                let row = bucket.rows[i].load(Ordering::Relaxed);
                if row == EMPTY {
                    return Place::Absent { slot };
                }
                if bucket.keys[i].load(Ordering::Relaxed) == key {
                    return if row == GONE {
                        Place::Absent { slot }
                    } else {
                        Place::Found {
                            slot,
                            row: row - FIRST_ROW,
                        }
                    };
                }
            }
            number = self.after(number);
        }
    }

    /// Writer only: makes `row` what readers find for `key` in the slot that [`place`](Self::place) gave.
    /// Returns whether an `EMPTY` slot was used.
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

    /// Writer only: takes a row out; the slot stays its key's.
    pub(super) fn take_out(&self, slot: usize) {
        let (bucket, i) = (&self.buckets[slot / BUCKET_SLOTS], slot % BUCKET_SLOTS);
        // Relaxed: it publishes nothing. That the row is not reused while a reader holds it is the
        // reclaimer's business.
        bucket.rows[i].store(GONE, Ordering::Relaxed);
    }

    /// The keys that have a row, with their rows, in the order of the table. Beside a writer: those that
    /// stay throughout, and any of the others.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.buckets.iter().flat_map(|bucket| {
            (0..BUCKET_SLOTS).filter_map(|i| {
                let row = bucket.rows[i].load(Ordering::Acquire);
                (row >= FIRST_ROW)
                    .then(|| (bucket.keys[i].load(Ordering::Relaxed), row - FIRST_ROW))
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

    /// Puts a key in as if its hash were `hash`.
    fn put(table: &Table, key: u64, hash: u64, row: u32) -> bool {
        match table.place(key, hash) {
            Place::Found { slot, .. } | Place::Absent { slot } => table.publish(slot, key, row),
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
            let Place::Found { slot, .. } = table.place(key, 0) else {
                panic!("key {key} has a row")
            };
            table.take_out(slot);
            assert_eq!(table.find(key, 0), None);
            assert_eq!(table.place(key, 0), Place::Absent { slot });
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
