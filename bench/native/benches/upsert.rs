//! Replacing rows in batches, by one writer and by two at a time, side by side.
//!
//! `cargo bench -p aif-bench --bench upsert`. Times are for one batch on each thread: with two threads, twice
//! as many rows were written in it. The rows are compared when it is over.

use aif_bench::keys::{Popularity, draw, key_of};
use aif_bench::timing::on_threads;
use aif_bench::{check, fill, fill_row, peers};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::time::Duration;

const SIZES: [(usize, usize, usize); 3] = [
    (256, 500_000, 1024),
    (1024, 500_000, 1024),
    (131_072, 4000, 32),
];
const THREADS: [usize; 2] = [1, 2];
const BATCHES: usize = 16;

fn upsert(criterion: &mut Criterion) {
    for (row_bytes, rows, batch) in SIZES {
        let batches: Vec<(Vec<u64>, Vec<u8>)> = (0..BATCHES)
            .map(|seed| {
                let keys: Vec<u64> = draw(rows, batch, Popularity::Uniform, seed as u64)
                    .into_iter()
                    .map(key_of)
                    .collect();
                let mut bytes = vec![0; batch * row_bytes];
                for (&key, row) in keys.iter().zip(bytes.chunks_exact_mut(row_bytes)) {
                    fill_row(key, row);
                }
                (keys, bytes)
            })
            .collect();
        for threads in THREADS {
            let mut group = criterion.benchmark_group(format!(
                "replace {batch} rows of {row_bytes} bytes of {rows}, {threads} thread(s)"
            ));
            for name in peers::ALL {
                let store = peers::make(name, rows, row_bytes);
                fill(&*store, rows, row_bytes);
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    bencher.iter_custom(|rounds| {
                        on_threads(
                            threads,
                            rounds,
                            || (),
                            |(), round| {
                                let (keys, rows) = &batches[round % BATCHES];
                                store.put_all(keys, rows);
                            },
                        )
                    });
                });
                check(&*store, &batches[0].0, row_bytes);
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = upsert
}
criterion_main!(benches);
