//! Readers that stay inside for long.

use crate::common::{Rows, mix};
use crate::stage::{
    LATER, READERS, Random, Stage, WRITERS, check_conservation, own, rows_taken, time, wait_for,
    was_held_up,
};
use aif_core::cache::CacheConfig;
use aif_core::sync::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A reader stays inside again and again. Meanwhile other readers and the writers continue, the table
/// grows, and rows that the stalled reader may still read stay; when it leaves, all are released.
#[test]
fn a_stalled_reader_delays_memory_only() {
    let until = Instant::now() + time();
    let stage = Stage::new(
        Rows::new(60),
        CacheConfig::default(),
        3000,
        mix,
        until + LATER,
        |_| true,
    );
    let lasting = 1 << 60;
    stage
        .rows
        .upsert(&stage.cache, &[(lasting, 1), (lasting + 1, 1)])
        .unwrap();
    let write = |writer: u64| {
        let mut random = Random::new(writer);
        let mut keys = stage.writer();
        while stage.goes_on() {
            let some: Vec<u64> = random
                .some_below(stage.keys(), 30)
                .into_iter()
                .map(|n| own(n, writer))
                .collect();
            if random.below(4) == 0 {
                keys.delete(&some);
            } else {
                keys.upsert(&some).unwrap();
            }
        }
    };
    let read = |reader: u64| {
        let mut random = Random::new(u64::MAX - reader);
        let mut keys = stage.reader(reader.is_multiple_of(2));
        while stage.goes_on() {
            keys.gather(&random.some_below(stage.keys(), 200), true, |_, _| {});
        }
    };
    let stall = |_| {
        let stats = || stage.cache.stats();
        while Instant::now() < until {
            let mut there = [None; 2];
            stage.cache.contains(&[lasting, lasting + 1], |i, has_row| {
                there[i] = Some(has_row);
                if i > 0 {
                    return;
                }
                let before = stats();
                wait_for(&|| stats().hits, 1000, "a reader");
                wait_for(&|| stats().updates, 1000, "a writer");
                // No row replaced since this reader entered has been released. (The numbers are of
                // different moments: that of the retired rows is the later one.)
                let updates = stats().updates - before.updates;
                stage.cache.delete(&[]).unwrap();
                let retired = stats().retired_rows;
                assert!(
                    retired >= updates,
                    "{updates} rows were replaced, {retired} are retired"
                );
            });
            assert_eq!(there, [Some(true); 2]);
        }
        stage.stop();
    };
    stage.run(&[
        ("writer", WRITERS, &write),
        ("reader", READERS, &read),
        ("stalled", 1, &stall),
    ]);
    // The two lasting keys are not in the ledger.
    assert_eq!(stage.cache.delete(&[lasting, lasting + 1]), Ok(2));
    stage.check_rows();
    check_conservation(&stage.cache);

    // Back to the start: the next thousand updates need no new memory.
    let taken = rows_taken(&stage.cache);
    let mut keys = stage.writer();
    for _ in 0..1000 {
        keys.upsert(&[0]).unwrap();
    }
    assert_eq!(rows_taken(&stage.cache), taken);
}

/// The same in a full cache: writers wait, exceed the bound to at most its double, or are refused; a
/// refused write leaves the old row.
#[test]
fn a_stalled_reader_of_a_full_cache_may_stop_writers_but_no_reader() {
    let config = CacheConfig {
        capacity_bytes: Some(16_000),
        ..CacheConfig::default()
    };
    let until = Instant::now() + time();
    let stage = Stage::new(Rows::new(60), config, 300, mix, until + LATER, |_| true);
    let refused = AtomicU64::new(0);
    let write = |writer: u64| {
        let mut random = Random::new(writer);
        let mut keys = stage.writer();
        while stage.goes_on() {
            let some: Vec<u64> = random
                .some_below(stage.keys(), 6)
                .into_iter()
                .map(|n| own(n, writer))
                .collect();
            refused.fetch_add(
                u64::from(was_held_up(keys.upsert(&some))),
                Ordering::Relaxed,
            );
        }
    };
    let read = |reader: u64| {
        let mut random = Random::new(u64::MAX - reader);
        let mut keys = stage.reader(reader.is_multiple_of(2));
        while stage.goes_on() {
            keys.gather(&random.some_below(stage.keys(), 50), false, |_, _| {});
        }
    };
    let stall = |_| {
        let mut random = Random::new(7);
        // Full, before any reader stalls.
        wait_for(&|| stage.cache.stats().evictions, 1, "a writer");
        while Instant::now() < until {
            stage.cache.contains(&[0], |_, _| {
                wait_for(&|| stage.cache.stats().misses, 1000, "a reader");
                std::thread::sleep(Duration::from_millis(random.below(1500)));
                wait_for(&|| stage.cache.stats().misses, 1000, "a reader");
            });
            std::thread::sleep(Duration::from_millis(random.below(20)));
        }
        stage.stop();
    };
    stage.run(&[
        ("writer", WRITERS, &write),
        ("reader", READERS, &read),
        ("stalled", 1, &stall),
    ]);
    stage.check_rows();
    check_conservation(&stage.cache);
    let stats = stage.cache.stats();
    assert!(stats.evictions > 0, "{stats:?}");
    assert!(
        rows_taken(&stage.cache) <= 2 * (stats.max_rows + stats.max_rows / 15 + 1),
        "{stats:?}"
    );
    // Without readers inside, a write succeeds.
    stage.writer().upsert(&[1]).unwrap();
}
