//! Tests of the whole cache at its limits. Model-based and concurrent tests live in `rust/tests`.

use super::*;

/// Three columns whose bytes all tell their key and version.
fn layout() -> RowLayout {
    RowLayout::new([
        ("head", DType::Float32, vec![7]),
        ("code", DType::UInt8, vec![3]),
        ("tail", DType::BFloat16, vec![40]),
    ])
    .unwrap()
}

/// Returns the bytes of version `version` of `key`: every 8-byte word of the row is a function of both.
fn row(key: u64, version: u64) -> Vec<Vec<u8>> {
    let words = hash::mix64(key)
        .wrapping_add(version.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .to_le_bytes();
    layout()
        .columns()
        .iter()
        .map(|column| words.iter().copied().cycle().take(column.bytes()).collect())
        .collect()
}

fn columns_of(rows: &[(u64, u64)]) -> Vec<Vec<u8>> {
    let mut columns = vec![Vec::new(); 3];
    for &(key, version) in rows {
        for (column, bytes) in columns.iter_mut().zip(row(key, version)) {
            column.extend(bytes);
        }
    }
    columns
}

fn upsert(cache: &EmbeddingCache, rows: &[(u64, u64)]) -> Result<()> {
    let keys: Vec<u64> = rows.iter().map(|row| row.0).collect();
    let columns = columns_of(rows);
    cache.upsert(
        &keys,
        &columns.iter().map(Vec::as_slice).collect::<Vec<_>>(),
    )
}

/// Returns the rows of `keys`, `None` where missing; checks that missing ones were zeroed.
fn gather(cache: &EmbeddingCache, keys: &[u64]) -> Vec<Option<Vec<Vec<u8>>>> {
    let sizes: Vec<usize> = cache.layout().columns().iter().map(Column::bytes).collect();
    let mut columns: Vec<Vec<u8>> = sizes
        .iter()
        .map(|size| vec![0xaa; size * keys.len()])
        .collect();
    let mut found = vec![9; keys.len()];
    let mut slices: Vec<&mut [u8]> = columns.iter_mut().map(Vec::as_mut_slice).collect();
    let hits = cache.gather_into(keys, &mut slices, &mut found).unwrap();
    assert_eq!(
        hits,
        found.iter().map(|&found| usize::from(found)).sum::<usize>()
    );
    (0..keys.len())
        .map(|i| {
            let row: Vec<Vec<u8>> = columns
                .iter()
                .zip(&sizes)
                .map(|(column, size)| column[i * size..][..*size].to_vec())
                .collect();
            if found[i] == 0 {
                assert!(
                    row.iter().flatten().all(|&byte| byte == 0),
                    "a missing row is zeroed"
                );
            }
            (found[i] == 1).then_some(row)
        })
        .collect()
}

fn cache(config: CacheConfig) -> EmbeddingCache {
    EmbeddingCache::new(layout(), config).unwrap()
}

#[test]
fn growth_keeps_every_row_and_the_promised_overhead() {
    let cache = cache(CacheConfig {
        initial_keys: 50_000,
        ..CacheConfig::default()
    });
    let rows: Vec<(u64, u64)> = (0..50_000).map(|key| (key << 40 | key, key)).collect();
    for batch in rows.chunks(777) {
        upsert(&cache, batch).unwrap();
    }
    let memory = cache.memory_usage();
    assert_eq!(
        memory.growth_peak_bytes, 0,
        "the table was made for this many keys"
    );
    let used_side = 50_000 * 4;
    let overhead = (memory.table_bytes + used_side) as f64 / 50_000.0;
    assert!(overhead <= 24.0, "{overhead} bytes a key");
    assert!(
        memory.untouched_bytes * 7 <= memory.total_bytes,
        "{memory:?}"
    );

    let growing = self::cache(CacheConfig::default());
    for batch in rows.chunks(777) {
        upsert(&growing, batch).unwrap();
    }
    assert!(growing.memory_usage().growth_peak_bytes > 0);
    for cache in [&cache, &growing] {
        for (batch, found) in rows.iter().zip(gather(
            cache,
            &rows.iter().map(|row| row.0).collect::<Vec<_>>(),
        )) {
            assert_eq!(found, Some(row(batch.0, batch.1)));
        }
    }
}

#[test]
fn a_snapshot_keeps_its_moment() {
    let clock = ManualClock::default();
    let cache = cache(CacheConfig {
        clock: Clock::Manual(clock.clone()),
        ttl: Some(Duration::from_secs(10)),
        ..CacheConfig::default()
    });
    upsert(&cache, &[(1, 0)]).unwrap();
    clock.advance(Duration::from_secs(8));
    let rows: Vec<(u64, u64)> = (2..2000).map(|key| (key, key)).collect();
    upsert(&cache, &rows).unwrap();
    let snapshot = cache.snapshot().unwrap();
    clock.advance(Duration::from_secs(5));
    assert_eq!(
        cache.snapshot().unwrap().len(),
        rows.len(),
        "key 1 is too old by now"
    );
    for version in 1..4 {
        let rows: Vec<(u64, u64)> = (0..3000).map(|key| (key, key + version)).collect();
        upsert(&cache, &rows).unwrap();
    }
    cache.clear().unwrap();
    assert!(!snapshot.is_empty());
    let mut keys: Vec<u64> = snapshot.rows().map(|row| row.key).collect();
    keys.sort_unstable();
    assert!(keys.into_iter().eq(1..2000));
    for found in snapshot.rows() {
        let (version, age_s) = if found.key == 1 {
            (0, 8)
        } else {
            (found.key, 0)
        };
        assert_eq!(found.age.as_secs(), age_s);
        for (column, bytes) in layout().columns().iter().zip(row(found.key, version)) {
            assert_eq!(found.bytes[column.offset()..][..column.bytes()], bytes);
        }
    }
}

#[test]
fn popular_rows_outlive_a_scan() {
    let cache = cache(CacheConfig {
        capacity_bytes: Some(200_000),
        ..CacheConfig::default()
    });
    let max = cache.stats().max_rows;
    let popular: Vec<u64> = (0..max / 4).collect();
    upsert(
        &cache,
        &popular.iter().map(|&key| (key, 1)).collect::<Vec<_>>(),
    )
    .unwrap();
    for scanned in 0..20 * max {
        if scanned % 50 == 0 {
            gather(&cache, &popular);
        }
        upsert(&cache, &[(1_000_000 + scanned, 1)]).unwrap();
    }
    let stayed = gather(&cache, &popular).iter().flatten().count();
    assert_eq!(stayed, popular.len());
    assert_eq!(cache.len() as u64, max);
}

#[test]
fn an_update_keeps_the_uses_of_the_row_it_replaces() {
    let cache = cache(CacheConfig {
        capacity_bytes: Some(16_000),
        ..CacheConfig::default()
    });
    upsert(&cache, &[(1, 1)]).unwrap();
    gather(&cache, &[1]);
    upsert(&cache, &[(1, 2)]).unwrap();
    gather(&cache, &[1]);
    let mut marks = [0, 1].map(|row| cache.store.slab.row(row).take_frequency());
    marks.sort_unstable();
    assert_eq!(marks, [0, 3], "two reads and the update");
}

#[test]
fn rows_expire_and_are_counted() {
    let clock = ManualClock::default();
    let config = CacheConfig {
        ttl: Some(Duration::from_secs(10)),
        clock: Clock::Manual(clock.clone()),
        ..CacheConfig::default()
    };
    let cache = cache(config);
    upsert(&cache, &[(1, 1), (2, 1)]).unwrap();
    clock.advance(Duration::from_secs(8));
    upsert(&cache, &[(2, 2), (3, 1)]).unwrap();
    let mut ages = [None; 4];
    cache.ages(&[1, 2, 3, 4], |i, age| ages[i] = age);
    let tick = Duration::from_millis(TICK_MS);
    assert!(ages[0].unwrap().abs_diff(Duration::from_secs(8)) <= tick);
    assert_eq!(
        ages[1..],
        [Some(Duration::ZERO), Some(Duration::ZERO), None]
    );
    assert_eq!(gather(&cache, &[1, 2, 3]).iter().flatten().count(), 3);

    clock.advance(Duration::from_secs(4));
    let found = gather(&cache, &[1, 2, 3, 4]);
    assert_eq!(found, [None, Some(row(2, 2)), Some(row(3, 1)), None]);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.expiries), (5, 2, 1));
    assert_eq!((cache.len(), cache.keys().unwrap().len()), (3, 2));
    assert_eq!(
        cache.delete(&[1]).unwrap(),
        0,
        "an expired row was no row any more"
    );

    // Expired rows are dropped when the table is rebuilt, so that they do not accumulate.
    clock.advance(Duration::from_secs(3600));
    for key in 100..2100 {
        upsert(&cache, &[(key, 1)]).unwrap();
    }
    assert_eq!(cache.stats().expired_removed, 2);
    assert_eq!(cache.len(), 2000);
}

