//! Tasks that end without having run, and how they are counted.

use super::Shared;
use super::stats::{Count, Meter};
use super::task::{Task, Turn};
use crate::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a task will not run.
pub(super) enum Reason {
    /// Its deadline passed in the queue.
    Expired(Error),
    /// Calls of its name hang.
    Refused(Error),
    /// Its ticket was cancelled.
    Cancelled,
    /// The queue was emptied.
    Stopped,
}

/// Given to a job whose caller is owed an error in place of a result.
///
/// The task is counted when the job takes the [error](Self::error), so that whoever has it finds it counted,
/// or when the job says that the caller gave up first. The job alone knows, since the caller may give up at
/// any moment before it is told. A job that does neither is counted as dropped for the reason that the turn
/// names.
pub struct Dropped<'a> {
    meter: &'a Meter,
    reason: &'a Count,
    /// None once it has been counted.
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
    /// What to tell the caller.
    ///
    /// # Panics
    /// Never: the error is taken only here, and by what consumes the value.
    #[must_use]
    pub fn error(mut self) -> Error {
        self.reason.up();
        self.error.take().expect("taken once")
    }

    /// The caller gave up before this could be told, so it is counted as cancelled.
    pub fn cancelled(mut self) {
        self.error = None;
        self.meter.cancelled.up();
    }
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        if self.error.is_some() {
            self.reason.up();
        }
    }
}

impl Shared {
    /// Ends a task that will not run: counts it, tells its job, wakes who waits.
    pub(super) fn drop_task(&self, task: Task, reason: Reason) {
        let meter = self.meter(task.record.lane);
        let dropped = |error, reason| Dropped {
            meter,
            reason,
            error: Some(error),
        };
        let turn = match reason {
            Reason::Expired(error) => Turn::Expired(dropped(error, &meter.expired)),
            Reason::Refused(error) => Turn::Refused(dropped(error, &meter.shed)),
            Reason::Cancelled => {
                meter.cancelled.up();
                Turn::Cancelled
            }
            Reason::Stopped => {
                meter.cancelled.up();
                Turn::Stopped
            }
        };
        if task.probe {
            task.profile.circuit.probed(false);
        }
        let Task { record, job, .. } = task;
        // A job that panics at the news has ended all the same; the panic hook has reported it.
        drop(catch_unwind(AssertUnwindSafe(|| job(turn))));
        record.ended.fire();
    }
}
