//! The way into the queue.

use super::Scheduler;
use super::dropped::Reason;
use super::queue::{Ahead, Pushed, Refusal};
use super::task::{Job, Lane, Record, Task, Ticket};
use crate::error::{Error, Result};
use crate::sync::plain::Arc;
use std::time::Instant;

/// Why nothing is taken any more.
pub(super) fn stopped(name: &str) -> Error {
    Error::Scheduler(format!(
        "task {name:?} came after the scheduler was shut down; submit before shutdown, or make a new scheduler"
    ))
}

impl Scheduler {
    /// Queues `job`. With a `deadline` it goes before all that have a later one or none, and is dropped
    /// if it has not started by then.
    ///
    /// When the queue is full, tasks that have expired are dropped on this thread to make room.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when the queue is full, when the job would probably end after its deadline, or
    /// when blocking calls of the same name hang; [`Error::Scheduler`] after [`stop`](Self::stop). The job is
    /// then dropped without being called.
    pub fn submit(
        &self,
        lane: Lane,
        deadline: Option<Instant>,
        name: &str,
        job: Job,
    ) -> Result<Ticket> {
        self.enqueue(lane, deadline, name, job, true)
    }

    /// Like [`submit`](Self::submit), for the next step of something that was taken on before: the queue's bound
    /// does not apply, since to refuse the step would waste those that were done.
    ///
    /// # Errors
    /// Those of `submit`, but never because the queue is full.
    pub fn submit_next(
        &self,
        lane: Lane,
        deadline: Option<Instant>,
        name: &str,
        job: Job,
    ) -> Result<Ticket> {
        self.enqueue(lane, deadline, name, job, false)
    }

    fn enqueue(
        &self,
        lane: Lane,
        deadline: Option<Instant>,
        name: &str,
        job: Job,
        bounded: bool,
    ) -> Result<Ticket> {
        let shared = &*self.shared;
        let queued = Instant::now();
        let now_ns = shared.nanos(queued);
        let key = shared.key(deadline);
        let profile = shared.profiles(lane).of(name);
        let record = Arc::new(Record::new(lane, key));
        let ticket = Ticket {
            record: record.clone(),
            shared: Arc::downgrade(&self.shared),
        };
        let queue = shared.queue(lane);
        let meter = shared.meter(lane);
        let mut task = Task {
            record,
            job,
            cost_ns: profile.mean_ns(),
            profile: profile.clone(),
            queued,
            probe: false,
        };
        if key.deadline_ns <= now_ns && !queue.is_stopped() {
            meter.submitted.up();
            let error = shared.expired(name, lane, key, queued, queued);
            shared.drop_task(task, Reason::Expired(error));
            return Ok(ticket);
        }
        task.probe = shared
            .pass(lane, &profile, now_ns)
            .inspect_err(|_| meter.refused_open.up())?;
        // Counted before it can run, so that no reader sees more ends than submissions.
        meter.submitted.up();
        let mut outlook = None;
        let mut judge = |ahead: Ahead| {
            outlook = shared.too_late(lane, &profile, key, ahead, now_ns);
            outlook.is_none()
        };
        let judged = shared.admission && key.deadline_ns != u64::MAX;
        let Pushed { refused, expired } = queue.push(
            key,
            task,
            now_ns,
            bounded,
            if judged { Some(&mut judge) } else { None },
        );
        for task in expired {
            let (name, key) = (&task.profile.name, task.record.key);
            let error = shared.expired(name, lane, key, task.queued, queued);
            shared.drop_task(task, Reason::Expired(error));
        }
        let Some((task, refusal)) = refused else {
            return Ok(ticket);
        };
        meter.submitted.down();
        if task.probe {
            profile.circuit.probed(false);
        }
        Err(match refusal {
            Refusal::Late => {
                let outlook = outlook.unwrap_or_default();
                shared.refuse_late(lane, &profile, &outlook, key.deadline_ns - now_ns)
            }
            Refusal::Full => {
                meter.rejected.up();
                Error::Overloaded(format!(
                    "the {} lane already holds {} queued tasks, which is its bound; send less, raise \
                     queue_bound, or give the lane more threads",
                    lane.name(),
                    queue.bound()
                ))
            }
            Refusal::Stopped => {
                meter.rejected.up();
                stopped(name)
            }
        })
    }
}
