//! What this machine can do at best, as JSON: the limits that the real-time stage is held against.
//!
//! `cargo run --release -p aif-bench --bin peaks [ROWS ROW_BYTES]`. Each rate is the best of several short
//! windows, on one thread and on two: multiplications and additions of floats in registers, products of
//! 16-bit floats, comparisons of 256-bit signatures in the first level of cache, comparisons of scores with
//! an edge, and reading memory, by rows in random order and from end to end. A rate that this processor
//! has no instructions for is null.

mod arithmetic;
mod memory;

use aif_bench::timing::on_threads;
use serde_json::{Value, json};
use std::time::Duration;

/// Windows of which the best counts.
const WINDOWS: usize = 7;
/// What a window takes, at least.
const WINDOW: Duration = Duration::from_millis(20);
const THREADS: [usize; 2] = [1, 2];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| {
        text.parse()
            .expect("ROWS and ROW_BYTES are whole numbers, ROW_BYTES a multiple of 64")
    });
    let rows: usize = arguments.next().unwrap_or(1_000_000);
    let row_bytes: usize = arguments.next().unwrap_or(1152);
    let table = memory::Table::new(rows, row_bytes);
    let rates: Vec<Value> = THREADS
        .iter()
        .map(|&threads| {
            let best = |work: Option<arithmetic::Work>| {
                work.map(|work| best_rate(threads, work.each, &|times| (work.run)(times)))
            };
            json!({
                "threads": threads,
                "fma_f32_flops": best(arithmetic::fma_f32()),
                "dot_bf16_flops": best(arithmetic::dot_bf16()),
                "signature_pairs": best(arithmetic::signature_pairs()),
                "score_compares": best(arithmetic::score_compares()),
                "random_rows_bytes": best_rate(threads, table.batch_bytes(), &|times| table.random_rows(times)),
                "streaming_bytes": best_rate(threads, table.part_bytes(), &|times| table.streaming(times)),
            })
        })
        .collect();
    let report =
        json!({ "unit": "per second", "rows": rows, "row_bytes": row_bytes, "rates": rates });
    println!("{report:#}");
}

/// The best rate on `threads` threads together, per second: `run(n)` does `each` things `n` times.
fn best_rate(threads: usize, each: f64, run: &(dyn Fn(u64) + Sync)) -> f64 {
    let window = |times: u64| on_threads(threads, 1, || (), |(), _| run(times));
    let mut times = 1;
    while window(times) < WINDOW {
        times *= 2;
    }
    let best = (0..WINDOWS)
        .map(|_| window(times))
        .min()
        .unwrap_or_default();
    each * times as f64 * threads as f64 / best.as_secs_f64()
}
