//! Threads against each other: every row says in all its bytes whose it is, and what went in is counted out.

use super::*;
use crate::sync::plain::{AtomicU64, Ordering};
use std::sync::Barrier;
use std::time::Instant;

/// The inverse of the version's factor in [`row`] modulo 2^64.
const INVERSE: u64 = 0xf1de_83e1_9937_733d;

/// The version that a row says it is of; every byte must say the same.
fn version_of(key: u64, found: &[Vec<u8>]) -> u64 {
    let word = u64::from_le_bytes(found[0][..8].try_into().unwrap());
    let version = word.wrapping_sub(hash::spread(key)).wrapping_mul(INVERSE);
    assert_eq!(
        found,
        row(key, version),
        "key {key}: torn, or another key's row"
    );
    version
}

/// A cache, and what each key's only writer last began and finished to write: readers that find the key
/// may not see less than was finished before they looked, nor more than was begun when they had.
struct Stress {
    cache: EmbeddingCache,
    keys: u64,
    begun: Vec<AtomicU64>,
    finished: Vec<AtomicU64>,
    barrier: Barrier,
    stop: AtomicU64,
    seen: AtomicU64,
}

const WRITERS: u64 = 2;
const READERS: u64 = 2;

impl Stress {
    fn run(config: CacheConfig, keys: u64, time: Duration) -> Self {
        let versions = || (0..keys).map(|_| AtomicU64::new(0)).collect();
        let stress = Self {
            cache: cache(config),
            keys,
            begun: versions(),
            finished: versions(),
            barrier: Barrier::new((WRITERS + READERS + 1) as usize),
            stop: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        };
        std::thread::scope(|scope| {
            for thread in 0..WRITERS {
                let stress = &stress;
                scope.spawn(move || stress.write(thread));
            }
            for thread in 0..READERS {
                let stress = &stress;
                scope.spawn(move || stress.read(thread));
            }
            stress.barrier.wait();
            std::thread::sleep(time);
            stress.stop.store(1, Ordering::Relaxed);
        });
        stress
    }

    /// Writes and deletes the keys that are this writer's.
    fn write(&self, writer: u64) {
        self.barrier.wait();
        let mut state = writer + 1;
        let mut version = 0;
        while self.stop.load(Ordering::Relaxed) == 0 {
            version += 1;
            state = hash::spread(state.wrapping_add(writer + 1));
            let own = |i| hash::spread(state + i) % (self.keys / WRITERS) * WRITERS + writer;
            let keys: Vec<u64> = (0..=state % 30).map(own).collect();
            if state.is_multiple_of(5) {
                self.cache.delete(&keys).unwrap();
                continue;
            }
            for &key in &keys {
                self.begun[key as usize].store(version, Ordering::SeqCst);
            }
            let rows: Vec<(u64, u64)> = keys.iter().map(|&key| (key, version)).collect();
            upsert(&self.cache, &rows).unwrap();
            for &key in &keys {
                self.finished[key as usize].store(version, Ordering::SeqCst);
            }
        }
    }

    /// Gathers keys of all writers, and some that nobody writes.
    fn read(&self, reader: u64) {
        self.barrier.wait();
        let mut state = reader + 77;
        while self.stop.load(Ordering::Relaxed) == 0 {
            state = hash::spread(state.wrapping_add(reader + 1));
            let keys: Vec<u64> = (0..200)
                .map(|i| hash::spread(state + i) % (self.keys + 10))
                .collect();
            let load = |versions: &[AtomicU64], key: u64| {
                versions
                    .get(key as usize)
                    .map_or(0, |version| version.load(Ordering::SeqCst))
            };
            let least: Vec<u64> = keys.iter().map(|&key| load(&self.finished, key)).collect();
            for ((&key, least), found) in keys.iter().zip(least).zip(gather(&self.cache, &keys)) {
                let Some(found) = found else { continue };
                assert!(key < self.keys, "key {key} was never written");
                let version = version_of(key, &found);
                let most = load(&self.begun, key);
                assert!(
                    (least..=most).contains(&version),
                    "key {key}: {version} not in {least}..={most}"
                );
                self.seen.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What went in is there, or was taken out and counted; what was replaced has come back.
    fn check_conservation(&self) {
        let cache = &self.cache;
        assert!(
            self.seen.load(Ordering::Relaxed) > 1000,
            "the readers met rows"
        );
        let stats = cache.stats();
        assert!(stats.updates > 0 && stats.deletes > 0);
        assert_eq!(
            stats.inserts,
            stats.live_rows + stats.deletes + stats.evictions
        );
        let keys = cache.keys().unwrap();
        assert_eq!(keys.len() as u64, stats.live_rows);
        for (&key, found) in keys.iter().zip(gather(cache, &keys)) {
            let version = version_of(key, &found.expect("a key that is listed has a row"));
            assert_eq!(version, self.finished[key as usize].load(Ordering::SeqCst));
        }
        // With nobody inside, epochs move on with every few entries. A thread hands over what it still
        // holds when its thread-locals are dropped, which on a busy machine may be a while after it was
        // joined: so the bound is time, not rounds.
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            cache.delete(&[]).unwrap();
            let waiting = cache.stats().retired_rows;
            if waiting == 0 {
                break;
            }
            assert!(Instant::now() < patience, "{waiting} rows never came back");
            gather(cache, &[1]);
            std::thread::yield_now();
        }
        let memory = cache.memory_usage();
        let rows = (memory.payload_bytes + memory.padding_bytes + memory.free_bytes)
            / cache.layout().row_bytes() as u64;
        assert_eq!(
            rows,
            cache.store.gauges.dealt.load(Ordering::Relaxed) as u64,
            "every row is live or free"
        );
    }
}

#[test]
fn readers_see_whole_rows_of_the_right_key_while_writers_write() {
    let stress = Stress::run(CacheConfig::default(), 500, Duration::from_millis(1500));
    stress.check_conservation();
    assert_eq!(stress.cache.stats().evictions, 0);
}

#[test]
fn readers_see_whole_rows_while_a_full_cache_evicts() {
    let config = CacheConfig {
        capacity_bytes: Some(60_000),
        ..CacheConfig::default()
    };
    let stress = Stress::run(config, 1000, Duration::from_millis(1500));
    stress.check_conservation();
    assert!(stress.cache.stats().evictions > 0);
}
