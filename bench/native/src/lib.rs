//! What the benchmarks share: stores of rows under 64-bit keys, and the keys that are asked for.
//!
//! Every store does the same work: it owns its rows, finds each key of a batch, and copies the rows into
//! one buffer that the caller owns. Every benchmark checks that buffer before it times anything.

pub mod keys;
pub mod peers;
pub mod timing;

use keys::key_of;

/// A store of rows of one size under 64-bit keys, as the benchmarks use it.
pub trait RowStore: Send + Sync {
    /// What the tables call it.
    fn name(&self) -> &'static str;

    /// Writes one row.
    fn put(&self, key: u64, row: &[u8]);

    /// Writes the rows of `keys`, which lie one after the other in `rows`.
    fn put_all(&self, keys: &[u64], rows: &[u8]) {
        let each = rows.len() / keys.len();
        for (&key, row) in keys.iter().zip(rows.chunks_exact(each)) {
            self.put(key, row);
        }
    }

    /// Copies the rows of `keys` one after the other into `out`, zeroing the missing ones; returns how
    /// many were found.
    fn gather(&self, keys: &[u64], out: &mut [u8]) -> usize;
}

/// Writes the row that belongs to `key`: each word differs from those of other keys and places.
pub fn fill_row(key: u64, row: &mut [u8]) {
    for (place, word) in row.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_of(key, place).to_le_bytes());
    }
}

fn word_of(key: u64, place: usize) -> u64 {
    (key ^ (place as u64) << 48).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Writes the rows of the first `rows` keys.
pub fn fill(store: &dyn RowStore, rows: usize, row_bytes: usize) {
    let mut row = vec![0; row_bytes];
    for number in 0..rows {
        let key = key_of(number);
        fill_row(key, &mut row);
        store.put(key, &row);
    }
}

/// Gathers once and compares every word.
///
/// # Panics
/// If a row is missing or not its key's.
pub fn check(store: &dyn RowStore, keys: &[u64], row_bytes: usize) {
    let mut out = vec![1; keys.len() * row_bytes];
    let found = store.gather(keys, &mut out);
    assert_eq!(found, keys.len(), "{} misses rows", store.name());
    let mut expected = vec![0; row_bytes];
    for (key, row) in keys.iter().zip(out.chunks_exact(row_bytes)) {
        fill_row(*key, &mut expected);
        assert!(
            row == expected,
            "{} gives another row for key {key}",
            store.name()
        );
    }
}
