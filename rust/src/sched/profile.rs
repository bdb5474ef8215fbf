//! Run-time statistics of the tasks of one name.
//!
//! The first runs give a median, so that a first call that compiles does not distort the estimate. From
//! then on mean and spread are exponential moving averages over about `AVERAGING_WINDOW` tasks, and a
//! single time counts for at most `MAX_OUTLIER_FACTOR` times the mean: one outlier does not cause refusals,
//! while a lasting change is learnt within some tens of tasks.

use super::circuit::Circuit;
use super::stats::Count;
use crate::sync::plain::{Arc, AtomicU64, AtomicUsize, Mutex, Ordering, RwLock};
use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

/// Runs of a name before there is an estimate.
const MIN_RUNS: usize = 8;
/// Window of the moving averages in tasks.
const AVERAGING_WINDOW: f64 = 16.0;
/// Upper bound of a single time, as a multiple of the mean.
const MAX_OUTLIER_FACTOR: f64 = 4.0;
/// Relative step of the 99th percentile.
const P99_STEP: f64 = 0.1;
/// Maximum number of names of a lane with statistics. Tasks of later names run, but without statistics.
const MAX_NAMES: usize = 1024;
/// Time without a measurement after which one task is admitted to measure again; without it a refusal for
/// the run time alone would last for ever.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Running estimate.
#[derive(Default)]
struct History {
    first: [f64; MIN_RUNS],
    runs: usize,
    mean: f64,
    spread: f64,
    p99: f64,
}

impl History {
    fn add(&mut self, nanos: f64) {
        if self.runs < MIN_RUNS {
            self.first[self.runs] = nanos;
            self.runs += 1;
            if self.runs == MIN_RUNS {
                self.begin();
            }
            return;
        }
        let time = nanos.min(MAX_OUTLIER_FACTOR * self.mean);
        let off = (time - self.mean).abs();
        self.mean += (time - self.mean) / AVERAGING_WINDOW;
        self.spread += (off - self.spread) / AVERAGING_WINDOW;
        // In equilibrium when one time in a hundred exceeds it.
        self.p99 *= if nanos > self.p99 {
            1.0 + 0.99 * P99_STEP
        } else {
            1.0 - 0.01 * P99_STEP
        };
    }

    fn begin(&mut self) {
        let median = |times: &mut [f64; MIN_RUNS]| {
            times.sort_unstable_by(f64::total_cmp);
            f64::midpoint(times[MIN_RUNS / 2 - 1], times[MIN_RUNS / 2])
        };
        self.mean = median(&mut self.first);
        // Without the maximum, which may be the first call.
        self.p99 = self.first[MIN_RUNS - 2];
        let mut off = self.first.map(|time| (time - self.mean).abs());
        self.spread = median(&mut off);
    }
}

/// Statistics of one name in one lane.
pub(super) struct Profile {
    pub(super) name: Box<str>,
    /// False for tasks without a name, and beyond `MAX_NAMES`: such tasks have nothing in common to learn
    /// from.
    learns: bool,
    history: Mutex<History>,
    /// Finished tasks.
    runs: AtomicU64,
    /// In nanoseconds; 0 while unknown.
    mean_ns: AtomicU64,
    likely_ns: AtomicU64,
    p99_ns: AtomicU64,
    /// Time at which a task last ended or was admitted to measure.
    measured_ns: AtomicU64,
    /// Tasks running now.
    pub(super) running: AtomicUsize,
    pub(super) circuit: Circuit,
    pub(super) refused_late: Count,
    pub(super) refused_open: Count,
}

impl Profile {
    fn new(name: &str, learns: bool) -> Self {
        Self {
            name: name.into(),
            learns,
            history: Mutex::default(),
            runs: AtomicU64::new(0),
            mean_ns: AtomicU64::new(0),
            likely_ns: AtomicU64::new(0),
            p99_ns: AtomicU64::new(0),
            measured_ns: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            circuit: Circuit::default(),
            refused_late: Count::default(),
            refused_open: Count::default(),
        }
    }

    /// Makes the profile of a name without history.
    pub(super) fn unknown() -> Self {
        Self::new("", false)
    }

    pub(super) fn learns(&self) -> bool {
        self.learns
    }

    // Relaxed, here and below: each number stands for itself.
    pub(super) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Returns the mean run time in nanoseconds, 0 while unknown; estimates the sum of many tasks.
    pub(super) fn mean_ns(&self) -> u64 {
        self.mean_ns.load(Ordering::Relaxed)
    }

    /// Returns mean plus twice the mean deviation in nanoseconds, 0 while unknown; about nine in ten tasks
    /// take no longer.
    pub(super) fn likely_ns(&self) -> u64 {
        self.likely_ns.load(Ordering::Relaxed)
    }

    /// Returns the 99th percentile in nanoseconds, 0 while unknown.
    pub(super) fn p99_ns(&self) -> u64 {
        self.p99_ns.load(Ordering::Relaxed)
    }

