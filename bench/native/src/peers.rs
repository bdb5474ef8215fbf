//! The stores that are compared: ours, the crates a user would pick instead, and a plain array.
//!
//! All peers hash with `foldhash`, which is the fastest choice that each of them takes, and hold each row in
//! one allocation; those that give out values and not references share it by `Arc`.

use crate::keys::key_of;
use crate::{RowStore, fill_row};
use aif_core::buffer::AlignedBuffer;
use aif_core::cache::{CacheConfig, DType, EmbeddingCache, RowLayout};
use foldhash::fast::FixedState;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, RwLock};

/// Names of all stores, in the order of the tables.
pub const ALL: [&str; 6] = [
    "aif",
    "dashmap",
    "moka",
    "papaya",
    "quick_cache",
    "rwlock_hashmap",
];

/// An empty store for `rows` rows.
///
/// # Panics
/// If there is no store of this name.
#[must_use]
pub fn make(name: &str, rows: usize, row_bytes: usize) -> Box<dyn RowStore> {
    let hasher = FixedState::default();
    match name {
        "aif" => Box::new(Aif::new(rows, row_bytes)),
        "dashmap" => Box::new(Dash(dashmap::DashMap::with_capacity_and_hasher(
            rows, hasher,
        ))),
        "moka" => Box::new(Moka(
            moka::sync::Cache::builder()
                .initial_capacity(rows)
                .build_with_hasher(hasher),
        )),
        "papaya" => Box::new(Papaya(
            papaya::HashMap::builder()
                .capacity(rows)
                .hasher(hasher)
                .build(),
        )),
        "quick_cache" => Box::new(Quick(quick_cache::sync::Cache::with(
            // Its shards fill unevenly; with room to spare nothing is evicted.
            rows + rows / 4,
            (rows + rows / 4) as u64,
            quick_cache::UnitWeighter,
            hasher,
            quick_cache::sync::DefaultLifecycle::default(),
        ))),
        "rwlock_hashmap" => Box::new(Locked(RwLock::new(HashMap::with_capacity_and_hasher(
            rows, hasher,
        )))),
        _ => panic!("no store is called {name:?}; there are {ALL:?}"),
    }
}

struct Aif(EmbeddingCache);

impl Aif {
    fn new(rows: usize, row_bytes: usize) -> Self {
        let layout = RowLayout::new([("row", DType::UInt8, vec![row_bytes])]).expect("a row");
        let config = CacheConfig {
            initial_keys: rows,
            ..CacheConfig::default()
        };
        Self(EmbeddingCache::new(layout, config).expect("memory for the table"))
    }
}

thread_local! {
    static FOUND: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl RowStore for Aif {
    fn name(&self) -> &'static str {
        "aif"
    }

    fn put(&self, key: u64, row: &[u8]) {
        self.0.upsert(&[key], &[row]).expect("memory for a row");
    }

    fn put_all(&self, keys: &[u64], rows: &[u8]) {
        self.0.upsert(keys, &[rows]).expect("memory for rows");
    }

    fn gather(&self, keys: &[u64], out: &mut [u8]) -> usize {
        FOUND.with_borrow_mut(|found| {
            found.resize(keys.len(), 0);
            self.0
                .gather_into(keys, &mut [out], found)
                .expect("buffers that fit")
        })
    }
}

/// Copies what `find` finds for each key, or zeros, one after the other; returns how many were found.
fn copy_each<R: Deref<Target: AsRef<[u8]>>>(
    keys: &[u64],
    out: &mut [u8],
    find: impl Fn(&u64) -> Option<R>,
) -> usize {
    let mut found = 0;
    for (key, out) in keys
        .iter()
        .zip(out.chunks_exact_mut(out.len() / keys.len()))
    {
        match find(key) {
            Some(row) => {
                out.copy_from_slice((*row).as_ref());
                found += 1;
            }
            None => out.fill(0),
        }
    }
    found
}

