//! Whether a task is let in: not if it would end too late, and not while calls of its name hang.

use super::circuit::Passage;
use super::predict::wait_ns;
use super::profile::Profile;
use super::queue::Ahead;
use super::task::{Key, Lane};
use super::{Scheduler, Shared};
use crate::error::{Error, Result};
use crate::sync::plain::{Arc, Ordering};
use std::time::{Duration, Instant};

/// Without a limit of its own a name's limit is this many times its 99th percentile,
const USUAL: u64 = 10;
/// but no less than this,
const AT_LEAST: Duration = Duration::from_secs(1);
/// and this while nothing is known of it.
const UNKNOWN: Duration = Duration::from_secs(10);

/// When a task would end if it came now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outlook {
    /// Until a thread is free for it.
    pub queue: Duration,
    /// What tasks of its name usually take, the spread included; none if too few have run to say.
    pub run: Option<Duration>,
    /// Queued tasks that go before it.
    pub ahead: usize,
}

impl Outlook {
    /// Until its end, in nanoseconds.
    fn end_ns(&self) -> u64 {
        (self.queue + self.run.unwrap_or_default()).as_nanos() as u64
    }
}

impl Shared {
    /// When a task of this name would end that finds this.
    fn outlook(&self, lane: Lane, profile: &Profile, ahead: Ahead, now_ns: u64) -> Outlook {
        let (ahead, queue_ns) = match ahead {
            Ahead::Free => (0, 0),
            Ahead::Queued(before) => (
                before.tasks,
                wait_ns(self.clocks(lane), before.cost_ns, now_ns),
            ),
        };
        let likely = profile.likely_ns();
        Outlook {
            queue: Duration::from_nanos(queue_ns),
            run: (likely > 0).then(|| Duration::from_nanos(likely)),
            ahead,
        }
    }

    /// Why a task with this key should not be taken: it would end after its deadline.
    pub(super) fn too_late(
        &self,
        lane: Lane,
        profile: &Profile,
        key: Key,
        ahead: Ahead,
        now_ns: u64,
    ) -> Option<Outlook> {
        let allowed_ns = key.deadline_ns.saturating_sub(now_ns);
        let outlook = self.outlook(lane, profile, ahead, now_ns);
        if outlook.end_ns() <= allowed_ns {
            return None;
        }
        let alone_ns = profile.likely_ns();
        let measure = alone_ns > allowed_ns
            && outlook.queue.as_nanos() < u128::from(allowed_ns)
            && profile.may_probe(now_ns);
        (!measure).then_some(outlook)
    }

    /// Counts the refusal of a task that would end too late, and words it.
    pub(super) fn refuse_late(
        &self,
        lane: Lane,
        profile: &Profile,
        outlook: &Outlook,
        allowed_ns: u64,
    ) -> Error {
        self.meter(lane).refused_late.up();
        profile.refused_late.up();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let run = match outlook.run {
            Some(run) => format!("then its usual run time of {:.3} ms", ms(run)),
            None => "then a run time not known yet".into(),
        };
        Error::Overloaded(format!(
            "task {:?} would end in {:.3} ms, but its deadline allows {:.3} ms: predicted from {:.3} ms until one \
             of the {} threads of the {} lane is free, with {} queued tasks ahead, {run}; give it more time, ask \
             for less work, send less, or give the lane more threads",
            profile.name,
            outlook.end_ns() as f64 / 1e6,
            allowed_ns as f64 / 1e6,
            ms(outlook.queue),
            self.queue(lane).threads(),
            lane.name(),
            outlook.ahead,
        ))
    }

    /// How long a task of this name may run before it counts as hanging, in nanoseconds.
    pub(super) fn hang_ns(&self, profile: &Profile) -> u64 {
        let limit = match (self.hang, profile.p99_ns()) {
            (Some(limit), _) => limit,
            (None, 0) => UNKNOWN,
            (None, p99_ns) => Duration::from_nanos(p99_ns.saturating_mul(USUAL)).max(AT_LEAST),
        };
        limit.as_nanos().min(u128::from(u64::MAX)) as u64
    }

    /// Lets a task through the circuit of its name; true if it is the probe.
    ///
    /// # Errors
    /// [`Error::Overloaded`] while it is open.
    pub(super) fn pass(&self, lane: Lane, profile: &Profile, now_ns: u64) -> Result<bool> {
        let limit = self.hang_limit;
        let quiet = || {
            // Relaxed: a task that begins this moment does not hang yet.
            profile.running.load(Ordering::Relaxed) < limit && !profile.circuit.is_tripped()
        };
        if lane != Lane::Blocking || !profile.learns() || quiet() {
            return Ok(false);
        }
        let hang_ns = self.hang_ns(profile);
        let id = profile_id(profile);
        let hanging = self
            .clocks(lane)
            .iter()
            .map(super::predict::Clock::read)
            .filter(|shown| shown.profile == id && now_ns.saturating_sub(shown.start_ns) > hang_ns)
            .count();
        match profile.circuit.pass(hanging, limit, now_ns) {
            Passage::Free => Ok(false),
            Passage::Probe => Ok(true),
            Passage::Refused { since_ns, probing } => {
                profile.refused_open.up();
                let then = if probing {
                    "it closes if the one task that was let through to find out ends in time"
                } else {
                    "it closes when fewer hang and one task that is then let through ends in time"
                };
                Err(Error::Overloaded(format!(
                    "the circuit of {:?} in the {} lane has been open for {:.3} ms: {hanging} of its calls have \
                     run for more than {:.0} ms, and {limit} of {} threads is the most that one name may hold so; \
                     {then}; look at what they call, or raise hang_ms if that is how long it takes",
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

/// What stands for a profile in a clock.
pub(super) fn profile_id(profile: &Profile) -> usize {
    std::ptr::from_ref(profile) as usize
}

impl Scheduler {
    /// When a task of this name would end if it came to `lane` now, with this deadline.
    ///
    /// It costs what a refused [`submit`](Self::submit) does, and promises nothing: others come meanwhile.
    #[must_use]
    pub fn predict(&self, lane: Lane, name: &str, deadline: Option<Instant>) -> Outlook {
        let shared = &*self.shared;
        let now_ns = shared.nanos(Instant::now());
        let key = Key {
            deadline_ns: shared.deadline_ns(deadline),
            sequence: u64::MAX,
        };
        let ahead = shared.queue(lane).ahead(&key);
        match shared.profiles(lane).find(name) {
            Some(profile) => shared.outlook(lane, &profile, ahead, now_ns),
            None => shared.outlook(lane, &Arc::new(Profile::unknown()), ahead, now_ns),
        }
    }
}
