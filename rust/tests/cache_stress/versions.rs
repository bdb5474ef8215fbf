//! Views of keys that one thread writes: nothing older after something newer, and nothing hidden.

use crate::common::{Rows, mix};
use crate::stage::{READERS, Random, Stage, WRITERS, check_conservation, crowded, own, time};
use aif_core::cache::{CacheConfig, Clock, ManualClock, Stats, TICK_MS};
use aif_core::sync::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Caches grow from nothing to 60,000 keys while readers check their keys; rows are deleted and rewritten
/// meanwhile. No key that stays is ever hidden.
#[test]
fn growth_hides_nothing_and_no_version_comes_back() {
    let until = Instant::now() + time();
    let enough = |stats: &Stats| stats.updates > 100 && stats.deletes > 100;
    for round in 0.. {
        let stage = Stage::new(
            Rows::new(60),
            CacheConfig::default(),
            60_000,
            mix,
            until,
            enough,
        );
        let grown = AtomicU64::new(WRITERS);
        let write = |writer: u64| {
            let mut random = Random::new(round * WRITERS + writer);
            let mut keys = stage.writer();
            let mut mine = 0;
            while stage.goes_on() && (mine + 200) * WRITERS < stage.keys() {
                let known = mine.max(1) * WRITERS;
                let some: Vec<u64> = random
                    .some_below(known, 30)
                    .into_iter()
                    .map(|number| own(number, writer))
                    .collect();
                match random.below(10) {
                    0..4 => keys.upsert(&some).unwrap(),
                    4..6 => drop(keys.delete(&some)),
                    _ => {
                        let more = mine + 1 + random.below(200);
                        let new: Vec<u64> = (mine..more)
                            .map(|number| number * WRITERS + writer)
                            .collect();
                        keys.upsert(&new).unwrap();
                        mine = more;
                        grown.fetch_max(mine * WRITERS, Ordering::Relaxed);
                    }
                }
            }
            while stage.goes_on() && !stage.readers_met_rows() {
                std::thread::yield_now();
            }
            stage.stop();
        };
        let read = |reader: u64| {
            let mut random = Random::new(u64::MAX - reader);
            let mut keys = stage.reader(reader.is_multiple_of(2));
            while stage.goes_on() {
                let known = grown.load(Ordering::Relaxed).min(stage.keys());
                keys.gather(&random.some_below(known, 200), true, |_, _| {});
            }
        };
        stage.run(&[("writer", WRITERS, &write), ("reader", READERS, &read)]);
        stage.check_rows();
        check_conservation(&stage.cache);
        let stats = stage.cache.stats();
        assert!(enough(&stats) && stage.readers_met_rows(), "{stats:?}");
        assert_eq!(stats.evictions, 0);
        if Instant::now() >= until {
            break;
        }
    }
}

/// A cache of some hundred rows evicts, expires, rebuilds and is cleared while a clock jumps. Rows that had
/// expired before a look-up are not shown.
#[test]
fn a_full_cache_evicts_and_expires_under_readers() {
    const TTL_TICKS: u64 = 20;
    let clock = ManualClock::default();
    let config = CacheConfig {
        capacity_bytes: Some(60_000),
        ttl: Some(Duration::from_millis(TTL_TICKS * TICK_MS)),
        clock: Clock::Manual(clock.clone()),
        ..CacheConfig::default()
    };
    let enough = |stats: &Stats| {
        stats.evictions > 0 && stats.expiries > 0 && stats.expired_removed > 0 && stats.deletes > 0
    };
    let until = Instant::now() + time();
    let stage = Stage::new(Rows::new(60), config, 500, crowded, until, enough);
    // The clock is between the two; `stamped` has for each number a version and the latest tick at which it
    // may have been stamped.
    let (passed, coming) = (AtomicU64::new(0), AtomicU64::new(0));
    let stamped: Vec<AtomicU64> = (0..stage.keys()).map(|_| AtomicU64::new(0)).collect();
    let write = |writer: u64| {
        let mut random = Random::new(writer);
        let mut keys = stage.writer();
        while stage.goes_on() {
            let mut some: Vec<u64> = random
                .some_below(stage.keys(), 30)
                .into_iter()
                .map(|number| own(number, writer))
                .collect();
            some.retain(|&number| number < stage.keys());
            keys.upsert(&some).unwrap();
            let tick = coming.load(Ordering::SeqCst);
            for (&number, back) in some.iter().rev().zip(0..) {
                let version = keys.version - back;
                stamped[number as usize].fetch_max(version << 32 | tick, Ordering::SeqCst);
            }
            if writer == 0 && random.below(300) == 0 {
                stage.cache.clear().unwrap();
            }
        }
    };
    let read = |reader: u64| {
        let mut random = Random::new(u64::MAX - reader);
        let mut keys = stage.reader(reader.is_multiple_of(2));
        while stage.goes_on() {
            let now = passed.load(Ordering::SeqCst);
            keys.gather(
                &random.some_below(stage.keys(), 200),
                false,
                |number, version| {
                    let stamped = stamped[number as usize].load(Ordering::SeqCst);
                    if stamped >> 32 == version {
                        let tick = stamped & u64::from(u32::MAX);
                        assert!(
                            tick + TTL_TICKS >= now,
                            "number {number} of tick {tick} was there at {now}"
                        );
                    }
                },
            );
            let stats = stage.cache.stats();
            assert!(stats.live_rows <= stats.max_rows, "{stats:?}");
        }
    };
    let tick = |_| {
        let mut random = Random::new(5);
        while stage.goes_on() {
            let ticks = random.below(2 * TTL_TICKS);
            coming.fetch_add(ticks, Ordering::SeqCst);
            clock.advance(Duration::from_millis(ticks * TICK_MS));
            passed.fetch_add(ticks, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1 + random.below(10)));
        }
    };
    stage.run(&[
        ("writer", WRITERS, &write),
        ("reader", READERS, &read),
        ("clock", 1, &tick),
    ]);
    check_conservation(&stage.cache);
    let stats = stage.cache.stats();
    assert!(enough(&stats) && stage.readers_met_rows(), "{stats:?}");
    // The clock left rows that are too old; apart from them the ledger holds.
    clock.advance(Duration::from_secs(3600));
    assert!(stage.cache.keys().unwrap().is_empty());
}
