//! Inline execution: work that runs on its caller's thread in the slot of an idle worker.

use super::queue::Ahead;
use super::task::{Deadline, Lane, Record};
use super::worker::{self, Running, Worker};
use super::{Scheduler, Shared};
use crate::error::{Error, Result};
use crate::sync::plain::Arc;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Instant;

/// Result of an attempt to run work inline.
#[derive(Debug)]
pub enum RunInline<R, F> {
    /// The work ran, with this result.
    Done(R),
    /// No worker of the lane is idle; the work is returned.
    NoIdleWorker(F),
}

/// Permit to run inline in a borrowed slot, returned on drop.
struct InlinePermit {
    me: Rc<Worker>,
    /// Worker that the thread was before, if any.
    before: Option<Rc<Worker>>,
}

impl InlinePermit {
    // No record in `WaitGraph` is needed: the inline work of a blocking worker in the compute lane depends
    // on compute tasks only, and these never on blocking ones, so no cycle of waits leads through it.
    fn acquire(shared: &Arc<Shared>, lane: Lane, slot: usize) -> Self {
        let me = Rc::new(Worker::new(shared.clone(), lane, slot));
        let before = worker::replace_current_worker(Some(me.clone()));
        Self { me, before }
    }
}

impl Drop for InlinePermit {
    fn drop(&mut self) {
        worker::replace_current_worker(self.before.take());
        self.me.shared.queue(self.me.lane).return_slot(self.me.slot);
    }
}

impl Scheduler {
    /// Returns the number of idle threads of `lane`. It reserves none.
    #[must_use]
    pub fn idle_threads(&self, lane: Lane) -> usize {
        self.shared.queue(lane).idle()
    }

    /// Runs `work` on this thread, if a worker of `lane` is idle whose slot can be borrowed. The work then
    /// counts as a task of the lane in every way, and may itself wait as a worker may. On a worker of the
    /// same lane it always runs, as part of the calling task.
    ///
    /// # Errors
    /// - [`Error::DeadlineExceeded`] when the deadline has passed.
    /// - [`Error::Overloaded`] as for [`submit`](Self::submit), but never for a full queue.
    /// - [`Error::Scheduler`] on a compute worker, unless `lane` is its own lane, since it might have to wait;
    ///   and on a worker of the same lane after [`stop`](Self::stop).
    ///
    /// # Panics
    /// Resumes the panic of `work`, after it was counted.
    pub fn run_inline<R, F: FnOnce(Running<'_>) -> R>(
        &self,
        lane: Lane,
        deadline: Deadline,
        name: &str,
        work: F,
    ) -> Result<RunInline<R, F>> {
        let shared = &self.shared;
        let before = worker::current_worker();
        let own = before
            .as_ref()
            .filter(|me| Arc::ptr_eq(&me.shared, shared) && me.lane == lane);
        if own.is_none() && before.as_ref().is_some_and(|me| me.lane == Lane::Compute) {
            return Err(Error::Scheduler(format!(
                "a compute worker may run tasks of its own lane only, not of the {} lane{}: it might have to wait \
                 for a thread there; submit the task, and continue in a callback of its result",
                lane.name(),
                if lane == Lane::Compute {
                    " of another scheduler"
                } else {
                    ""
                },
            )));
        }
        let queue = shared.queue(lane);
        let counters = shared.counters(lane);
        let start = Instant::now();
        let now_ns = shared.nanos(start);
        let key = shared.key(deadline);
        let profile = shared.profiles(lane).get_or_insert(name);
        if own.is_some() && queue.is_stopped() {
            counters.rejected.increment();
            return Err(super::submit::stopped(name));
        }
        if key.deadline_ns <= now_ns && !queue.is_stopped() {
            counters.submitted.increment();
            counters.expired.increment();
            return Err(shared.expired(name, lane, key, start, start));
        }
        let probe = shared
            .check_circuit(lane, &profile, now_ns)
            .inspect_err(|_| {
                counters.refused_open.increment();
            })?;
        let slot = if own.is_some() {
            None
        } else if let Some(slot) = queue.borrow_slot() {
            Some(slot)
        } else {
            if let Some(probe) = probe {
                profile.circuit.finish_probe(probe, false);
            }
            return Ok(RunInline::NoIdleWorker(work));
        };
        if shared.admission
            && key.deadline_ns != u64::MAX
            && let Some(prediction) = shared.predict_late(lane, &profile, key, Ahead::Free, now_ns)
        {
            if let Some(slot) = slot {
                queue.return_slot(slot);
            }
            if let Some(probe) = probe {
                profile.circuit.finish_probe(probe, false);
            }
            return Err(shared.late_error(lane, &profile, &prediction, key.deadline_ns - now_ns));
        }
        counters.submitted.increment();
        let record = Arc::new(Record::new(lane, key));
        let task = worker::StartedTask {
            record: &record,
            profile: &profile,
            queued: start,
            start,
            probe,
        };
        let outcome = match (own, slot) {
            (Some(me), _) => me.execute(&task, work),
            (None, Some(slot)) => {
                let permit = InlinePermit::acquire(shared, lane, slot);
                let outcome = permit.me.execute(&task, work);
                if shared.is_forked() {
                    // The child of a fork inside `work`: the lane and its locks belong to the parent.
                    worker::replace_current_worker(None);
                    std::mem::forget(permit);
                }
                outcome
            }
            (None, None) => unreachable!("a slot was borrowed"),
        };
        record.ended.fire();
        match outcome {
            Ok(result) => Ok(RunInline::Done(result)),
            Err(panic) => resume_unwind(panic),
        }
    }
}
