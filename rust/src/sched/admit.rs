//! Admission control: refuses tasks that would miss their deadline and tasks of names whose calls hang.

use super::circuit::{CircuitDecision, Probe};
use super::predict::wait_ns;
use super::profile::Profile;
use super::queue::Ahead;
use super::task::{Deadline, Key, Lane};
use super::{Scheduler, Shared};
use crate::error::{Error, Result};
use crate::sync::plain::{Arc, Ordering};
use std::time::{Duration, Instant};

/// Default hang limit of a name, as a multiple of its 99th percentile.
const HANG_P99_FACTOR: u64 = 10;
/// Lower bound of the default hang limit.
const MIN_HANG: Duration = Duration::from_secs(1);
/// Hang limit of a name without enough runs.
const HANG_WHEN_UNKNOWN: Duration = Duration::from_secs(10);

/// Prediction for a task that is submitted now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prediction {
    /// Time until a thread is free for it.
    pub queue: Duration,
    /// Usual run time of its name, including the spread; `None` with too few runs.
    pub run: Option<Duration>,
    /// Queued tasks that start before it.
    pub ahead: usize,
}

impl Prediction {
    /// Returns the time until its end, in nanoseconds.
    fn end_ns(&self) -> u64 {
        (self.queue + self.run.unwrap_or_default()).as_nanos() as u64
    }
}

impl Shared {
    /// Predicts the end of a task of this name, given the work ahead of it.
    fn prediction(&self, lane: Lane, profile: &Profile, ahead: Ahead, now_ns: u64) -> Prediction {
        let (ahead, queue_ns) = match ahead {
            Ahead::Free => (0, 0),
            Ahead::Queued(before) => (
                before.tasks,
                wait_ns(self.statuses(lane), before.cost_ns, now_ns),
            ),
        };
        let likely = profile.likely_ns();
        Prediction {
            queue: Duration::from_nanos(queue_ns),
            run: (likely > 0).then(|| Duration::from_nanos(likely)),
            ahead,
        }
    }

    /// Returns the prediction if the task would end after its deadline and should be refused.
    pub(super) fn predict_late(
        &self,
        lane: Lane,
        profile: &Profile,
        key: Key,
        ahead: Ahead,
        now_ns: u64,
    ) -> Option<Prediction> {
        let allowed_ns = key.deadline_ns.saturating_sub(now_ns);
        let prediction = self.prediction(lane, profile, ahead, now_ns);
        if prediction.end_ns() <= allowed_ns {
            return None;
        }
        let alone_ns = profile.likely_ns();
        let measure = alone_ns > allowed_ns
            && prediction.queue.as_nanos() < u128::from(allowed_ns)
            && profile.may_measure(now_ns);
        (!measure).then_some(prediction)
    }

    /// Counts the refusal of a task that would miss its deadline, and returns its error.
    pub(super) fn late_error(
        &self,
        lane: Lane,
        profile: &Profile,
        prediction: &Prediction,
        allowed_ns: u64,
    ) -> Error {
        self.counters(lane).refused_late.increment();
        profile.refused_late.increment();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let run = match prediction.run {
            Some(run) => format!("then its usual run time of {:.3} ms", ms(run)),
            None => "then a run time not known yet".into(),
        };
        Error::Overloaded(format!(
            "task {:?} would end in {:.3} ms, but its deadline allows {:.3} ms: predicted from {:.3} ms until one \
             of the {} threads of the {} lane is free, with {} queued tasks ahead, {run}; give it more time, ask \
             for less work, send less, or give the lane more threads",
            profile.name,
            prediction.end_ns() as f64 / 1e6,
            allowed_ns as f64 / 1e6,
            ms(prediction.queue),
            self.queue(lane).threads(),
            lane.name(),
            prediction.ahead,
        ))
    }

    /// Returns the run time in nanoseconds beyond which a task of this name counts as hanging.
    pub(super) fn hang_ns(&self, profile: &Profile) -> u64 {
        let limit = match (self.hang, profile.p99_ns()) {
            (Some(limit), _) => limit,
            (None, 0) => HANG_WHEN_UNKNOWN,
            (None, p99_ns) => {
                Duration::from_nanos(p99_ns.saturating_mul(HANG_P99_FACTOR)).max(MIN_HANG)
            }
        };
        limit.as_nanos().min(u128::from(u64::MAX)) as u64
    }

    /// Admits a task through the circuit of its name. Returns its number if it is a probe.
    ///
    /// # Errors
    /// [`Error::Overloaded`] while the circuit is open.
    pub(super) fn check_circuit(
        &self,
        lane: Lane,
        profile: &Profile,
        now_ns: u64,
    ) -> Result<Option<Probe>> {
        let limit = self.hang_limit;
        let unaffected = || {
            // Relaxed: a task that starts at this moment does not hang yet.
            profile.running.load(Ordering::Relaxed) < limit && !profile.circuit.is_tripped()
        };
        if lane != Lane::Blocking || !profile.learns() || unaffected() {
            return Ok(None);
        }
        let hang_ns = self.hang_ns(profile);
        let id = profile_id(profile);
        let hanging = self
            .statuses(lane)
            .iter()
            .map(super::predict::WorkerStatus::read)
            .filter(|shown| shown.profile == id && now_ns.saturating_sub(shown.start_ns) > hang_ns)
            .count();
        match profile.circuit.decide(hanging, limit, now_ns, hang_ns) {
            CircuitDecision::Allow => Ok(None),
            CircuitDecision::Probe(probe) => Ok(Some(probe)),
            CircuitDecision::Reject { since_ns, probing } => {
                profile.refused_open.increment();
                let then = if probing {
                    "it closes if the one task that was let through to find out ends in time"
                } else {
                    "it closes when fewer hang and one task that is then let through ends in time"
                };
                Err(Error::Overloaded(format!(
                    "the circuit of {:?} in the {} lane has been open for {:.3} ms: {hanging} of its calls have \
                     run for more than {:.0} ms, and {limit} of {} threads is the most that one name may hold so; \
                     {then}; look at what they call, or raise that limit if calls really take so long",
                    profile.name,
                    lane.name(),
                    now_ns.saturating_sub(since_ns) as f64 / 1e6,
                    hang_ns as f64 / 1e6,
                    self.queue(lane).threads(),
                )))
            }
        }
    }
}

/// Returns the identity of a profile in a worker's status.
pub(super) fn profile_id(profile: &Profile) -> usize {
    std::ptr::from_ref(profile) as usize
}

impl Scheduler {
    /// Predicts the end of a task of this name, if it were submitted to `lane` now with this deadline.
    ///
    /// Costs as much as a refused [`submit`](Self::submit) and reserves nothing: other tasks may be
    /// submitted meanwhile.
    #[must_use]
    pub fn predict(&self, lane: Lane, name: &str, deadline: Deadline) -> Prediction {
        let shared = &*self.shared;
        let now_ns = shared.nanos(Instant::now());
        let key = Key {
            deadline_ns: shared.deadline_ns(deadline),
            sequence: u64::MAX,
        };
        let ahead = shared.queue(lane).ahead(&key);
        match shared.profiles(lane).get(name) {
            Some(profile) => shared.prediction(lane, &profile, ahead, now_ns),
            None => shared.prediction(lane, &Arc::new(Profile::unknown()), ahead, now_ns),
        }
    }
}