struct Dash(dashmap::DashMap<u64, Box<[u8]>, FixedState>);

impl RowStore for Dash {
    fn name(&self) -> &'static str {
        "dashmap"
    }

    fn put(&self, key: u64, row: &[u8]) {
        self.0.insert(key, row.into());
    }

    fn gather(&self, keys: &[u64], out: &mut [u8]) -> usize {
        copy_each(keys, out, |key| self.0.get(key))
    }
}

struct Moka(moka::sync::Cache<u64, Arc<[u8]>, FixedState>);

impl RowStore for Moka {
    fn name(&self) -> &'static str {
        "moka"
    }

    fn put(&self, key: u64, row: &[u8]) {
        self.0.insert(key, row.into());
    }

    fn gather(&self, keys: &[u64], out: &mut [u8]) -> usize {
        copy_each(keys, out, |key| self.0.get(key))
    }
}

struct Papaya(papaya::HashMap<u64, Box<[u8]>, FixedState>);

impl RowStore for Papaya {
    fn name(&self) -> &'static str {
        "papaya"
    }

    fn put(&self, key: u64, row: &[u8]) {
        self.0.pin().insert(key, row.into());
    }

    fn gather(&self, keys: &[u64], out: &mut [u8]) -> usize {
        let pinned = self.0.pin();
        copy_each(keys, out, |key| pinned.get(key).map(|row| &**row))
    }
}

struct Quick(quick_cache::sync::Cache<u64, Arc<[u8]>, quick_cache::UnitWeighter, FixedState>);

impl RowStore for Quick {
    fn name(&self) -> &'static str {
        "quick_cache"
    }

    fn put(&self, key: u64, row: &[u8]) {
        self.0.insert(key, row.into());
    }

    fn gather(&self, keys: &[u64], out: &mut [u8]) -> usize {
        copy_each(keys, out, |key| self.0.get(key))
    }
}

struct Locked(RwLock<HashMap<u64, Box<[u8]>, FixedState>>);

impl RowStore for Locked {
    fn name(&self) -> &'static str {
        "rwlock_hashmap"
    }

    fn put(&self, key: u64, row: &[u8]) {
        self.0
            .write()
            .expect("no writer panics")
            .insert(key, row.into());
    }

    fn gather(&self, keys: &[u64], out: &mut [u8]) -> usize {
        let map = self.0.read().expect("no writer panics");
        copy_each(keys, out, |key| map.get(key).map(|row| &**row))
    }
}

/// A plain array of rows, read by position as `NumPy`'s `take` does: the floor for any store by key.
///
/// Starts on a huge page and asks for huge pages, like the rows of ours and the large arrays of `NumPy`.
pub struct PlainArray {
    rows: AlignedBuffer,
    row_bytes: usize,
}

impl PlainArray {
    /// The rows of the first `rows` keys, in the order of their numbers.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn filled(rows: usize, row_bytes: usize) -> Self {
        let memory = AlignedBuffer::new(rows * row_bytes, "the plain array").expect("memory");
        // SAFETY: the buffer has this length, is zeroed, and nobody else knows it yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), memory.len()) };
        for (number, row) in bytes.chunks_exact_mut(row_bytes).enumerate() {
            fill_row(key_of(number), row);
        }
        Self {
            rows: memory,
            row_bytes,
        }
    }

    /// Copies the rows of these numbers one after the other into `out`.
    ///
    /// # Panics
    /// If a number is not below the number of rows, or `out` is too short.
    pub fn take(&self, numbers: &[usize], out: &mut [u8]) {
        // SAFETY: the buffer has this length, and nobody writes to it after `filled`.
        let rows = unsafe { std::slice::from_raw_parts(self.rows.as_ptr(), self.rows.len()) };
        for (&number, out) in numbers.iter().zip(out.chunks_exact_mut(self.row_bytes)) {
            out.copy_from_slice(&rows[number * self.row_bytes..][..self.row_bytes]);
        }
    }
}
