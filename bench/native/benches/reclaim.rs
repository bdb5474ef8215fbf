//! What reclamation costs: entering and leaving as a reader, and handing over what was replaced.
//!
//! `cargo bench -p aif-bench --bench reclaim`. `crossbeam-epoch` is what the cache uses; `seize` is the other
//! well-kept choice. Every gather enters and leaves once. Every turn of a writer hands over once, here with a
//! reader on another thread that enters and leaves all the time; the highest number of things that waited to
//! be reclaimed is printed. All are counted back: nothing may be lost.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Counts itself when it is reclaimed.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Retires `rounds` things, one a turn, while another thread reads; returns the time and the most that waited.
fn retire(
    rounds: u64,
    enter: impl Fn() + Sync,
    hand_over: impl Fn(Counted),
    finish: impl Fn(),
) -> (Duration, usize) {
    let (over, reclaimed) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
    let mut waiting = 0;
    let mut taken = Duration::ZERO;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                enter();
            }
        });
        let start = Instant::now();
        for round in 1..=rounds as usize {
            hand_over(Counted(Arc::clone(&reclaimed)));
            waiting = waiting.max(round - reclaimed.load(Ordering::Relaxed));
        }
        taken = start.elapsed();
        over.store(true, Ordering::Relaxed);
    });
    finish();
    assert_eq!(
        reclaimed.load(Ordering::Relaxed),
        rounds as usize,
        "something was lost"
    );
    (taken, waiting)
}

fn reclaim(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("enter and leave");
    let crossbeam = crossbeam_epoch::Collector::new();
    let handle = crossbeam.register();
    let seize = seize::Collector::new();
    group.bench_function("crossbeam-epoch", |bencher| {
        bencher.iter(|| black_box(handle.pin()));
    });
    group.bench_function("seize", |bencher| bencher.iter(|| black_box(seize.enter())));
    group.finish();

    let mut most = [0; 2];
    let mut group = criterion.benchmark_group("hand over beside a reader");
    group.bench_function("crossbeam-epoch", |bencher| {
        bencher.iter_custom(|rounds| {
            let collector = crossbeam_epoch::Collector::new();
            let writer = collector.register();
            let (taken, waiting) = retire(
                rounds,
                || {
                    // As the cache does it: a thread registers once.
                    thread_local!(static SEAT: std::cell::OnceCell<crossbeam_epoch::LocalHandle> = const { std::cell::OnceCell::new() });
                    SEAT.with(|seat| drop(black_box(seat.get_or_init(|| collector.register()).pin())));
                },
                |thing| {
                    let guard = writer.pin();
                    guard.defer(move || drop(thing));
                    guard.flush();
                },
                // A flush looks at a few things at a time, and the last needs two epochs more.
                || (0..1000).for_each(|_| writer.pin().flush()),
            );
            most[0] = most[0].max(waiting);
            taken
        });
    });
    group.bench_function("seize", |bencher| {
        bencher.iter_custom(|rounds| {
            let collector = seize::Collector::new().batch_size(1);
            let (taken, waiting) = retire(
                rounds,
                || drop(black_box(collector.enter())),
                |thing| {
                    // SAFETY: from a box, retired once, and nobody else has it.
                    unsafe {
                        collector.retire(Box::into_raw(Box::new(thing)), seize::reclaim::boxed);
                    };
                },
                // SAFETY: the reader is gone.
                || unsafe { collector.reclaim_all() },
            );
            most[1] = most[1].max(waiting);
            taken
        });
    });
    group.finish();
    println!(
        "most that waited: crossbeam-epoch {}, seize {}",
        most[0], most[1]
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = reclaim
}
criterion_main!(benches);