#[test]
fn expired_rows_are_evicted_first() {
    let clock = ManualClock::default();
    let config = CacheConfig {
        capacity_bytes: Some(40_000),
        ttl: Some(Duration::from_secs(10)),
        clock: Clock::Manual(clock.clone()),
        ..CacheConfig::default()
    };
    let cache = cache(config);
    let max = cache.stats().max_rows;
    let old: Vec<u64> = (0..max / 2).collect();
    upsert(&cache, &old.iter().map(|&key| (key, 1)).collect::<Vec<_>>()).unwrap();
    gather(&cache, &old);
    clock.advance(Duration::from_secs(20));
    let young: Vec<u64> = (max..2 * max).collect();
    for &key in &young {
        upsert(&cache, &[(key, 1)]).unwrap();
    }
    assert_eq!(gather(&cache, &young).iter().flatten().count(), young.len());
}

#[test]
fn wrong_buffers_are_refused_before_anything_happens() {
    let cache = cache(CacheConfig::default());
    let columns = columns_of(&[(1, 1)]);
    let slices: Vec<&[u8]> = columns.iter().map(Vec::as_slice).collect();
    for bad in [&slices[..2], &[slices[0], slices[0], slices[2]], &[]] {
        assert!(matches!(cache.upsert(&[1], bad), Err(Error::Layout(_))));
    }
    assert!(matches!(
        cache.upsert(&[1, 2], &slices),
        Err(Error::Layout(_))
    ));
    assert!(cache.is_empty());
    let mut out = columns.clone();
    let mut out: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
    assert!(matches!(
        cache.gather_into(&[1], &mut out, &mut []),
        Err(Error::Request(_))
    ));
    assert!(matches!(
        cache.gather_into(&[1, 2], &mut out, &mut [0, 0]),
        Err(Error::Layout(_))
    ));
    assert_eq!(cache.gather_into(&[1], &mut out, &mut [0]), Ok(0));
}

