//! Hit rates of eviction policies, at capacities of 1, 5 and 10 % of the keys.
//!
//! ```text
//! cargo run --release -p aif-bench --bin hit_rate -- [--json FILE] [TRACE ...]
//! ```
//!
//! Each trace is a file of one decimal key a line.
//! Without one, the program draws its own by Zipf's law. A request looks a key up and, if it is absent,
//! writes it; every request counts, so first requests are misses for all. Rows that come back are checked,
//! and so are the embedding cache's hits against the plain form of its policy. Three columns show that policy
//! with another rule.

mod caches;
mod plain;
mod trace;

use plain::{Policy, S3FifoRule};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use trace::Trace;

const SHARES: [f64; 3] = [0.01, 0.05, 0.10];

const ZIPF_EXPONENTS: [f64; 3] = [0.8, 0.99, 1.2];
const ZIPF_KEYS: usize = 1_000_000;
const ZIPF_REQUESTS: usize = 5_000_000;

const POLICIES: [&str; 8] = [
    "embedding cache",
    "promotion at 2 reads",
    "1-bit counts",
    "small queue of 20 %",
    "SIEVE",
    "LRU",
    "moka",
    "optimum",
];

/// How far the embedding cache may be from the plain form of its policy, as a share of the requests: its ghost
/// is a hash table that forgets some keys early.
const MOST_APART: f64 = 0.0025;

fn make(policy: &str, capacity: usize, trace: &Trace) -> Box<dyn Policy> {
    let s3_fifo = |rule| Box::new(plain::S3Fifo::new(capacity, rule));
    match policy {
        "embedding cache" => Box::new(caches::Embedding::new(capacity)),
        "promotion at 2 reads" => s3_fifo(S3FifoRule::PUBLISHED),
        "1-bit counts" => s3_fifo(S3FifoRule {
            most_uses: 1,
            ..S3FifoRule::EMBEDDING_CACHE
        }),
        "small queue of 20 %" => s3_fifo(S3FifoRule {
            small: 5,
            ..S3FifoRule::EMBEDDING_CACHE
        }),
        "SIEVE" => Box::new(plain::Sieve::new(capacity)),
        "LRU" => Box::new(caches::Lru::new(capacity)),
        "moka" => Box::new(caches::Moka::new(capacity)),
        "optimum" => Box::new(plain::Optimum::new(capacity, &trace.keys)),
        _ => unreachable!("{policy} is none of {POLICIES:?}"),
    }
}

/// Hits of every policy at one capacity.
struct Measured {
    capacity: usize,
    hits: [usize; POLICIES.len()],
}

fn measure(trace: &Trace, capacity: usize) -> Measured {
    let hits_of = |mut policy: Box<dyn Policy>| {
        let hits = trace.keys.iter().filter(|&&key| policy.request(key));
        hits.count()
    };
    let hits = POLICIES.map(|name| hits_of(make(name, capacity, trace)));
    let plain = hits_of(Box::new(plain::S3Fifo::new(
        capacity,
        S3FifoRule::EMBEDDING_CACHE,
    )));
    assert!(
        hits[0].abs_diff(plain) as f64 <= MOST_APART * trace.keys.len() as f64,
        "{}, capacity {capacity}: {} hits of the cache and {plain} of its policy are too far apart",
        trace.name,
        hits[0],
    );
    Measured { capacity, hits }
}

fn print_table(trace: &Trace, measured: &[Measured]) {
    for Measured { capacity, hits } in measured {
        let share = 100.0 * *capacity as f64 / trace.population as f64;
        print!("| {} | {share:.0} % ({capacity}) |", trace.name);
        for hits in hits {
            print!(" {:.2} |", 100.0 * *hits as f64 / trace.keys.len() as f64);
        }
        println!();
    }
}

fn json(trace: &Trace, measured: &[Measured]) -> serde_json::Value {
    serde_json::json!({
        "trace": trace.name,
        "requests": trace.keys.len(),
        "keys": trace.population,
        "measured": measured.iter().map(|Measured { capacity, hits }| {
            let hits: serde_json::Map<_, _> =
                POLICIES.iter().zip(hits).map(|(name, hits)| ((*name).into(), (*hits).into())).collect();
            serde_json::json!({"capacity": capacity, "hits": hits})
        }).collect::<Vec<_>>(),
    })
}

fn run(json_file: Option<&Path>, files: &[PathBuf]) -> Result<(), String> {
    // Files are read before anything is measured, so that a wrong path costs no minutes.
    let traces: Vec<Trace> = if files.is_empty() {
        ZIPF_EXPONENTS
            .map(|exponent| Trace::zipf(ZIPF_KEYS, ZIPF_REQUESTS, exponent, 0))
            .into()
    } else {
        files
            .iter()
            .map(|file| Trace::read(file))
            .collect::<Result<_, _>>()?
    };
    println!("| trace | capacity (keys) | {} |", POLICIES.join(" | "));
    println!("|---|---|{}", "---|".repeat(POLICIES.len()));
    let mut results = Vec::new();
    for trace in &traces {
        let measured = SHARES.map(|share| {
            measure(
                trace,
                ((share * trace.population as f64).round() as usize).max(2),
            )
        });
        print_table(trace, &measured);
        results.push(json(trace, &measured));
    }
    println!();
    for trace in &traces {
        println!(
            "{}: {} requests, {} keys",
            trace.name,
            trace.keys.len(),
            trace.population
        );
    }
    if let Some(file) = json_file {
        let text = serde_json::to_string_pretty(&results).expect("numbers and strings");
        std::fs::write(file, text + "\n")
            .map_err(|error| format!("{}: cannot be written: {error}", file.display()))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mut json_file = None;
    if arguments.next_if(|argument| argument == "--json").is_some() {
        json_file = arguments.next().map(PathBuf::from);
        if json_file.is_none() {
            eprintln!("--json is given without a file; expected --json FILE [TRACE ...]");
            return ExitCode::FAILURE;
        }
    }
    let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    match run(json_file.as_deref(), &files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
