//! Where the time of the real-time kernel goes: the standard workload whole, and with one part after the other
//! taken away.
//!
//! `cargo run --release -p aif-bench --bin interaction`: a line of JSON for each precision and number of
//! threads, in milliseconds, the least of many rounds. What a part costs is the difference to the line before.

mod workload;

use aif_bench::timing::on_threads;
use aif_core::bf16::Matrix;
use aif_core::interaction::{Interaction, Model, PairFeatures, Scratch};
use aif_core::lsh::Level;
use serde_json::{Map, json};
use workload::{CANDIDATES, REQUESTS, Workload};

const ROUNDS: usize = 200;

/// Requests that are timed together, so that starting threads does not count.
const TOGETHER: u64 = 40;

/// Candidates that a thread takes together, as in a compiled program.
const PIECE: usize = 192;

fn main() {
    for half in [false, true] {
        let made = Workload::new(half);
        let halves = made.halves();
        for threads in [1, 2] {
            let mut line = Map::new();
            line.insert(
                "precision".into(),
                json!(if half { "bfloat16" } else { "float32" }),
            );
            line.insert("threads".into(), json!(threads));
            let model = made.model(&halves);
            line.insert("prepare".into(), json!(prepare_ms(&made, &model)));
            for (name, model) in variants(&model) {
                line.insert(name.into(), json!(best_ms(&made, &model, threads)));
            }
            println!("{}", serde_json::Value::Object(line));
        }
    }
}

/// The model, and what is left of it part by part.
fn variants<'a>(full: &Model<'a>) -> Vec<(&'static str, Model<'a>)> {
    let mut model = full.clone();
    let mut all = vec![("all", model.clone())];
    model.tiers = None;
    all.push(("without tiers", model.clone()));
    model.layers.clear();
    all.push(("and without layers", model.clone()));
    model.slots = None;
    model.pair = PairFeatures {
        width: 0,
        weights: &[],
    };
    all.push(("and without slots and pair features", model.clone()));
    model.factored.clear();
    model.factors = Matrix::F32(&[]);
    all.push(("and without factors: rows alone", model));
    all
}

fn prepare_ms(made: &Workload, model: &Model<'_>) -> f64 {
    let least = (0..ROUNDS).map(|_| {
        let started = std::time::Instant::now();
        Interaction::new(level(), model, &made.cache).expect("a workload that fits");
        started.elapsed()
    });
    least.min().expect("rounds").as_secs_f64() * 1e3
}

/// The least time of a request whose candidates are shared among threads.
fn best_ms(made: &Workload, model: &Model<'_>, threads: usize) -> f64 {
    let interaction = Interaction::new(level(), model, &made.cache).expect("a workload that fits");
    let outputs = model.outputs();
    let share = CANDIDATES / threads;
    let least = (0..ROUNDS / TOGETHER as usize).map(|_| {
        on_threads(
            threads,
            TOGETHER,
            || {
                (
                    Scratch::default(),
                    vec![0.0f32; share * outputs],
                    vec![0u8; share],
                )
            },
            |(scratch, logits, status), number| {
                let first = number % threads * share;
                let pieces = logits
                    .chunks_mut(PIECE * outputs)
                    .zip(status.chunks_mut(PIECE));
                for (piece, (logits, status)) in pieces.enumerate() {
                    let from = first + piece * PIECE;
                    let asked = number / threads % REQUESTS * CANDIDATES;
                    let keys = &made.keys[asked + from..asked + from + status.len()];
                    let width = model.pair.width;
                    let pair = &made.pair[from * width..][..status.len() * width];
                    interaction
                        .score(&made.cache, keys, pair, None, scratch, logits, status)
                        .expect("a workload that fits");
                }
            },
        )
    });
    least.min().expect("rounds").as_secs_f64() * 1e3 / TOGETHER as f64
}

fn level() -> Level {
    Level::chosen().expect("AIF_JAX_KERNELS names kernels that this CPU has")
}