#[test]
fn impossible_configurations_are_refused() {
    let refused = |config| {
        EmbeddingCache::new(layout(), config)
            .unwrap_err()
            .to_string()
    };
    let small = refused(CacheConfig {
        capacity_bytes: Some(200),
        ..CacheConfig::default()
    });
    assert!(small.contains("holds 1 rows"), "{small}");
    let enough: usize = small
        .split_whitespace()
        .rev()
        .nth(2)
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        EmbeddingCache::new(
            layout(),
            CacheConfig {
                capacity_bytes: Some(enough),
                ..CacheConfig::default()
            }
        )
        .is_ok()
    );
    assert!(
        refused(CacheConfig {
            ttl: Some(Duration::ZERO),
            ..CacheConfig::default()
        })
        .contains("ttl")
    );
    assert!(
        refused(CacheConfig {
            initial_keys: usize::MAX,
            ..CacheConfig::default()
        })
        .contains("at most")
    );
}

#[test]
fn no_memory_is_an_error_that_leaves_the_cache_whole() {
    // One row takes a gigabyte: the address space ends before 2^20 of them.
    let layout = RowLayout::new([("x", DType::UInt8, vec![1 << 30])]).unwrap();
    let slab = slab::Slab::new(
        &layout,
        usize::MAX,
        0,
        false,
        crate::buffer::Pages::default(),
    );
    let mut made = 0;
    let error = loop {
        match slab.grow(made) {
            Ok(rows) => made += rows,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, Error::OutOfMemory { bytes, .. } if bytes >= 1 << 30),
        "{error}"
    );
}

