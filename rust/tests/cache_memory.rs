//! Cache behaviour when the system refuses memory: a write fails with an error, the process survives, and
//! the cache remains usable.
//!
//! Each case runs in a process of its own, which lowers the limit of its address space. Linux only, and not
//! under the sanitizers, which reserve terabytes of address space.

#![cfg(target_os = "linux")]

mod common;

use aif_core::cache::{CacheConfig, EmbeddingCache};
use aif_core::error::Error;
use common::Rows;
use std::process::Command;

/// Environment variable that names the case to a child process.
const CASE: &str = "AIF_MEMORY_CASE";

/// Address space that a child may take beyond its size at the start.
const LEFT_BYTES: u64 = 96 << 20;

/// Runs this program again for the test `name`, as the process that will run out of memory.
fn in_a_child(name: &str, case: fn()) {
    if std::env::var(CASE).is_ok_and(|wanted| wanted == name) {
        limit_address_space();
        case();
        // Only a case that ran to its end prints this.
        println!("{name} has ended well");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CASE, name)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr),
    );
    assert!(
        child.status.success() && out.contains(&format!("{name} has ended well")),
        "{}\n{out}\n{err}",
        child.status
    );
}

/// Limits the address space of this process to [`LEFT_BYTES`] more than it has now.
fn limit_address_space() {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split_whitespace().next().unwrap().parse().unwrap();
    let bytes = pages * 4096 + LEFT_BYTES;
    assert!(
        bytes < 1 << 40,
        "a sanitizer has taken the address space: leave these tests out"
    );
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: the limit lives through the call, which only reads it.
    let outcome = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

/// Inserts keys from `first` on, in batches, until a write fails; returns the keys that have a row since.
fn fill(cache: &EmbeddingCache, rows: &Rows, first: u64) -> (u64, Error) {
    for start in (first..).step_by(100) {
        let batch: Vec<(u64, u64)> = (start..start + 100).map(|key| (key, 1)).collect();
        if let Err(error) = rows.upsert(cache, &batch) {
            let keys: Vec<u64> = batch.iter().map(|row| row.0).collect();
            let found = rows.gather(cache, &keys);
            let written = found.iter().flatten().count();
            assert!(
                found[..written].iter().all(Option::is_some),
                "what was written comes before the failure"
            );
            assert!(
                error
                    .to_string()
                    .contains(&format!("after {written} of 100 keys")),
                "{error}"
            );
            return (start + written as u64, error);
        }
        assert!(start < 100 << 20, "no limit was met");
    }
    unreachable!()
}

fn check(cache: &EmbeddingCache, rows: &Rows, keys: std::ops::Range<u64>, version: u64) {
    for start in keys.clone().step_by(1000) {
        let some: Vec<u64> = (start..(start + 1000).min(keys.end)).collect();
        assert!(
            rows.gather(cache, &some)
                .iter()
                .all(|found| *found == Some(version))
        );
    }
}

/// Fills a cache of rows of `tail` elements until memory runs out, and continues to use it.
fn runs_out(tail: usize, config: CacheConfig) {
    let rows = Rows::new(tail);
    let cache = EmbeddingCache::new(rows.layout(), config).unwrap();
    let (mut end, error) = fill(&cache, &rows, 0);
    assert!(end > 1000, "after {end} keys: {error}");
    assert!(
        matches!(&error, Error::OutOfMemory { bytes, .. } if *bytes > 0),
        "{error}"
    );
    assert_eq!((cache.len() as u64, cache.stats().evictions), (end, 0));
    check(&cache, &rows, 0..end, 1);

    // Repeated writes take what fits after all, and nothing else changes.
    let mut refused = 0;
    for _ in 0..50 {
        match rows.upsert(&cache, &[(end, 1)]) {
            Ok(()) => end += 1,
            Err(Error::OutOfMemory { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0);
    assert_eq!(cache.len() as u64, end);
    check(&cache, &rows, 0..end, 1);

    // Deleted rows make room for new versions of other keys, once readers have come and gone.
    let half: Vec<u64> = (0..end / 2).collect();
    assert_eq!(cache.delete(&half), Ok(half.len()));
    for _ in 0..1000 {
        cache.contains(&[0], |_, _| {});
    }
    for version in 2..10 {
        let some: Vec<u64> = (end / 2..end / 2 + 100).collect();
        let batch: Vec<(u64, u64)> = some.iter().map(|&key| (key, version)).collect();
        rows.upsert(&cache, &batch).unwrap();
        check(&cache, &rows, end / 2..end / 2 + 100, version);
    }
    check(&cache, &rows, end / 2 + 100..end, 1);
    cache.clear().unwrap();
    assert!(cache.is_empty());
    rows.upsert(&cache, &[(1, 1)]).unwrap();
    check(&cache, &rows, 1..2, 1);
}

/// Long rows: their segments do not fit.
#[test]
fn no_memory_for_rows_is_an_error_and_no_end() {
    in_a_child("no_memory_for_rows_is_an_error_and_no_end", || {
        runs_out(4000, CacheConfig::default());
    });
}

/// The shortest rows: the table is a large share of the memory.
#[test]
fn no_memory_for_short_rows_is_an_error_and_no_end() {
    in_a_child("no_memory_for_short_rows_is_an_error_and_no_end", || {
        runs_out(1, CacheConfig::default());
    });
}

/// A bound beyond the available memory: the eviction order grows with the rows, and nothing is evicted yet.
#[test]
fn a_bound_beyond_memory_is_no_promise() {
    in_a_child("a_bound_beyond_memory_is_no_promise", || {
        let config = CacheConfig {
            capacity_bytes: Some(2 * LEFT_BYTES as usize),
            ..CacheConfig::default()
        };
        runs_out(1, config);
    });
}

/// A table for more keys than there is memory for is refused when the cache is made.
#[test]
fn no_memory_for_the_first_table_is_an_error() {
    in_a_child("no_memory_for_the_first_table_is_an_error", || {
        let config = CacheConfig {
            initial_keys: 1 << 30,
            ..CacheConfig::default()
        };
        let refused = EmbeddingCache::new(Rows::new(1).layout(), config).unwrap_err();
        assert!(
            matches!(&refused, Error::OutOfMemory { bytes, .. } if *bytes > 8 << 30),
            "{refused}"
        );
    });
}

/// Cache after cache is filled and dropped; all together would not fit.
#[test]
fn a_dropped_cache_gives_its_memory_back() {
    in_a_child("a_dropped_cache_gives_its_memory_back", || {
        let rows = Rows::new(1000);
        for round in 0..20 {
            let config = CacheConfig {
                initial_keys: 15_000,
                capacity_bytes: (round % 2 == 0).then_some(LEFT_BYTES as usize / 2),
                ..CacheConfig::default()
            };
            let cache = EmbeddingCache::new(rows.layout(), config).unwrap();
            for start in (0..15_000).step_by(500) {
                let batch: Vec<(u64, u64)> = (start..start + 500).map(|key| (key, round)).collect();
                rows.upsert(&cache, &batch).unwrap();
            }
            assert!(cache.memory_usage().total_bytes > LEFT_BYTES / 4);
            check(&cache, &rows, 0..15_000, round);
            cache.clear().unwrap();
        }
    });
}
