//! Agreement of the cache's counts with those of its users.

use crate::common::Rows;
use crate::stage::{
    READERS, Random, WRITERS, check_conservation, crowded, drain, lasts, rows_taken, time,
};
use aif_core::cache::{CacheConfig, EmbeddingCache, Stats};
use aif_core::sync::{AtomicU64, Ordering};
use std::time::Instant;

/// Writers insert, update, delete and clear the same keys. Their results add up; then every allocated row
/// can be used again.
fn add_up(config: CacheConfig) {
    let bounded = config.capacity_bytes.is_some();
    let rows = Rows::new(200);
    let cache = EmbeddingCache::new(rows.layout(), config).unwrap();
    let until = Instant::now() + time();
    let (written, deleted, versions) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let keys = 400;
    let enough = |stats: &Stats| {
        stats.updates > 0
            && stats.deletes > 0
            && stats.hits > 1000
            && (stats.evictions > 0) == bounded
    };
    let goes_on = || lasts(until, || enough(&cache.stats()));
    std::thread::scope(|scope| {
        for writer in 0..=WRITERS {
            let (cache, rows, goes_on) = (&cache, &rows, &goes_on);
            let (written, deleted, versions) = (&written, &deleted, &versions);
            scope.spawn(move || {
                let mut random = Random::new(writer);
                while goes_on() {
                    let some = random.some_below(keys, 40);
                    let names: Vec<u64> = some.iter().map(|&number| crowded(number)).collect();
                    if random.below(3) == 0 {
                        deleted.fetch_add(cache.delete(&names).unwrap() as u64, Ordering::Relaxed);
                    } else {
                        let version = versions.fetch_add(1, Ordering::SeqCst);
                        let batch: Vec<(u64, u64)> =
                            names.iter().map(|&key| (key, version)).collect();
                        rows.upsert(cache, &batch).unwrap();
                        written.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    }
                }
            });
        }
        for reader in 0..READERS {
            let (cache, rows, goes_on, versions) = (&cache, &rows, &goes_on, &versions);
            scope.spawn(move || {
                let mut random = Random::new(99 + reader);
                while goes_on() {
                    let names: Vec<u64> = random
                        .some_below(keys, 200)
                        .into_iter()
                        .map(crowded)
                        .collect();
                    let found = rows.gather(cache, &names);
                    let begun = versions.load(Ordering::SeqCst);
                    assert!(found.into_iter().flatten().all(|version| version < begun));
                }
            });
        }
    });
    let stats = cache.stats();
    assert_eq!(
        stats.inserts + stats.updates,
        written.load(Ordering::Relaxed),
        "each row written is counted once"
    );
    assert_eq!(
        stats.deletes,
        deleted.load(Ordering::Relaxed),
        "each deletion was told to one writer"
    );
    assert!(enough(&stats), "{stats:?}");
    check_conservation(&cache);
    let listed = cache.keys().unwrap();
    assert_eq!(listed.len() as u64, stats.live_rows);
    assert!(rows.gather(&cache, &listed).iter().all(Option::is_some));

    // The allocation suffices for as many rows again: none was lost.
    cache.clear().unwrap();
    drain(&cache);
    let memory = cache.memory_usage();
    assert_eq!((memory.payload_bytes, memory.padding_bytes), (0, 0));
    let taken = rows_taken(&cache);
    let room = if bounded {
        stats.max_rows.min(taken)
    } else {
        taken
    };
    for key in 0..room {
        rows.upsert(&cache, &[(1 << 32 | key, 1)]).unwrap();
    }
    assert_eq!(
        (cache.len() as u64, rows_taken(&cache)),
        (room, taken),
        "rows were lost"
    );
    check_conservation(&cache);
}

#[test]
fn writers_of_the_same_keys_add_up() {
    add_up(CacheConfig::default());
}

#[test]
fn writers_of_the_same_keys_add_up_in_a_full_cache() {
    add_up(CacheConfig {
        capacity_bytes: Some(130_000),
        ..CacheConfig::default()
    });
}
