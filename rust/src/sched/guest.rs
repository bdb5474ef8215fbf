//! Work that runs on its caller's thread, in a seat of the lane.

use super::queue::Ahead;
use super::task::{End, Job, Lane, Record, Turn};
use super::worker::{self, Running, Worker};
use super::{Scheduler, Shared};
use crate::error::{Error, Result};
use crate::sync::plain::Arc;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Instant;

/// What became of work that wanted to run here.
#[derive(Debug)]
pub enum Seated<R, F> {
    /// It ran, and this is its result.
    Ran(R),
    /// All threads of the lane are taken, so here it is again.
    Full(F),
}

/// A caller in the seat of an idle thread, until dropped.
struct Guest {
    me: Rc<Worker>,
    /// What the thread was before: nothing, or a worker elsewhere.
    before: Option<Rc<Worker>>,
}

impl Guest {
    // Nothing needs to be noted in `Waits`: what a blocking worker runs in the compute lane depends on compute
    // tasks only, and these never on blocking ones, so no circle of waits leads through a guest.
    fn sit(shared: &Arc<Shared>, lane: Lane, place: usize) -> Self {
        let me = Rc::new(Worker::new(shared.clone(), lane, place));
        let before = worker::become_worker(Some(me.clone()));
        Self { me, before }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        worker::become_worker(self.before.take());
        self.me.shared.queue(self.me.lane).leave(self.me.seat);
    }
}

impl Scheduler {
    /// How many threads of `lane` are idle. It promises nothing: others come meanwhile.
    #[must_use]
    pub fn idle(&self, lane: Lane) -> usize {
        self.shared.queue(lane).idle()
    }

    /// Runs `work` on this thread, if a thread of `lane` is idle whose seat it can take meanwhile; it then
    /// counts as one of the lane's tasks in every way, and may itself wait as a worker may. On a worker of the
    /// same lane it always runs, as part of the task that calls.
    ///
    /// # Errors
    /// - [`Error::DeadlineExceeded`] when the deadline has passed.
    /// - [`Error::Overloaded`] as for [`submit`](Self::submit), but never for a full queue.
    /// - [`Error::Scheduler`] on a compute worker, unless `lane` is its own lane, since it might have to wait;
    ///   and on a worker of the same lane after [`stop`](Self::stop).
    ///
    /// # Panics
    /// With what `work` panicked with, after that was counted.
    pub fn run_here<R, F: FnOnce(Running<'_>) -> R>(
        &self,
        lane: Lane,
        deadline: Option<Instant>,
        name: &str,
        work: F,
    ) -> Result<Seated<R, F>> {
        let shared = &self.shared;
        let before = worker::me();
        let own = before
            .as_ref()
            .filter(|me| Arc::ptr_eq(&me.shared, shared) && me.lane == lane);
        if own.is_none() && before.as_ref().is_some_and(|me| me.lane == Lane::Compute) {
            return Err(Error::Scheduler(format!(
                "a compute worker may run tasks of its own lane only, not of the {} lane{}: it might have to wait \
                 for a thread there; submit the task, and go on when its result is there \
                 (Future.add_done_callback)",
                lane.name(),
                if lane == Lane::Compute {
                    " of another scheduler"
                } else {
                    ""
                },
            )));
        }
        let queue = shared.queue(lane);
        let meter = shared.meter(lane);
        let start = Instant::now();
        let now_ns = shared.nanos(start);
        let key = shared.key(deadline);
        let profile = shared.profiles(lane).of(name);
        if own.is_some() && queue.is_stopped() {
            meter.rejected.up();
            return Err(super::submit::stopped(name));
        }
        if key.deadline_ns <= now_ns && !queue.is_stopped() {
            meter.submitted.up();
            meter.expired.up();
            return Err(shared.expired(name, lane, key, start, start));
        }
        let probe = shared.pass(lane, &profile, now_ns).inspect_err(|_| {
            meter.refused_open.up();
        })?;
        let place = if own.is_some() {
            None
        } else if let Some(place) = queue.enter() {
            Some(place)
        } else {
            if probe {
                profile.circuit.probed(false);
            }
            return Ok(Seated::Full(work));
        };
        if shared.admission
            && key.deadline_ns != u64::MAX
            && let Some(outlook) = shared.too_late(lane, &profile, key, Ahead::Free, now_ns)
        {
            if let Some(place) = place {
                queue.leave(place);
            }
            if probe {
                profile.circuit.probed(false);
            }
            return Err(shared.refuse_late(lane, &profile, &outlook, key.deadline_ns - now_ns));
        }
        meter.submitted.up();
        let record = Arc::new(Record::new(lane, key));
        let task = worker::Begun {
            record: &record,
            profile: &profile,
            queued: start,
            start,
            probe,
        };
        let outcome = match (own, place) {
            (Some(me), _) => me.perform(&task, work),
            (None, Some(place)) => {
                let guest = Guest::sit(shared, lane, place);
                let outcome = guest.me.perform(&task, work);
                if shared.is_forked() {
                    // The child of a fork inside `work`: the lane and its locks stayed with the parent.
                    worker::become_worker(None);
                    std::mem::forget(guest);
                }
                outcome
            }
            (None, None) => unreachable!("a seat was taken"),
        };
        record.ended.fire();
        match outcome {
            Ok(result) => Ok(Seated::Ran(result)),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Runs `work` on this thread if it can at once ([`run_here`](Self::run_here)), otherwise queues it and waits
    /// for its end, or until the deadline passes before its start.
    ///
    /// # Errors
    /// Those of `run_here`, [`submit`](Self::submit) and [`wait()`](super::wait()); [`Error::DeadlineExceeded`] or
    /// [`Error::Scheduler`] if it was dropped from the queue.
    ///
    /// # Panics
    /// With what `work` panicked with.
    pub fn run<R: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Option<Instant>,
        name: &str,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R> {
        let work = move |running: Running<'_>| {
            let result = catch_unwind(AssertUnwindSafe(work));
            running.end(if result.is_ok() {
                End::Completed
            } else {
                End::Panicked
            });
            result
        };
        let result = match self.run_here(lane, deadline, name, work)? {
            Seated::Ran(result) => result,
            Seated::Full(work) => {
                let (to, from) = mpsc::sync_channel(1);
                let job: Job = Box::new(move |turn| {
                    let told = match turn {
                        Turn::Run(running) => Ok(work(running)),
                        Turn::Expired(dropped) | Turn::Refused(dropped) => Err(dropped.error()),
                        Turn::Cancelled | Turn::Stopped => Err(Error::Scheduler(
                            "the scheduler was shut down, and its queue emptied, before the task began"
                                .into(),
                        )),
                    };
                    // The caller waits for it, or has given up.
                    drop(to.send(told));
                });
                self.submit(lane, deadline, name, job)?
                    .wait_or_expire(deadline)?;
                from.try_recv()
                    .expect("whoever ends the task tells, and it has ended")?
            }
        };
        result.or_else(|panic| resume_unwind(panic))
    }
}
