//! What a reader loses to a writer: throughput and tail of batch gathers on one thread, with and without a
//! writer on another.
//!
//! `cargo run --release -p aif-bench --bin beside_writer [SECONDS]`. Windows with and without the writer take
//! turns, `SECONDS` of each in all (10 by default), so that a change of the machine's speed meets both. Every
//! batch is checked to be complete and its rows to be their keys'.

use aif_bench::keys::{Popularity, draw, key_of};
use aif_bench::{fill_row, peers};
use aif_core::cache::{CacheConfig, DType, EmbeddingCache, RowLayout};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ROWS: usize = 1_000_000;
const ROW_BYTES: usize = 1024;
const BATCH: usize = 1024;
const WINDOW: Duration = Duration::from_millis(500);
/// Rows that a writer writes at a time, and how often: 10 % of the rows a second.
const WRITE_ROWS: usize = 1000;
const WRITES_PER_S: usize = ROWS / 10 / WRITE_ROWS;

/// Batches of one kind of window.
#[derive(Default)]
struct Batches {
    nanos: Vec<u64>,
}

impl Batches {
    fn rows_per_s(&self) -> f64 {
        let total: u64 = self.nanos.iter().sum();
        (self.nanos.len() * BATCH) as f64 / (total as f64 / 1e9)
    }

    fn percentile_us(&mut self, share: f64) -> f64 {
        self.nanos.sort_unstable();
        let rank = (share * self.nanos.len() as f64).ceil() as usize;
        self.nanos[rank.clamp(1, self.nanos.len()) - 1] as f64 / 1e3
    }
}

fn main() {
    let seconds = std::env::args().nth(1).map_or(10.0, |text| {
        text.parse()
            .expect("a number of seconds as the only argument")
    });
    println!(
        "{BATCH} rows of {ROW_BYTES} bytes a batch; peers of the cache: {:?}\n",
        &peers::ALL[1..]
    );
    println!(
        "| reader beside | rows/s alone | rows/s beside | share | p50 µs | p99.9 µs alone | p99.9 µs beside | rows written/s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for popularity in [Popularity::Uniform, Popularity::Zipf(0.99)] {
        let cache = filled(ROWS, ROWS);
        let title = format!("10 % of the rows replaced a second, {}", popularity.name());
        compare(&title, &cache, popularity, seconds, |number| {
            key_of(number % ROWS)
        });
    }
    // Nothing is known of the final size: the table and the slab grow under the reader.
    let cache = filled(ROWS / 4, 0);
    let (before, grown) = (cache.len(), ROWS / 4);
    compare(
        "growth by new keys at that rate, uniform",
        &cache,
        Popularity::Uniform,
        seconds,
        |number| key_of(grown + number),
    );
    println!(
        "\nThe growing cache went from {before} to {} rows; {:?}",
        cache.len(),
        cache.memory_usage()
    );
}

/// A cache with `rows` rows that was told of `expected`.
fn filled(rows: usize, expected: usize) -> EmbeddingCache {
    let layout = RowLayout::new([("row", DType::UInt8, vec![ROW_BYTES])]).expect("a row");
    let config = CacheConfig {
        initial_keys: expected,
        ..CacheConfig::default()
    };
    let cache = EmbeddingCache::new(layout, config).expect("memory for the table");
    for first in (0..rows).step_by(WRITE_ROWS) {
        write(&cache, first, &|number| key_of(number));
    }
    cache
}

/// Writes the rows number `first..` under the keys that `key` gives them.
fn write(cache: &EmbeddingCache, first: usize, key: &dyn Fn(usize) -> u64) {
    let keys: Vec<u64> = (first..first + WRITE_ROWS).map(key).collect();
    let mut rows = vec![0; WRITE_ROWS * ROW_BYTES];
    for (key, row) in keys.iter().zip(rows.chunks_exact_mut(ROW_BYTES)) {
        fill_row(*key, row);
    }
    cache.upsert(&keys, &[&rows]).expect("memory for rows");
}

/// Prints a row of the table: a reader of the first quarter's keys alone, and beside a writer.
fn compare(
    title: &str,
    cache: &EmbeddingCache,
    popularity: Popularity,
    seconds: f64,
    key: impl Fn(usize) -> u64 + Sync,
) {
    let rows = cache.len();
    let batches: Vec<Vec<u64>> = (0..64)
        .map(|seed| {
            draw(rows, BATCH, popularity, seed)
                .into_iter()
                .map(key_of)
                .collect()
        })
        .collect();
    let (writing, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let written = AtomicUsize::new(0);
    let (mut alone, mut beside) = (Batches::default(), Batches::default());
    let mut time_beside = Duration::ZERO;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                let now = Instant::now();
                if writing.load(Ordering::Relaxed) {
                    write(
                        cache,
                        written.fetch_add(WRITE_ROWS, Ordering::Relaxed),
                        &key,
                    );
                } else {
                    next = now;
                }
                next += Duration::from_secs(1) / WRITES_PER_S as u32;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        let mut out = vec![0; BATCH * ROW_BYTES];
        let mut found = vec![0; BATCH];
        let mut round = 0;
        for window in 0..(seconds / WINDOW.as_secs_f64() * 2.0) as usize {
            let with_writer = window % 2 == 1;
            writing.store(with_writer, Ordering::Relaxed);
            let start = Instant::now();
            while start.elapsed() < WINDOW {
                let keys = &batches[round % batches.len()];
                round += 1;
                let begin = Instant::now();
                let hits = cache
                    .gather_into(keys, &mut [&mut out], &mut found)
                    .expect("buffers that fit");
                let nanos = begin.elapsed().as_nanos() as u64;
                assert_eq!(hits, BATCH, "every key has a row throughout");
                let place = round % BATCH;
                let mut expected = [0; ROW_BYTES];
                fill_row(keys[place], &mut expected);
                assert!(
                    out[place * ROW_BYTES..][..ROW_BYTES] == expected,
                    "a row is not its key's"
                );
                if with_writer { &mut beside } else { &mut alone }
                    .nanos
                    .push(nanos);
            }
            if with_writer {
                time_beside += start.elapsed();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    println!(
        "| {title} | {:.2} M | {:.2} M | {:.1} % | {:.0} | {:.0} | {:.0} | {:.0} k |",
        alone.rows_per_s() / 1e6,
        beside.rows_per_s() / 1e6,
        100.0 * beside.rows_per_s() / alone.rows_per_s(),
        alone.percentile_us(0.5),
        alone.percentile_us(0.999),
        beside.percentile_us(0.999),
        written.load(Ordering::Relaxed) as f64 / time_beside.as_secs_f64() / 1e3,
    );
}
