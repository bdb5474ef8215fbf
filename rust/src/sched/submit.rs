//! Submission of tasks to a lane.

use super::Scheduler;
use super::dropped::Reason;
use super::queue::{Ahead, Pushed, Refusal};
use super::task::{Deadline, Job, Lane, Record, Task, Ticket};
use crate::error::{Error, Result};
use crate::sync::plain::Arc;
use std::time::Instant;

/// Returns the error of a submission after the stop.
pub(super) fn stopped(name: &str) -> Error {
    Error::Scheduler(format!(
        "task {name:?} came after the scheduler was shut down; submit before shutdown, or make a new scheduler"
    ))
}

impl Scheduler {
    /// Queues `job`. With a `deadline` it precedes all tasks with a later one or none, and is dropped if it
    /// has not started by then.
    ///
    /// A full queue first drops its expired tasks on this thread to make room.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when the queue is full, when the job would probably end after its deadline, or
    /// when blocking calls of the same name hang; [`Error::Scheduler`] after [`stop`](Self::stop). The job is
    /// then dropped without being called.
    pub fn submit(&self, lane: Lane, deadline: Deadline, name: &str, job: Job) -> Result<Ticket> {
        self.enqueue(lane, deadline, name, job, true)
    }

    /// Like [`submit`](Self::submit), for the next step of a request whose first step was accepted: the
    /// queue bound does not apply, since refusing the step would waste the earlier ones.
    ///
    /// # Errors
    /// As for `submit`, except that a full queue is not an error.
    pub fn submit_next(
        &self,
        lane: Lane,
        deadline: Deadline,
        name: &str,
        job: Job,
    ) -> Result<Ticket> {
        self.enqueue(lane, deadline, name, job, false)
    }

    fn enqueue(
        &self,
        lane: Lane,
        deadline: Deadline,
        name: &str,
        job: Job,
        bounded: bool,
    ) -> Result<Ticket> {
        let shared = &*self.shared;
        let queued = Instant::now();
        let now_ns = shared.nanos(queued);
        let key = shared.key(deadline);
        let profile = shared.profiles(lane).get_or_insert(name);
        let record = Arc::new(Record::new(lane, key));
        let ticket = Ticket {
            record: record.clone(),
            shared: Arc::downgrade(&self.shared),
        };
        let queue = shared.queue(lane);
        let counters = shared.counters(lane);
        let mut task = Task {
            record,
            job,
            cost_ns: profile.mean_ns(),
            profile: profile.clone(),
            queued,
            probe: None,
        };
        if key.deadline_ns <= now_ns && !queue.is_stopped() {
            counters.submitted.increment();
            let error = shared.expired(name, lane, key, queued, queued);
            shared.drop_task(task, Reason::Expired(error));
            return Ok(ticket);
        }
        task.probe = shared
            .check_circuit(lane, &profile, now_ns)
            .inspect_err(|_| counters.refused_open.increment())?;
        // Counted before it can run, so that no reader sees more ends than submissions.
        counters.submitted.increment();
        let mut prediction = None;
        let mut admit = |ahead: Ahead| {
            prediction = shared.predict_late(lane, &profile, key, ahead, now_ns);
            prediction.is_none()
        };
        let judged = shared.admission && key.deadline_ns != u64::MAX;
        let Pushed { refused, expired } = queue.push(
            key,
            task,
            now_ns,
            bounded,
            if judged { Some(&mut admit) } else { None },
        );
        for task in expired {
            let (name, key) = (&task.profile.name, task.record.key);
            let error = shared.expired(name, lane, key, task.queued, queued);
            shared.drop_task(task, Reason::Expired(error));
        }
        let Some((task, refusal)) = refused else {
            return Ok(ticket);
        };
        counters.submitted.decrement();
        if let Some(probe) = task.probe {
            profile.circuit.finish_probe(probe, false);
        }
        Err(match refusal {
            Refusal::Late => {
                let prediction = prediction.unwrap_or_default();
                shared.late_error(lane, &profile, &prediction, key.deadline_ns - now_ns)
            }
            Refusal::Full { queued } => {
                counters.rejected.increment();
                Error::QueueFull {
                    lane: lane.name(),
                    queued,
                    limit: queue.bound(),
                }
            }
            Refusal::Stopped => {
                counters.rejected.increment();
                stopped(name)
            }
        })
    }
}
