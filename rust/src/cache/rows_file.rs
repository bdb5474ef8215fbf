//! Rows in a file, in memory format: written from a snapshot, and mapped to be served without reading.

use super::clock;
use super::hash;
use super::reclaim::Epochs;
use super::slab::Slab;
use super::snapshot::Snapshot;
use super::store::Store;
use super::table::{MAX_ROWS, slots_for};
use super::{CacheConfig, EmbeddingCache, MIN_SLOTS, RowLayout, Sizes};
use crate::buffer::Pages;
use crate::error::{Error, Result};
use crate::mapping::Mapping;
use crate::sync::plain::{OnceLock, Ordering};
use std::fs::File;
use std::io::{self, Write};

/// Block size of the checksums in bytes.
pub const BLOCK_BYTES: usize = 4 << 20;

/// Returns the XXH3-64 checksum of each [`BLOCK_BYTES`] bytes, and of the rest.
#[must_use]
pub fn block_checksums(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(BLOCK_BYTES).map(hash::key_of).collect()
}

impl EmbeddingCache {
    /// Makes a cache whose first rows lie in a file: the row of `keys[i]` at `offset + i *
    /// layout.row_bytes()`. Nothing is read here. The rows are pages of the system's page cache, shared
    /// with other processes that map the file. Later writes go to memory of this process, never to the
    /// file.
    ///
    /// # Safety
    /// While the cache lives, nobody writes to these rows of the file or truncates it (see [`Mapping::new`]).
    /// Deleting it, or renaming another file over it, is harmless.
    ///
    /// # Errors
    /// [`Error::Config`] if `config` bounds the cache, since rows of a file cannot be evicted;
    /// [`Error::Request`] if a key is repeated, or the file does not hold that many rows there;
    /// [`Error::File`] and [`Error::OutOfMemory`] from the system.
    pub unsafe fn over_file(
        layout: RowLayout,
        config: CacheConfig,
        file: &File,
        offset: u64,
        keys: &[u64],
    ) -> Result<Self> {
        if config.capacity_bytes.is_some() || config.ttl.is_some() {
            return Err(Error::Config(
                "a cache over a file can have neither capacity_bytes nor ttl; leave them out"
                    .into(),
            ));
        }
        if keys.len() > MAX_ROWS {
            return Err(Error::Config(format!(
                "{} rows; a cache holds at most {MAX_ROWS}",
                keys.len()
            )));
        }
        let pages = Pages {
            huge: config.huge_pages,
            prefault: config.prefault,
        };
        let expected = keys.len().max(config.initial_keys);
        let sizes = Sizes {
            bound: None,
            slots: slots_for(expected).max(MIN_SLOTS),
            rows: keys.len(),
            pages,
            hash_seed: config.hash_seed(),
        };
        let too_many = || Error::OutOfMemory {
            what: "the rows of a file".into(),
            bytes: usize::MAX,
        };
        let filled = keys.len().checked_mul(layout.row_bytes());
        let filled = filled.ok_or_else(too_many)?;
        let mut slab = Slab::new(&layout, MAX_ROWS, keys.len(), false, pages);
        let room = slab.first_bytes().ok_or_else(too_many)?;
        // SAFETY: by the caller's contract; the slab, and so the cache, owns the mapping.
        let mapping = unsafe { Mapping::new(file, offset, filled, room, config.prefault) }?;
        slab.back_with(mapping);
        let ttl = config.ttl.map(clock::ticks_of);
        let store = Store::with_slab(slab, layout, sizes, config.clock, ttl, Epochs::new())?;
        store.adopt(keys)?;
        store.gauges.mapped_bytes.store(filled, Ordering::Relaxed);
        Ok(Self {
            store,
            handle: OnceLock::new(),
        })
    }
}

