//! Tasks that end without running, and their accounting.

use super::Shared;
use super::stats::{Count, LaneCounters};
use super::task::{JobCall, Task};
use crate::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Reason for which a task does not run.
pub(super) enum Reason {
    /// Its deadline passed in the queue.
    Expired(Error),
    /// Calls of its name hang.
    Refused(Error),
    /// Its ticket was cancelled.
    Cancelled,
    /// The scheduler was stopped and its queue emptied.
    Stopped,
}

/// Argument of a job that is dropped with an error.
///
/// The task is counted when the job takes the [error](Self::error), so that whoever receives the error
/// finds it counted, or when the job reports that the caller cancelled first. Only the job knows, since the
/// caller may cancel until the error is delivered. A job that does neither is counted under the reason of
/// the call.
pub struct Dropped<'a> {
    counters: &'a LaneCounters,
    reason: &'a Count,
    /// `None` once it has been counted.
    error: Option<Error>,
}

impl fmt::Debug for Dropped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dropped")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl Dropped<'_> {
    /// Returns the error to deliver to the caller.
    ///
    /// # Panics
    /// Never: the error is taken only here, by a method that consumes the value.
    #[must_use]
    pub fn error(mut self) -> Error {
        self.reason.increment();
        self.error.take().expect("taken once")
    }

    /// Counts the task as cancelled, because the caller cancelled before the error was delivered.
    pub fn cancelled(mut self) {
        self.error = None;
        self.counters.cancelled.increment();
    }
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        if self.error.is_some() {
            self.reason.increment();
        }
    }
}

impl Shared {
    /// Ends a task that does not run: counts it, calls its job, wakes its waiters.
    pub(super) fn drop_task(&self, task: Task, reason: Reason) {
        let counters = self.counters(task.record.lane);
        let dropped = |error, reason| Dropped {
            counters,
            reason,
            error: Some(error),
        };
        let call = match reason {
            Reason::Expired(error) => JobCall::Expired(dropped(error, &counters.expired)),
            Reason::Refused(error) => JobCall::Refused(dropped(error, &counters.shed)),
            Reason::Cancelled => {
                counters.cancelled.increment();
                JobCall::Cancelled
            }
            Reason::Stopped => {
                counters.cancelled.increment();
                JobCall::Stopped
            }
        };
        if let Some(probe) = task.probe {
            task.profile.circuit.finish_probe(probe, false);
        }
        let Task { record, job, .. } = task;
        // A job that panics on being dropped has ended all the same; the panic hook has reported it.
        drop(catch_unwind(AssertUnwindSafe(|| job(call))));
        record.ended.fire();
    }
}
