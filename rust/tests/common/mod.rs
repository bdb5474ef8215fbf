//! Rows that identify themselves in every byte, for the tests of the cache.

#![allow(dead_code, reason = "each test program uses its part of this")]

use aif_core::cache::{Column, DType, EmbeddingCache, RowLayout, RowView};
use aif_core::error::Result;

/// Mixes `x` into all 64 bits with the finaliser of `MurmurHash3`, the hash of the cache's table.
pub fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Inverse of [`mix`]: it makes keys that start at the same slot of the cache's table and look alike in it.
pub fn unmix(mut hash: u64) -> u64 {
    // A shift by more than half the width is its own inverse; the factors are inverse modulo 2^64.
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0x9cb4_b2f8_1293_37db);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0x4f74_430c_22a5_4005);
    hash ^ (hash >> 33)
}

/// Rows of one layout. The first eight bytes hold key and version; every other byte is a function of these
/// and of its offset, so that a torn row, another key's row, a misplaced row and a row reused during a read
/// are all detected.
#[derive(Clone)]
pub struct Rows {
    layout: RowLayout,
}

impl Rows {
    /// Makes rows with `tail` 16-bit elements at the end, behind columns whose sizes do not divide each
    /// other.
    pub fn new(tail: usize) -> Self {
        let layout = RowLayout::new([
            ("head", DType::UInt32, vec![2]),
            ("code", DType::UInt8, vec![5]),
            ("mid", DType::Float32, vec![2, 4]),
            ("tail", DType::BFloat16, vec![tail]),
        ]);
        Self {
            layout: layout.unwrap(),
        }
    }

    pub fn layout(&self) -> RowLayout {
        self.layout.clone()
    }

    /// Returns the bytes of a row in the cache.
    pub fn row_bytes(&self) -> usize {
        self.layout.row_bytes()
    }

    /// Appends the row of `version` of `key` to `columns`.
    fn append(&self, key: u64, version: u64, columns: &mut [Vec<u8>]) {
        let head = mix(key).wrapping_add(version);
        columns[0].extend(head.to_le_bytes());
        for (c, column) in self.layout.columns().iter().enumerate().skip(1) {
            let end = columns[c].len() + column.bytes();
            for place in 0..column.bytes().div_ceil(8) as u64 {
                columns[c].extend(
                    mix(head ^ key.rotate_left(17) ^ (c as u64) << 56 ^ place << 40).to_le_bytes(),
                );
            }
            columns[c].truncate(end);
        }
    }

    fn columns(&self, rows: &[(u64, u64)]) -> Vec<Vec<u8>> {
        let mut columns: Vec<Vec<u8>> = self
            .layout
            .columns()
            .iter()
            .map(|column| Vec::with_capacity(rows.len() * column.bytes() + 8))
            .collect();
        for &(key, version) in rows {
            self.append(key, version, &mut columns);
        }
        columns
    }

    /// Writes pairs of key and version.
    pub fn upsert(&self, cache: &EmbeddingCache, rows: &[(u64, u64)]) -> Result<()> {
        let keys: Vec<u64> = rows.iter().map(|row| row.0).collect();
        let columns = self.columns(rows);
        let slices: Vec<&[u8]> = columns.iter().map(Vec::as_slice).collect();
        cache.upsert(&keys, &slices)
    }

    /// Returns the version that the columns of a row of `key` hold.
    ///
    /// # Panics
    /// If not all bytes agree.
    fn version<'a>(&self, key: u64, column: impl Fn(usize) -> &'a [u8]) -> u64 {
        let head = u64::from_le_bytes(column(0).try_into().unwrap());
        let version = head.wrapping_sub(mix(key));
        for (c, expected) in self.columns(&[(key, version)]).iter().enumerate() {
            assert_eq!(
                column(c),
                expected,
                "key {key}, column {c}: torn, or another key's row"
            );
        }
        version
    }

    /// Returns the version of a whole row, as a snapshot shows it.
    pub fn version_of(&self, row: &RowView<'_>) -> u64 {
        let columns = self.layout.columns();
        self.version(row.key, |c| {
            &row.bytes[columns[c].offset()..][..columns[c].bytes()]
        })
    }

    /// Returns the versions of `keys`, `None` where there is no row.
    ///
    /// # Panics
    /// If a row is not one version of its key in all its bytes, or a missing row is not all zeros.
    pub fn gather(&self, cache: &EmbeddingCache, keys: &[u64]) -> Vec<Option<u64>> {
        let sizes: Vec<usize> = self.layout.columns().iter().map(Column::bytes).collect();
        let mut columns: Vec<Vec<u8>> = sizes
            .iter()
            .map(|size| vec![0xaa; size * keys.len()])
            .collect();
        let mut found = vec![9; keys.len()];
        let mut slices: Vec<&mut [u8]> = columns.iter_mut().map(Vec::as_mut_slice).collect();
        let hits = cache.gather_into(keys, &mut slices, &mut found).unwrap();
        assert_eq!(hits, found.iter().map(|&found| usize::from(found)).sum());
        let read = keys
            .iter()
            .zip(&found)
            .enumerate()
            .map(|(i, (&key, &found))| {
                let row = |c: usize| &columns[c][i * sizes[c]..][..sizes[c]];
                if found != 1 {
                    assert_eq!(found, 0, "a flag is 0 or 1");
                    let zeroed = (0..sizes.len()).all(|c| row(c).iter().all(|&byte| byte == 0));
                    assert!(zeroed, "key {key}: a missing row is zeroed");
                    return None;
                }
                Some(self.version(key, row))
            });
        read.collect()
    }
}
