//! Statistics of lanes: counters and histograms of times.

use super::circuit::CircuitState;
use crate::metrics::fields;
use crate::sync::plain::{AtomicU64, Mutex, Ordering};
use hdrhistogram::Histogram;
use std::sync::PoisonError;
use std::time::Duration;

/// Quantiles of one kind of time, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Number of recorded times.
    pub count: u64,
    /// Median, to two significant digits.
    pub p50_us: f64,
    /// 99th percentile, to two significant digits.
    pub p99_us: f64,
    /// Maximum, exact.
    pub max_us: f64,
}

/// Statistics of one lane.
///
/// Every accepted task ends in exactly one way: once nothing is queued or running, `submitted` is the sum
/// of `completed`, `failed`, `cancelled`, `expired`, `shed` and `panicked`. While tasks run, the numbers
/// are read one after the other and may be off by the tasks in motion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LaneStats {
    /// Threads of the lane.
    pub threads: usize,
    /// Tasks in the queue.
    pub queued: usize,
    /// Tasks started and not ended, including those that wait.
    pub running: u64,
    /// Tasks accepted.
    pub submitted: u64,
    /// Tasks that returned a result.
    pub completed: u64,
    /// Tasks that returned an error.
    pub failed: u64,
    /// Tasks dropped before their start because they were cancelled or the scheduler stopped.
    pub cancelled: u64,
    /// Tasks dropped before their start because their deadline had passed.
    pub expired: u64,
    /// Tasks dropped before their start because the circuit of their name was open.
    pub shed: u64,
    /// Tasks refused because the queue was full or stopped. Refused tasks are not among the submitted.
    pub rejected: u64,
    /// Tasks refused because they were predicted to end after their deadline.
    pub refused_late: u64,
    /// Tasks refused because the circuit of their name was open.
    pub refused_open: u64,
    /// Tasks that panicked.
    pub panicked: u64,
    /// Tasks that ended after their deadline; a running task is never interrupted.
    pub overrun: u64,
    /// Time from submission to start.
    pub queue: Times,
    /// Time from start to end, including waits.
    pub run: Times,
    /// Time that workers of this lane spent in `wait`, including tasks they ran meanwhile.
    pub wait: Times,
}

impl LaneStats {
    /// Returns the counts by name, without `threads` and `queued`.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, u64); 12] {
        fields!(self; running submitted completed failed cancelled expired shed rejected refused_late
            refused_open panicked overrun)
    }

    /// Returns the times by name.
    #[must_use]
    pub fn times(&self) -> [(&'static str, Times); 3] {
        fields!(self; queue run wait)
    }
}

/// Statistics of one name in one lane.
#[derive(Clone, Debug, PartialEq)]
pub struct NameStats {
    /// Name of the tasks.
    pub name: Box<str>,
    /// Finished tasks.
    pub runs: u64,
    /// Tasks running now.
    pub running: usize,
    /// Mean run time of about the last 16 tasks; `None` before the eighth.
    pub mean_us: Option<f64>,
    /// Run time that admission expects: mean plus twice the mean deviation.
    pub likely_us: Option<f64>,
    /// Approximate 99th percentile of run times.
    pub p99_us: Option<f64>,
    /// Run time beyond which a task counts as hanging.
    pub hang_us: f64,
    /// Tasks refused because they were predicted to end after their deadline.
    pub refused_late: u64,
    /// Tasks refused, or dropped before their start, because the circuit was open.
    pub refused_open: u64,
    /// State of the circuit.
    pub circuit: CircuitState,
}

/// Significant digits of a histogram; with two, one hour in nanoseconds takes about 40 kB.
const DIGITS: u8 = 2;

struct Timer(Mutex<(Histogram<u64>, u64)>);

impl Timer {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, DIGITS)
            .expect("constant bounds that the crate accepts");
        Self(Mutex::new((histogram, 0)))
    }

    fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.saturating_record(nanos.max(1));
        guard.1 = guard.1.max(nanos);
    }

    fn times(&self) -> Times {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (histogram, max) = &*guard;
        if histogram.is_empty() {
            return Times::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile).min(*max) as f64 / 1e3;
        Times {
            count: histogram.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            max_us: *max as f64 / 1e3,
        }
    }
}

/// Relaxed counter.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back an `increment` for a task that was refused after all.
    pub(super) fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Live counters behind [`LaneStats`].
pub(super) struct LaneCounters {
    pub(super) submitted: Count,
    pub(super) begun: Count,
    pub(super) ended: Count,
    pub(super) completed: Count,
    pub(super) failed: Count,
    pub(super) cancelled: Count,
    pub(super) expired: Count,
    pub(super) shed: Count,
    pub(super) rejected: Count,
    pub(super) refused_late: Count,
    pub(super) refused_open: Count,
    pub(super) panicked: Count,
    pub(super) overrun: Count,
    queue: Timer,
    run: Timer,
    wait: Timer,
}

impl LaneCounters {
    pub(super) fn new() -> Self {
        Self {
            submitted: Count::default(),
            begun: Count::default(),
            ended: Count::default(),
            completed: Count::default(),
            failed: Count::default(),
            cancelled: Count::default(),
            expired: Count::default(),
            shed: Count::default(),
            rejected: Count::default(),
            refused_late: Count::default(),
            refused_open: Count::default(),
            panicked: Count::default(),
            overrun: Count::default(),
            queue: Timer::new(),
            run: Timer::new(),
            wait: Timer::new(),
        }
    }

    pub(super) fn ran(&self, queue: Duration, run: Duration) {
        self.queue.record(queue);
        self.run.record(run);
    }

    pub(super) fn waited(&self, time: Duration) {
        self.wait.record(time);
    }

    pub(super) fn read(&self, threads: usize, queued: usize) -> LaneStats {
        // `ended` first: a task in motion then counts as running, and the difference is never negative.
        let ended = self.ended.get();
        LaneStats {
            threads,
            queued,
            running: self.begun.get().saturating_sub(ended),
            submitted: self.submitted.get(),
            completed: self.completed.get(),
            failed: self.failed.get(),
            cancelled: self.cancelled.get(),
            expired: self.expired.get(),
            shed: self.shed.get(),
            rejected: self.rejected.get(),
            refused_late: self.refused_late.get(),
            refused_open: self.refused_open.get(),
            panicked: self.panicked.get(),
            overrun: self.overrun.get(),
            queue: self.queue.times(),
            run: self.run.times(),
            wait: self.wait.times(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_follow_what_was_recorded() {
        let timer = Timer::new();
        assert_eq!(timer.times(), Times::default());
        for micros in 1..=1000_u64 {
            timer.record(Duration::from_micros(micros));
        }
        let read = timer.times();
        assert_eq!(read.count, 1000);
        assert!((read.p50_us - 500.0).abs() <= 5.0, "{read:?}");
        assert!((read.p99_us - 990.0).abs() <= 9.9, "{read:?}");
        assert!((read.max_us - 1000.0).abs() < 1e-9, "{read:?}");
    }

    #[test]
    fn a_day_long_task_keeps_its_exact_maximum() {
        let timer = Timer::new();
        timer.record(Duration::from_secs(86_400));
        assert!((timer.times().max_us - 86_400e6).abs() < 1.0);
    }
}
