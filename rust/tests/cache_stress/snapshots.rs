//! Snapshots beside a writer.

use crate::common::{Rows, mix};
use crate::stage::{LATER, Random, Stage, check_conservation, time, wait_for};
use aif_core::cache::CacheConfig;
use aif_core::sync::{AtomicU64, Ordering};
use std::time::Instant;

/// A writer moves key after key to a new version, each in a write of its own, while the table grows. In
/// every snapshot there is one key up to which all have the new version, and none beyond: it shows one
/// moment. It is unchanged after the writer has gone round several times.
#[test]
fn a_snapshot_is_of_one_moment_and_stays_so() {
    const KEYS: u64 = 40;
    const LOOKERS: u64 = 3;
    let until = Instant::now() + time();
    let stage = Stage::new(
        Rows::new(60),
        CacheConfig::default(),
        1,
        mix,
        until + LATER,
        |_| true,
    );
    let (rows, cache) = (&stage.rows, &stage.cache);
    let start: Vec<(u64, u64)> = (0..KEYS).map(|key| (key, 0)).collect();
    rows.upsert(cache, &start).unwrap();
    let write = |_| {
        for version in 1.. {
            for key in 0..KEYS {
                rows.upsert(cache, &[(key, version)]).unwrap();
            }
            let new: Vec<(u64, u64)> = (0..30).map(|i| (1 << 32 | version << 5 | i, 0)).collect();
            rows.upsert(cache, &new).unwrap();
            if version.is_multiple_of(100) {
                cache
                    .delete(
                        &(0..100 << 5)
                            .map(|i| 1 << 32 | (version - 99) << 5 | i)
                            .collect::<Vec<_>>(),
                    )
                    .unwrap();
            }
            if !stage.goes_on() {
                break;
            }
        }
    };
    let done = AtomicU64::new(0);
    let look = |looker: u64| {
        let mut random = Random::new(looker);
        while Instant::now() < until {
            let snapshot = cache.snapshot().unwrap();
            let versions = || {
                let shown = snapshot.rows().filter(|row| row.key < KEYS);
                let mut versions: Vec<(u64, u64)> =
                    shown.map(|row| (row.key, rows.version_of(&row))).collect();
                versions.sort_unstable();
                versions
            };
            let seen = versions();
            assert!(
                seen.iter().map(|row| row.0).eq(0..KEYS),
                "every key is there once"
            );
            let (first, last) = (seen[0].1, seen[KEYS as usize - 1].1);
            assert!(first - last <= 1, "{seen:?}");
            assert!(seen.is_sorted_by(|a, b| a.1 >= b.1), "{seen:?}");
            if random.below(4) == 0 {
                wait_for(&|| cache.stats().updates, 5 * KEYS, "the writer");
                assert_eq!(versions(), seen);
            }
        }
        // The others may still wait for the writer.
        if done.fetch_add(1, Ordering::SeqCst) + 1 == LOOKERS {
            stage.stop();
        }
    };
    stage.run(&[("writer", 1, &write), ("snapshot", LOOKERS, &look)]);
    check_conservation(cache);
}
