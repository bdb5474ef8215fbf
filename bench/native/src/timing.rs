//! Timing the same work on several threads at once.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// The time from a common start until the last of `threads` threads has done `rounds` rounds. `prepare` makes
/// what a thread needs, before the start; `round` gets that, and a number that differs from thread to
/// thread and from round to round.
pub fn on_threads<T>(
    threads: usize,
    rounds: u64,
    prepare: impl Fn() -> T + Sync,
    round: impl Fn(&mut T, usize) + Sync,
) -> Duration {
    let start = Barrier::new(threads);
    let run = |thread: usize| {
        let mut own = prepare();
        start.wait();
        let started = Instant::now();
        for number in 0..rounds as usize {
            round(&mut own, number * threads + thread);
        }
        started.elapsed()
    };
    thread::scope(|scope| {
        let run = &run;
        let all: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        all.into_iter()
            .map(|one| one.join().unwrap_or_default())
            .max()
            .unwrap_or_default()
    })
}
