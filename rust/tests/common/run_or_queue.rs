//! Blocking execution of a task: inline on the caller's thread, or queued and awaited.
//!
//! Included by the unit tests and by the stress test of the scheduler, which both import the names below.

use super::{Error, Job, JobCall, JobOutcome, Lane, RunInline, Running, Scheduler, Target, wait};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::time::Instant;

pub trait RunOrQueue {
    /// Returns the result of `work`, resumes its panic, or returns the error for which it did not run.
    fn run<R: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Option<Instant>,
        name: &str,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Error>;
}

impl RunOrQueue for Scheduler {
    fn run<R: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Option<Instant>,
        name: &str,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Error> {
        let work = move |running: Running<'_>| {
            let result = catch_unwind(AssertUnwindSafe(work));
            running.finish(if result.is_ok() {
                JobOutcome::Completed
            } else {
                JobOutcome::Panicked
            });
            result
        };
        let result = match self.run_inline(lane, deadline, name, work)? {
            RunInline::Done(result) => result,
            RunInline::NoIdleWorker(work) => queue_and_wait(self, lane, deadline, name, work)?,
        };
        result.or_else(|panic| resume_unwind(panic))
    }
}

fn queue_and_wait<R: Send + 'static>(
    scheduler: &Scheduler,
    lane: Lane,
    deadline: Option<Instant>,
    name: &str,
    work: impl FnOnce(Running<'_>) -> R + Send + 'static,
) -> Result<R, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let job: Job = Box::new(move |call| {
        let result = match call {
            JobCall::Run(running) => Ok(work(running)),
            JobCall::Expired(dropped) | JobCall::Refused(dropped) => Err(dropped.error()),
            JobCall::Cancelled | JobCall::Stopped => {
                Err(Error::Scheduler("shut down before the task began".into()))
            }
        };
        // Nobody receives it if the wait below has failed.
        drop(sender.send(result));
    });
    let ticket = scheduler.submit(lane, deadline, name, job)?;
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    match wait(Target::Task(&ticket), left) {
        Ok(()) => {}
        Err(Error::DeadlineExceeded(_)) if ticket.expire() => {}
        // It runs, so it ends, although late.
        Err(Error::DeadlineExceeded(_)) => wait(Target::Task(&ticket), None)?,
        Err(error) => {
            ticket.cancel();
            return Err(error);
        }
    }
    receiver
        .try_recv()
        .expect("a task that has ended has sent its result")
}
