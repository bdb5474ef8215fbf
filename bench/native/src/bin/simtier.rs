//! `SimTier` on one thread, by each level that this CPU has: 4,096 candidates against 1,024 behaviours.
//!
//! `cargo run --release -p aif-bench --bin simtier`. All levels must agree before any is timed. Rounds go from
//! level to level, so that a change of the clock meets all alike; the fastest round of each call counts, so that
//! what else the machine does matters little. Cycles are those of a
//! chain of dependent multiplications and turns (3 and 1 on most cores of today), timed beside them. Calls are of 256 candidates; `small calls` is the same work in calls of 16, which shows what a call costs.

use aif_core::lsh::{Kind, Level, Sequence, SimTier};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::hint::black_box;
use std::time::{Duration, Instant};

const CANDIDATES: usize = 4096;
const BEHAVIOURS: usize = 1024;
const LARGE_CALL: usize = 256;
const SMALL_CALL: usize = 16;
const ROUNDS: usize = 25;

/// What is timed: kind, bytes of a signature, channels, and the 15 edges of 16 tiers.
struct Case {
    name: &'static str,
    kind: Kind,
    width: usize,
    channels: i32,
    edges: Vec<i32>,
}

fn main() {
    let near = |step: i32, middle: i32| (-7..8).map(|i| middle + i * step).collect::<Vec<_>>();
    let cases = [
        ("simhash 256", Kind::SimHash, 32, 1, near(5, 128)),
        ("simhash 256", Kind::SimHash, 32, 3, near(5, 128)),
        ("simhash 64", Kind::SimHash, 8, 1, near(3, 32)),
        ("simhash 512", Kind::SimHash, 64, 1, near(9, 256)),
        ("int8 64", Kind::Int8, 64, 1, near(2000, 0)),
        ("int8 64", Kind::Int8, 64, 3, near(2000, 0)),
    ];
    println!(
        "| signature | channels | level | pairs/s, 10^9 | cycles / 64 pairs | small calls | ready, µs |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, kind, width, channels, edges) in cases {
        measure(&Case {
            name,
            kind,
            width,
            channels,
            edges,
        });
    }
}

/// The fastest rounds of one level.
#[derive(Clone)]
struct Fastest {
    ready: Duration,
    /// One after the other, the calls of [`LARGE_CALL`] candidates.
    large: Vec<Duration>,
    small: Vec<Duration>,
}

fn measure(case: &Case) {
    let mut rng = StdRng::seed_from_u64(0);
    let mut bytes = |n: usize| (0..n).map(|_| rng.random()).collect::<Vec<u8>>();
    let (signatures, candidates) = (
        bytes(BEHAVIOURS * case.width),
        bytes(CANDIDATES * case.width),
    );
    let channel: Vec<i32> = (0..BEHAVIOURS)
        .map(|_| rng.random_range(0..case.channels))
        .collect();
    let sequence = Sequence {
        kind: case.kind,
        width: case.width,
        signatures: &signatures,
        channel: &channel,
        channels: case.channels as usize,
        edges: &case.edges,
    };
    let levels: Vec<_> = Level::ALL
        .into_iter()
        .filter(|level| level.runs_here())
        .collect();
    let mut all = Vec::new();
    for &level in &levels {
        let ready = SimTier::new(level, &sequence).expect("a good sequence");
        let mut counts = vec![0; CANDIDATES * ready.counts_per_candidate()];
        ready.count(&candidates, &mut counts);
        all.push(counts);
    }
    assert!(
        all.windows(2).all(|two| two[0] == two[1]),
        "the levels disagree"
    );

    let counts = &mut all[0];
    let mut cycle = f64::INFINITY;
    let none = Fastest {
        ready: Duration::MAX,
        large: vec![Duration::MAX; CANDIDATES / LARGE_CALL],
        small: vec![Duration::MAX; CANDIDATES / SMALL_CALL],
    };
    let mut fastest = vec![none; levels.len()];
    for _ in 0..ROUNDS {
        cycle = cycle.min(cycle_seconds());
        for (&level, fastest) in levels.iter().zip(&mut fastest) {
            let (taken, ready) = timed(|| SimTier::new(level, &sequence).expect("a good sequence"));
            fastest.ready = fastest.ready.min(taken);
            for (size, fastest) in [
                (LARGE_CALL, &mut fastest.large),
                (SMALL_CALL, &mut fastest.small),
            ] {
                let outs = counts.chunks_mut(size * ready.counts_per_candidate());
                let calls = candidates.chunks(size * case.width).zip(outs);
                for ((candidates, counts), fastest) in calls.zip(fastest) {
                    let (taken, ()) = timed(|| ready.count(candidates, counts));
                    *fastest = taken.min(*fastest);
                }
            }
        }
    }
    let pairs = (CANDIDATES * BEHAVIOURS) as f64;
    for (level, fastest) in levels.iter().zip(fastest) {
        let seconds = |calls: &[Duration]| calls.iter().sum::<Duration>().as_secs_f64();
        let cycles = |calls: &[Duration]| seconds(calls) / cycle / pairs * 64.0;
        println!(
            "| {} | {} | {} | {:.2} | {:.1} | {:.1} | {:.1} |",
            case.name,
            case.channels,
            level.name(),
            pairs / seconds(&fastest.large) / 1e9,
            cycles(&fastest.large),
            cycles(&fastest.small),
            fastest.ready.as_secs_f64() * 1e6
        );
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed(), result)
}

/// Seconds that a cycle of this core takes now.
fn cycle_seconds() -> f64 {
    const STEPS: u32 = 100_000;
    let (taken, _) = timed(|| {
        let mut x = black_box(3u64);
        let factor = black_box(5u64);
        for _ in 0..STEPS {
            // The compiler would join multiplications alone; turning takes one cycle more.
            x = x.wrapping_mul(factor).rotate_left(7);
        }
        black_box(x)
    });
    taken.as_secs_f64() / f64::from(4 * STEPS)
}