#[test]
fn readers_go_on_while_a_writer_stands_still() {
    let cache = cache(CacheConfig::default());
    upsert(&cache, &[(5, 1)]).unwrap();
    std::thread::scope(|scope| {
        let stalled = cache.store.writer.lock().unwrap();
        let read = scope.spawn(|| {
            for _ in 0..1000 {
                assert_eq!(gather(&cache, &[5, 6]), [Some(row(5, 1)), None]);
            }
            (cache.len(), cache.stats().hits)
        });
        assert_eq!(read.join().unwrap(), (1, 1000));
        drop(stalled);
    });
}

#[test]
fn a_stalled_reader_costs_memory_up_to_twice_the_bound_and_no_old_row() {
    use reclaim::Reclaim;
    let config = CacheConfig {
        capacity_bytes: Some(16_000),
        ..CacheConfig::default()
    };
    let cache = cache(config.clone());
    let rows = cache.store.bound.unwrap().rows as u64;
    let inside = cache.store.reclaim.pin();
    for version in 0..2 * rows {
        upsert(&cache, &[(1, version)]).unwrap();
    }
    assert_eq!(cache.stats().overrun_rows, rows);
    let error = upsert(&cache, &[(1, 2 * rows)]).unwrap_err();
    assert_eq!(
        error,
        Error::RowsHeld {
            retired: 2 * rows as usize - 1,
            limit: 2 * rows as usize
        }
    );
    assert_eq!(
        gather(&cache, &[1]),
        [Some(row(1, 2 * rows - 1))],
        "the old row stays"
    );

    // Another cache has its own epochs.
    let other = self::cache(config);
    for version in 0..2 * rows {
        upsert(&other, &[(1, version)]).unwrap();
    }
    assert_eq!(other.stats().overrun_rows, 0);

    drop(inside);
    upsert(&cache, &[(1, 1000)]).unwrap();
    assert_eq!(gather(&cache, &[1]), [Some(row(1, 1000))]);
}

#[test]
fn others_go_on_while_a_writer_waits_for_readers() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let cache = cache(CacheConfig {
        capacity_bytes: Some(16_000),
        ..CacheConfig::default()
    });
    let inside = cache.snapshot().unwrap();
    // Number of the upsert that runs: the writer waits several times, until it is refused.
    let (running, refused) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1.. {
                running.store(number, Ordering::SeqCst);
                if upsert(&cache, &[(1, number as u64)]).is_err() {
                    refused.store(number, Ordering::SeqCst);
                    return;
                }
            }
        });
        // Calls that began and ended during one and the same upsert. (One that waits with the lock lets
        // none do so, but for the instant before it has the lock.)
        let (mut within, mut most) = ((0, 0), 0);
        while refused.load(Ordering::SeqCst) == usize::MAX {
            let before = running.load(Ordering::SeqCst);
            assert_eq!(cache.delete(&[u64::MAX]), Ok(0));
            cache.keys().unwrap();
            drop(cache.snapshot().unwrap());
            let after = running.load(Ordering::SeqCst);
            if before == after {
                within = (after, if within.0 == after { within.1 + 1 } else { 1 });
                most = most.max(within.1);
            }
        }
        assert!(most >= 20, "{most} calls during one upsert");
    });
    // From now on a write is refused at once: it would wait for the same readers.
    let start = std::time::Instant::now();
    for version in 0..1000 {
        let error = upsert(&cache, &[(1, version)]).unwrap_err();
        assert!(matches!(error, Error::RowsHeld { .. }), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(50), "each waited");
    drop(inside);
    upsert(&cache, &[(1, 1)]).unwrap();
    assert_eq!(gather(&cache, &[1]), [Some(row(1, 1))]);
}

#[test]
fn a_write_copies_a_bounded_part_of_a_table_that_grows() {
    for capacity_bytes in [None, Some(12 << 20)] {
        let cache = cache(CacheConfig {
            capacity_bytes,
            ..CacheConfig::default()
        });
        let (mut longest, mut writes) = (0, 0);
        for key in 0..100_000 {
            upsert(&cache, &[(key, key)]).unwrap();
            let rebuilds = cache.memory_usage().new_table_bytes > 0;
            writes = if rebuilds { writes + 1 } else { 0 };
            longest = longest.max(writes);
        }
        // The last rebuild copied thousands of buckets, 64 at a write.
        assert!(longest > 50, "the longest rebuild took {longest} writes");
    }
}

