//! Short-lived threads and caches.

use crate::common::Rows;
use crate::stage::{READERS, Random, WRITERS, check_conservation, lasts, time};
use aif_core::cache::{CacheConfig, EmbeddingCache};
use aif_core::sync::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

/// Threads live for a moment, caches not much longer, and the last owner of a cache may be any thread. A
/// thread reads from a cache what it wrote into it, and rows retired by threads that have exited are
/// released.
#[test]
fn threads_and_caches_come_and_go() {
    let until = Instant::now() + time();
    let rows = Rows::new(60);
    let config = |number: u64| CacheConfig {
        capacity_bytes: number.is_multiple_of(2).then_some(100_000),
        ..CacheConfig::default()
    };
    let new = |number: u64| Arc::new(EmbeddingCache::new(rows.layout(), config(number)).unwrap());
    let caches: Vec<RwLock<Arc<EmbeddingCache>>> =
        (0..6).map(|number| RwLock::new(new(number))).collect();
    let visits = AtomicU64::new(0);
    let visit = |seed: u64, random: &mut Random, last: u64| {
        for version in 0..4 {
            let number = random.below(caches.len() as u64);
            let place = &caches[number as usize];
            if random.below(20) == 0 {
                *place.write().unwrap() = new(number);
            }
            let cache = Arc::clone(&place.read().unwrap());
            let key = |visit: u64| seed << 32 | visit;
            rows.upsert(&cache, &[(key(last), version)]).unwrap();
            let found = rows.gather(&cache, &[key(last)]);
            // While this thread was preempted, others may have evicted it.
            let evicted = found == [None] && number.is_multiple_of(2);
            assert!(found == [Some(version)] || evicted, "{found:?}");
            let before: Vec<u64> = (last.saturating_sub(50)..last).map(key).collect();
            rows.gather(&cache, &before);
            cache.delete(&before[before.len() / 2..]).unwrap();
        }
        visits.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        for seed in 0..WRITERS + READERS {
            let (visit, visits) = (&visit, &visits);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for last in 0.. {
                    std::thread::scope(|inner| {
                        inner.spawn(|| visit(seed, &mut random, last));
                    });
                    if !lasts(until, || visits.load(Ordering::Relaxed) > 100) {
                        break;
                    }
                }
            });
        }
    });
    assert!(visits.load(Ordering::Relaxed) > 100);
    for cache in caches {
        check_conservation(&cache.into_inner().unwrap());
    }
}