    /// Records a task that took `nanos` and ended at `now_ns`.
    pub(super) fn record(&self, nanos: u64, now_ns: u64) {
        if !self.learns {
            return;
        }
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.add(nanos.max(1) as f64);
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.measured_ns.store(now_ns, Ordering::Relaxed);
        if history.runs == MIN_RUNS {
            let mean = history.mean.max(1.0);
            self.mean_ns.store(mean as u64, Ordering::Relaxed);
            self.likely_ns.store(
                2.0f64.mul_add(history.spread, mean) as u64,
                Ordering::Relaxed,
            );
            self.p99_ns.store(history.p99 as u64, Ordering::Relaxed);
        }
    }

    /// Returns true for one task per `MEASURE_INTERVAL`: it is admitted to measure, although it would be
    /// refused for its run time alone.
    pub(super) fn may_measure(&self, now_ns: u64) -> bool {
        let last = self.measured_ns.load(Ordering::Relaxed);
        now_ns.saturating_sub(last) >= MEASURE_INTERVAL.as_nanos() as u64
            && self
                .measured_ns
                .compare_exchange(last, now_ns, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Profiles of one lane by name.
pub(super) struct Profiles {
    known: RwLock<HashMap<Box<str>, Arc<Profile>>>,
    unnamed: Arc<Profile>,
}

impl Profiles {
    pub(super) fn new() -> Self {
        Self {
            known: RwLock::default(),
            unnamed: Arc::new(Profile::new("", false)),
        }
    }

    /// Returns the profile of this name, creating it if the name is new.
    pub(super) fn get_or_insert(&self, name: &str) -> Arc<Profile> {
        if name.is_empty() {
            return self.unnamed.clone();
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(profile) = known.get(name) {
            return profile.clone();
        }
        let full = known.len() >= MAX_NAMES;
        drop(known);
        if full {
            return Arc::new(Profile::new(name, false));
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NAMES && !known.contains_key(name) {
            return Arc::new(Profile::new(name, false));
        }
        known
            .entry(name.into())
            .or_insert_with(|| Arc::new(Profile::new(name, true)))
            .clone()
    }

    /// Returns the profile of this name, if there is one.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Profile>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned()
    }

    /// Returns all profiles, sorted by name.
    pub(super) fn sorted(&self) -> Vec<Arc<Profile>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;

    fn after(times: impl IntoIterator<Item = u64>) -> Profile {
        let profile = Profile::new("test", true);
        for time in times {
            profile.record(time, 0);
        }
        profile
    }

    #[test]
    fn nothing_is_said_before_there_is_something_to_say() {
        let profile = after([5_000; MIN_RUNS - 1]);
        assert_eq!((profile.mean_ns(), profile.likely_ns()), (0, 0));
        profile.record(5_000, 0);
        assert_eq!((profile.mean_ns(), profile.likely_ns()), (5_000, 5_000));
    }

    #[test]
    fn a_first_call_that_compiles_and_a_hiccup_say_little() {
        let compiled = after([10_000_000].into_iter().chain([1_000; MIN_RUNS - 1]));
        assert_eq!((compiled.mean_ns(), compiled.p99_ns()), (1_000, 1_000));
        let hiccup = after([1_000; 100].into_iter().chain([10_000_000]));
        assert!(hiccup.mean_ns() < 1_300, "{}", hiccup.mean_ns());
        assert!(hiccup.likely_ns() < 1_700, "{}", hiccup.likely_ns());
    }

    #[test]
    fn a_lasting_change_is_learnt_in_both_directions() {
        for (before, then) in [(1_000, 100_000), (100_000, 1_000)] {
            let changed = after([before; 100].into_iter().chain([then; 120]));
            let off = changed.mean_ns().abs_diff(then);
            assert!(off < then / 10, "{before}, {then}: {}", changed.mean_ns());
        }
    }

    #[test]
    fn the_spread_covers_nine_in_ten_and_the_percentile_nearly_all() {
        // 5 to 20, uniformly, in an order with a long period.
        let times: Vec<u64> = (0..20_000_u64)
            .map(|n| 5_000 + n * 6_151 % 15_000)
            .collect();
        let profile = after(times.iter().copied());
        let share =
            |limit| times.iter().filter(|&&time| time <= limit).count() as f64 / times.len() as f64;
        assert!(share(profile.likely_ns()) > 0.85, "{}", profile.likely_ns());
        assert!(share(profile.p99_ns()) > 0.95, "{}", profile.p99_ns());
        assert!(profile.p99_ns() < 30_000, "{}", profile.p99_ns());
    }

    #[test]
    fn names_beyond_the_bound_have_no_history_and_take_no_memory() {
        let profiles = Profiles::new();
        for n in 0..MAX_NAMES + 10 {
            let profile = profiles.get_or_insert(&format!("task {n}"));
            assert_eq!(profile.learns(), n < MAX_NAMES);
            assert_eq!(&*profile.name, format!("task {n}"));
        }
        assert_eq!(profiles.sorted().len(), MAX_NAMES);
        assert!(!profiles.get_or_insert("").learns() && profiles.get("").is_none());
    }

    #[test]
    fn one_task_a_second_may_measure_again() {
        let profile = after([1_000; MIN_RUNS]);
        let second = MEASURE_INTERVAL.as_nanos() as u64;
        assert!(!profile.may_measure(second - 1));
        assert!(profile.may_measure(second));
        assert!(!profile.may_measure(second + 1));
        assert!(profile.may_measure(2 * second));
    }
}