#[test]
fn a_thread_may_use_many_caches_in_turn() {
    let caches: Vec<EmbeddingCache> = (0..20).map(|_| cache(CacheConfig::default())).collect();
    for round in 0..3 {
        for (i, cache) in caches.iter().enumerate() {
            upsert(cache, &[(i as u64, round)]).unwrap();
        }
        for (i, cache) in caches.iter().enumerate().rev() {
            assert_eq!(gather(cache, &[i as u64]), [Some(row(i as u64, round))]);
        }
    }
}

#[test]
fn a_cache_whose_writer_panicked_can_be_read_and_listed_but_not_written() {
    let cache = EmbeddingCache::new(layout(), CacheConfig::default()).unwrap();
    upsert(&cache, &[(1, 0), (2, 0)]).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _writer = cache.store.lock().unwrap();
            // Without a message on stderr, unlike `panic!`.
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(writer.join().is_err());
    });
    for error in [
        upsert(&cache, &[(3, 0)]).unwrap_err(),
        cache.delete(&[1]).unwrap_err(),
        cache.clear().unwrap_err(),
    ] {
        assert_eq!(error, Error::Poisoned("the cache"));
        assert!(error.to_string().contains("can still be read and listed"));
    }
    let mut keys = cache.keys().unwrap();
    keys.sort_unstable();
    assert_eq!(keys, [1, 2]);
    assert_eq!(
        gather(&cache, &[1, 2, 3]),
        [Some(row(1, 0)), Some(row(2, 0)), None]
    );
    let snapshot = cache.snapshot().unwrap();
    let head = &cache.layout().columns()[0];
    assert_eq!(snapshot.len(), 2);
    for listed in snapshot.rows() {
        assert_eq!(
            listed.bytes[head.offset()..][..head.bytes()],
            row(listed.key, 0)[0]
        );
    }
}

#[test]
fn replaced_tables_are_counted_while_a_reader_is_inside_and_freed_by_the_next_write() {
    let cache = EmbeddingCache::new(layout(), CacheConfig::default()).unwrap();
    let grow = |keys: std::ops::Range<u64>| {
        let rows: Vec<_> = keys.map(|key| (key, 0)).collect();
        upsert(&cache, &rows).unwrap();
        cache.memory_usage()
    };
    let before = grow(0..40);
    assert_eq!(before.retired_table_bytes, 0);
    let snapshot = cache.snapshot().unwrap();
    let during = grow(40..2000);
    assert!(
        during.retired_table_bytes >= before.table_bytes,
        "{during:?}"
    );
    assert_eq!(
        during.total_bytes,
        during.payload_bytes
            + during.padding_bytes
            + during.retired_bytes
            + during.free_bytes
            + during.table_bytes
            + during.retired_table_bytes
            + during.new_table_bytes
            + during.side_bytes
            + during.order_bytes
    );
    drop(snapshot);
    let after = grow(2000..2001);
    assert_eq!(after.retired_table_bytes, 0, "{after:?}");
    // Without readers, the batch that replaces a table frees it.
    let grown = grow(2001..20_000);
    assert!(grown.table_bytes > after.table_bytes);
    assert_eq!(grown.retired_table_bytes, 0, "{grown:?}");
    cache.clear().unwrap();
    assert_eq!(cache.memory_usage().retired_table_bytes, 0);
}

#[test]
fn keys_chosen_to_lie_together_do_not_under_a_random_seed() {
    // All of these start at the first slot of a table that hashes them without a seed.
    let keys: Vec<u64> = (0..1000).map(hash::unmix64).collect();
    let starts = |hash_seed| {
        let config = CacheConfig {
            hash_seed,
            ..CacheConfig::default()
        };
        let cache = EmbeddingCache::new(layout(), config).unwrap();
        let starts = keys.iter().map(|&key| cache.store.hash(key) >> 48);
        starts.collect::<std::collections::HashSet<_>>().len()
    };
    assert_eq!(starts(Some(0)), 1);
    for _ in 0..10 {
        assert!(starts(None) > 500);
    }
}
