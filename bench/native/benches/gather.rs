//! Batch gathers from a filled store, side by side.
//!
//! `cargo bench -p aif-bench --bench gather`. Times are for one batch on each thread: with two threads, twice
//! as many rows were gathered in it.

use aif_bench::keys::{Popularity, draw, key_of};
use aif_bench::peers::{self, PlainArray};
use aif_bench::timing::on_threads;
use aif_bench::{RowStore, check, fill};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::time::Duration;

/// One size of rows, with as many of them as make about 1 GB, and batches that a request would ask for.
struct Size {
    row_bytes: usize,
    rows: usize,
    batch: usize,
}

const SIZES: [Size; 3] = [
    Size {
        row_bytes: 256,
        rows: 1_000_000,
        batch: 4096,
    },
    Size {
        row_bytes: 1024,
        rows: 1_000_000,
        batch: 4096,
    },
    Size {
        row_bytes: 131_072,
        rows: 8_000,
        batch: 64,
    },
];

const POPULARITIES: [Popularity; 2] = [Popularity::Uniform, Popularity::Zipf(0.99)];

/// Threads: one, as many as the cores of the machine that this was written on, and more.
const THREADS: [usize; 3] = [1, 2, 4];

/// Different batches that take turns, so that no batch finds its own rows in the cache.
const BATCHES: usize = 32;

fn gather(criterion: &mut Criterion) {
    for size in &SIZES {
        let plain = PlainArray::filled(size.rows, size.row_bytes);
        let stores: Vec<Box<dyn RowStore>> = peers::ALL
            .iter()
            .map(|name| {
                let store = peers::make(name, size.rows, size.row_bytes);
                fill(&*store, size.rows, size.row_bytes);
                store
            })
            .collect();
        for popularity in POPULARITIES {
            let numbers: Vec<Vec<usize>> = (0..BATCHES)
                .map(|seed| draw(size.rows, size.batch, popularity, seed as u64))
                .collect();
            let keys: Vec<Vec<u64>> = numbers
                .iter()
                .map(|numbers| numbers.iter().map(|&number| key_of(number)).collect())
                .collect();
            for store in &stores {
                check(&**store, &keys[0], size.row_bytes);
            }
            for threads in THREADS {
                let mut group = criterion.benchmark_group(format!(
                    "{} rows of {} bytes of {}, {}, {threads} thread(s)",
                    size.batch,
                    size.row_bytes,
                    size.rows,
                    popularity.name()
                ));
                let buffer = || vec![1u8; size.batch * size.row_bytes];
                group.bench_function(
                    BenchmarkId::from_parameter("array_by_position"),
                    |bencher| {
                        bencher.iter_custom(|rounds| {
                            on_threads(threads, rounds, buffer, |out, round| {
                                plain.take(&numbers[round % BATCHES], out);
                            })
                        });
                    },
                );
                for store in &stores {
                    group.bench_function(BenchmarkId::from_parameter(store.name()), |bencher| {
                        bencher.iter_custom(|rounds| {
                            on_threads(threads, rounds, buffer, |out, round| {
                                let asked = &keys[round % BATCHES];
                                assert_eq!(store.gather(asked, out), asked.len());
                            })
                        });
                    });
                }
                group.finish();
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200));
    targets = gather
}
criterion_main!(benches);
