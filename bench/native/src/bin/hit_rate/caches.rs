//! The caches that are compared, each holding a row that tells its key.

use crate::plain::Policy;
use aif_core::cache::{CacheConfig, DType, EmbeddingCache, RowLayout};
use std::num::NonZeroUsize;

/// The row of a key: a bijection, so that no other key has it.
fn row_of(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5555
}

fn check(key: u64, row: u64) {
    assert_eq!(row, row_of(key), "another row for key {key}");
}

/// The embedding cache.
pub struct Embedding(EmbeddingCache);

impl Embedding {
    /// A cache that holds `capacity` keys before it evicts.
    ///
    /// What it keeps for replaced rows comes on top: capacities are in bytes, so it is given enough of them.
    pub fn new(capacity: usize) -> Self {
        let make = |capacity_bytes| {
            let layout = RowLayout::new([("row", DType::UInt8, vec![8])]).expect("a row");
            let config = CacheConfig {
                capacity_bytes: Some(capacity_bytes),
                ..CacheConfig::default()
            };
            EmbeddingCache::new(layout, config)
        };
        let holds = |bytes| make(bytes).map_or(0, |cache| cache.stats().max_rows as usize);
        // The fewest bytes that do, by bisection.
        let (mut too_few, mut enough) = (0, (capacity + 64) * 256);
        while enough - too_few > 1 {
            let middle = usize::midpoint(too_few, enough);
            if holds(middle) < capacity {
                too_few = middle;
            } else {
                enough = middle;
            }
        }
        let cache = make(enough).expect("enough bytes");
        assert_eq!(cache.stats().max_rows as usize, capacity);
        Self(cache)
    }
}

impl Policy for Embedding {
    fn request(&mut self, key: u64) -> bool {
        let (mut row, mut found) = ([0; 8], [0]);
        let hits = self
            .0
            .gather_into(&[key], &mut [&mut row], &mut found)
            .expect("buffers that fit");
        if hits == 1 {
            check(key, u64::from_le_bytes(row));
            return true;
        }
        self.0
            .upsert(&[key], &[&row_of(key).to_le_bytes()])
            .expect("room for a row");
        false
    }
}

/// Least recently used first.
pub struct Lru(lru::LruCache<u64, u64>);

impl Lru {
    pub fn new(capacity: usize) -> Self {
        Self(lru::LruCache::new(
            NonZeroUsize::new(capacity).expect("not empty"),
        ))
    }
}

impl Policy for Lru {
    fn request(&mut self, key: u64) -> bool {
        if let Some(&row) = self.0.get(&key) {
            check(key, row);
            return true;
        }
        self.0.put(key, row_of(key));
        false
    }
}

/// moka's default policy (`TinyLFU`), with nothing left pending between requests.
pub struct Moka(moka::sync::Cache<u64, u64, foldhash::fast::FixedState>);

impl Moka {
    pub fn new(capacity: usize) -> Self {
        Self(
            moka::sync::Cache::builder()
                .max_capacity(capacity as u64)
                .build_with_hasher(foldhash::fast::FixedState::default()),
        )
    }
}

impl Policy for Moka {
    fn request(&mut self, key: u64) -> bool {
        let row = self.0.get(&key);
        if let Some(row) = row {
            check(key, row);
        } else {
            self.0.insert(key, row_of(key));
        }
        self.0.run_pending_tasks();
        row.is_some()
    }
}