impl Snapshot<'_> {
    /// Writes whole rows, one after the other; returns their [`block_checksums`].
    ///
    /// # Errors
    /// Any error of `file`.
    pub fn write(&self, file: &mut impl Write) -> io::Result<Vec<u64>> {
        let mut checksums = Vec::new();
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        for row in self.rows() {
            let mut rest = row.bytes;
            while !rest.is_empty() {
                let part;
                (part, rest) = rest.split_at(rest.len().min(BLOCK_BYTES - block.len()));
                block.extend_from_slice(part);
                if block.len() == BLOCK_BYTES {
                    checksums.push(hash::key_of(&block));
                    file.write_all(&block)?;
                    block.clear();
                }
            }
        }
        if !block.is_empty() {
            checksums.push(hash::key_of(&block));
            file.write_all(&block)?;
        }
        Ok(checksums)
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::super::DType;
    use super::*;
    use crate::mapping::PAGE;
    use std::io::{Read, Seek, SeekFrom};

    fn layout(bytes: usize) -> RowLayout {
        RowLayout::new([("x", DType::UInt8, vec![bytes])]).unwrap()
    }

    fn values(key: u64, bytes: usize) -> Vec<u8> {
        (0..bytes as u64)
            .map(|i| (key.wrapping_mul(31) + i) as u8)
            .collect()
    }

    fn file() -> File {
        use crate::sync::plain::AtomicU64;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut path = std::env::temp_dir();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        path.push(format!("aif-rows-{}-{number}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        std::fs::remove_file(&path).unwrap();
        file.unwrap()
    }

    fn written(keys: &[u64], bytes: usize) -> (File, Vec<u64>, Vec<u64>) {
        let cache = EmbeddingCache::new(layout(bytes), CacheConfig::default()).unwrap();
        for &key in keys {
            cache.upsert(&[key], &[&values(key, bytes)]).unwrap();
        }
        let mut snapshot = cache.snapshot().unwrap();
        snapshot.sort_by_key();
        let sorted = snapshot.rows().map(|row| row.key).collect();
        let mut file = file();
        file.seek(SeekFrom::Start(PAGE as u64)).unwrap();
        let checksums = snapshot.write(&mut file).unwrap();
        (file, sorted, checksums)
    }

    fn over_rows(
        layout: RowLayout,
        config: CacheConfig,
        file: &File,
        keys: &[u64],
    ) -> Result<EmbeddingCache> {
        // SAFETY: the file has no name, and the test only reads it from now on.
        unsafe { EmbeddingCache::over_file(layout, config, file, PAGE as u64, keys) }
    }

    #[test]
    fn what_a_snapshot_wrote_is_served_where_it_lies_and_changes_stay_out_of_the_file() {
        for (rows, bytes) in [(0, 100), (1, 1), (1000, 100), (5000, 1100), (20_000, 20)] {
            let keys: Vec<u64> = (0..rows).map(|i| i * 7919 % 100_003 * 3).collect();
            let (mut file, sorted, checksums) = written(&keys, bytes);
            let mut before = Vec::new();
            file.seek(SeekFrom::Start(PAGE as u64)).unwrap();
            file.read_to_end(&mut before).unwrap();
            assert_eq!(block_checksums(&before), checksums);
            let cache = over_rows(layout(bytes), CacheConfig::default(), &file, &sorted).unwrap();
            assert_eq!(cache.len(), sorted.len());
            assert_eq!(
                cache.memory_usage().mapped_bytes,
                (sorted.len() * cache.layout().row_bytes()) as u64
            );
            let expect = |keys: &[u64], of: &dyn Fn(u64) -> Option<Vec<u8>>| {
                cache.read_rows(keys, |i, row| {
                    assert_eq!(row.map(|row| row[..bytes].to_vec()), of(keys[i]));
                });
            };
            expect(&sorted, &|key| Some(values(key, bytes)));
            expect(&[1, 2, u64::MAX], &|_| None);
            // Every other row is deleted or replaced, and twice as many are added, so that rows of the file
            // are reused.
            for _ in 0..3 {
                for (i, &key) in sorted.iter().enumerate() {
                    match i % 4 {
                        0 => drop(cache.delete(&[key]).unwrap()),
                        1 => cache.upsert(&[key], &[&values(key + 9, bytes)]).unwrap(),
                        _ => cache
                            .upsert(&[key + 1], &[&values(key + 1, bytes)])
                            .unwrap(),
                    }
                }
            }
            for (i, &key) in sorted.iter().enumerate() {
                match i % 4 {
                    0 => expect(&[key], &|_| None),
                    1 => expect(&[key], &|key| Some(values(key + 9, bytes))),
                    _ => expect(&[key, key + 1], &|key| Some(values(key, bytes))),
                }
            }
            let mut after = Vec::new();
            file.seek(SeekFrom::Start(PAGE as u64)).unwrap();
            file.read_to_end(&mut after).unwrap();
            assert!(before == after, "the file has changed");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (file, sorted, _) = written(&[5, 6, 7], 64);
        let over = |config, keys: &[u64]| {
            over_rows(layout(64), config, &file, keys)
                .err()
                .map(|error| error.to_string())
        };
        let default = CacheConfig::default;
        assert_eq!(over(default(), &sorted), None);
        let text = over(default(), &[5, 6, 7, 8]).unwrap();
        assert!(text.contains("cannot be mapped"), "{text}");
        let text = over(default(), &[5, 6, 5]).unwrap();
        assert!(text.contains("key 5 is repeated"), "{text}");
        let bounded = CacheConfig {
            capacity_bytes: Some(1 << 20),
            ..default()
        };
        assert!(over(bounded, &sorted).unwrap().contains("capacity_bytes"));
    }
}
