//! Worker threads: task execution and waiting inside tasks.

use super::Shared;
use super::admit::profile_id;
use super::circuit::Probe;
use super::dropped::Reason;
use super::predict::CurrentTask;
use super::profile::Profile;
use super::queue::{HelpPolicy, WaitAction, WaitRequest};
use super::stats::Count;
use super::task::{JobCall, JobOutcome, Lane, Record, Signal, Task, Ticket, Waiter};
use super::trace::Span;
use crate::error::{Error, Result};
use crate::sync::plain::{Arc, Ordering};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Maximum number of unrelated tasks nested on one stack by helping. Each delays the tasks below it, so a
/// few help and many obstruct.
const MAX_NESTED_HELP: usize = 8;

thread_local! {
    static ME: RefCell<Option<Rc<Worker>>> = const { RefCell::new(None) };
}

/// Event to wait for.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// End of a task.
    Task(&'a Ticket),
    /// Any other event, fired by its owner.
    Signal(&'a Signal),
}

/// Returns the lane of the calling thread if it is a worker of any scheduler.
#[must_use]
pub fn current_lane() -> Option<Lane> {
    ME.with_borrow(|me| me.as_ref().map(|me| me.lane))
}

/// Waits until `target` has happened, or for at most `timeout`.
///
/// A worker runs tasks while it waits. If the awaited task is still queued in the worker's own lane, the
/// worker runs it. Otherwise a compute worker runs other tasks of its lane, the most urgent first. A
/// blocking worker does so only while it waits for something other than a task of its scheduler and all
/// other threads of its lane wait too, so that no thread is left to run them. The wait continues after such
/// a task has ended, so it may exceed its timeout.
///
/// # Errors
/// - [`Error::DeadlineExceeded`] when `timeout` has passed.
/// - [`Error::Scheduler`] on a compute worker that waits for anything but a compute task of its own
///   scheduler, since it could only block; when the wait would close a cycle of waits; and when a compute
///   worker would have to help but has reached the limit of nested tasks.
pub fn wait(target: Target<'_>, timeout: Option<Duration>) -> Result<()> {
    let signal = match target {
        Target::Task(ticket) => &ticket.record.ended,
        Target::Signal(signal) => signal,
    };
    if signal.is_fired() {
        return Ok(());
    }
    let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    match ME.with_borrow(Clone::clone) {
        Some(me) => me.wait(target, signal, until),
        None if signal.wait_on_thread(until) => Ok(()),
        None => Err(timed_out()),
    }
}

fn timed_out() -> Error {
    Error::DeadlineExceeded(
        "the wait timed out before its task ended; the task continues: cancel it if nobody needs it, \
         or wait longer"
            .into(),
    )
}

/// Main loop of one worker thread.
pub(super) fn work(shared: &Arc<Shared>, lane: Lane, slot: usize) {
    let me = Rc::new(Worker::new(shared.clone(), lane, slot));
    ME.set(Some(me.clone()));
    while let Some(task) = shared.queue(lane).next(slot) {
        me.run(task);
    }
    ME.set(None);
}

/// Returns the worker that the calling thread is, if any.
pub(super) fn current_worker() -> Option<Rc<Worker>> {
    ME.with_borrow(Clone::clone)
}

/// Sets the worker that the calling thread is; returns the previous one.
pub(super) fn replace_current_worker(worker: Option<Rc<Worker>>) -> Option<Rc<Worker>> {
    ME.replace(worker)
}

/// Thread of the pool, or inline worker in a borrowed slot.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) lane: Lane,
    /// Slot in the queue; an inline worker has its own, beside the borrowed one.
    pub(super) slot: usize,
    /// Suspended tasks on this stack below tasks that they do not wait for.
    nested_help: Cell<usize>,
}

/// Task that has been taken from the queue to run.
pub(super) struct StartedTask<'a> {
    pub(super) record: &'a Record,
    pub(super) profile: &'a Profile,
    pub(super) queued: Instant,
    pub(super) start: Instant,
    /// Its number as a probe, if the circuit of its name waits for its end.
    pub(super) probe: Option<Probe>,
}

/// Handle of a running job, with which it reports its outcome before it delivers the result: a caller that
/// has the result then finds the task counted.
pub struct Running<'a> {
    worker: &'a Worker,
    task: &'a StartedTask<'a>,
    traced: bool,
    ended: &'a Cell<bool>,
}

impl fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("name", &self.task.profile.name)
            .finish_non_exhaustive()
    }
}

impl Running<'_> {
    /// Returns the error of a task whose deadline has passed, for a job that had to wait between its call
    /// and its work. Such a job ends as [`JobOutcome::Expired`].
    #[must_use]
    pub fn expired(&self) -> Option<Error> {
        let shared = &self.worker.shared;
        let now = Instant::now();
        let StartedTask {
            record,
            profile,
            queued,
            ..
        } = *self.task;
        (record.key.deadline_ns <= shared.nanos(now))
            .then(|| shared.expired(&profile.name, self.worker.lane, record.key, queued, now))
    }

    /// Reports how the work ended. A job that returns without it has [completed](JobOutcome::Completed).
    pub fn finish(self, outcome: JobOutcome) {
        let counters = self.worker.shared.counters(self.worker.lane);
        match outcome {
            JobOutcome::Completed => self.count(&counters.completed),
            JobOutcome::Failed => self.count(&counters.failed),
            JobOutcome::Panicked => self.count(&counters.panicked),
            JobOutcome::Cancelled => self.count_unbegun(&counters.cancelled),
            JobOutcome::Expired => self.count_unbegun(&counters.expired),
        }
    }

    /// Counts an outcome without run times, since the work never began.
    fn count_unbegun(&self, count: &Count) {
        self.leave_name(false);
        self.ended.set(true);
        count.increment();
        self.worker
            .shared
            .counters(self.worker.lane)
            .ended
            .increment();
    }

    fn count(&self, count: &Count) {
        let shared = &*self.worker.shared;
        let StartedTask {
            record,
            profile,
            queued,
            start,
            ..
        } = *self.task;
        let end = Instant::now();
        let run_ns = (end - start).as_nanos() as u64;
        let counters = shared.counters(self.worker.lane);
        counters.ran(start - queued, end - start);
        profile.record(run_ns, shared.nanos(end));
        self.leave_name(run_ns <= shared.hang_ns(profile));
        if shared.nanos(end) > record.key.deadline_ns {
            counters.overrun.increment();
        }
        if self.traced {
            shared.trace.push(Span {
                name: profile.name.clone(),
                lane: self.worker.lane,
                thread: self.worker.thread(),
                inline: self.worker.is_inline(),
                queued_ns: shared.nanos(queued),
                start_ns: shared.nanos(start),
                end_ns: shared.nanos(end),
            });
        }
        self.ended.set(true);
        count.increment();
        counters.ended.increment();
    }

    /// Removes the task from the running ones of its name.
    fn leave_name(&self, in_time: bool) {
        // Relaxed: a count that orders nothing.
        self.task.profile.running.fetch_sub(1, Ordering::Relaxed);
        if let Some(probe) = self.task.probe {
            self.task.profile.circuit.finish_probe(probe, in_time);
        }
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, lane: Lane, slot: usize) -> Self {
        Self {
            shared,
            lane,
            slot,
            nested_help: Cell::new(0),
        }
    }

    /// Returns its index among all workers and inline workers.
    pub(super) fn number(&self) -> usize {
        self.shared.number(self.lane, self.slot)
    }

    /// Returns the index within the lane of its thread, or of the thread whose slot it borrowed.
    fn thread(&self) -> usize {
        self.slot % self.shared.queue(self.lane).threads()
    }

    fn is_inline(&self) -> bool {
        self.slot >= self.shared.queue(self.lane).threads()
    }

    fn run(&self, task: Task) {
        let shared = &*self.shared;
        let start = Instant::now();
        let key = task.record.key;
        let now_ns = shared.nanos(start);
        if key.deadline_ns <= now_ns {
            let error = shared.expired(&task.profile.name, self.lane, key, task.queued, start);
            return shared.drop_task(task, Reason::Expired(error));
        }
        let probe = match task.probe {
            Some(probe) => Ok(Some(probe)),
            None => shared.check_circuit(self.lane, &task.profile, now_ns),
        };
        let probe = match probe {
            Ok(probe) => probe,
            Err(error) => return shared.drop_task(task, Reason::Refused(error)),
        };
        let Task {
            record,
            job,
            profile,
            queued,
            ..
        } = task;
        let begun = StartedTask {
            record: &record,
            profile: &profile,
            queued,
            start,
            probe,
        };
        // A panic has been counted, and reported by the panic hook.
        drop(self.execute(&begun, |running| job(JobCall::Run(running))));
        record.ended.fire();
    }

    /// Runs the work of a task and counts it.
    pub(super) fn execute<R>(
        &self,
        task: &StartedTask<'_>,
        work: impl FnOnce(Running<'_>) -> R,
    ) -> std::thread::Result<R> {
        let shared = &*self.shared;
        shared.counters(self.lane).begun.increment();
        // Relaxed: a count that orders nothing.
        task.profile.running.fetch_add(1, Ordering::Relaxed);
        task.record.begin(self.number());
        let status = &shared.statuses(self.lane)[self.thread()];
        let before = status.replace(CurrentTask {
            start_ns: shared.nanos(task.start),
            mean_ns: task.profile.mean_ns(),
            profile: profile_id(task.profile),
        });
        let ended = Cell::new(false);
        let running = || Running {
            worker: self,
            task,
            traced: shared.trace.is_enabled(),
            ended: &ended,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| work(running())));
        if self.is_inline() && shared.is_forked() {
            // Locks and counters belong to the parent.
            return outcome;
        }
        if !ended.get() {
            running().finish(if outcome.is_ok() {
                JobOutcome::Completed
            } else {
                JobOutcome::Panicked
            });
        }
        status.replace(before);
        outcome
    }

    /// Returns whether to run unrelated tasks while waiting.
    ///
    /// A compute thread must not idle while tasks are queued. A blocking thread may: helping would only
    /// delay it, and an awaited task makes progress without it, since every chain of waits ends at a
    /// running task. Only a signal of unknown origin may depend on a queued task, so there it helps if all
    /// other threads of the lane wait too.
    fn help_policy(&self, for_own_task: bool) -> HelpPolicy {
        let room = self.nested_help.get() < MAX_NESTED_HELP;
        match self.lane {
            Lane::Compute if room => HelpPolicy::Allowed,
            Lane::Compute => HelpPolicy::Exhausted,
            Lane::Blocking if room && !for_own_task => HelpPolicy::Allowed,
            Lane::Blocking => HelpPolicy::Never,
        }
    }

    fn wait(&self, target: Target<'_>, signal: &Signal, until: Option<Instant>) -> Result<()> {
        let record = match target {
            Target::Task(ticket) if ticket.shared.as_ptr() == Arc::as_ptr(&self.shared) => {
                Some(&ticket.record)
            }
            _ => None,
        };
        if self.lane == Lane::Compute && record.is_none_or(|record| record.lane != Lane::Compute) {
            return Err(Error::Scheduler(
                "a compute worker may wait only for compute tasks of its own scheduler: anything else \
                 could only block it, and compute threads are few; end this task here and submit the \
                 rest from a callback of the awaited result, or wait in the blocking lane"
                    .into(),
            ));
        }
        let started = Instant::now();
        let queue = self.shared.queue(self.lane);
        let own = record
            .filter(|record| record.lane == self.lane)
            .map(|record| record.key);
        let number = self.number();
        let waiter = Waiter {
            owner: queue.clone(),
            slot: self.slot,
        };
        signal.add_waiter(waiter.clone());
        let result = loop {
            if let Some(record) = record
                && !self.shared.wait_graph.try_add(number, record)
            {
                break Err(Error::Scheduler(
                    "this wait would never end: the awaited task waits, through others, for a task on \
                     this very thread; hand results on in callbacks instead of waiting inside tasks"
                        .into(),
                ));
            }
            let action = queue.wait(
                self.slot,
                &WaitRequest {
                    done: &|| signal.is_fired(),
                    own,
                    policy: self.help_policy(record.is_some()),
                    until,
                },
            );
            self.shared.wait_graph.remove(number);
            match action {
                WaitAction::Done => break Ok(()),
                WaitAction::TimedOut => break Err(timed_out()),
                WaitAction::TooDeep => {
                    break Err(Error::Scheduler(format!(
                        "{MAX_NESTED_HELP} waiting tasks are already nested on this thread of the {} lane and more \
                         are queued; wait less inside tasks, or give the lane more threads",
                        self.lane.name()
                    )));
                }
                WaitAction::Run(task) if own == Some(task.record.key) => self.run(task),
                WaitAction::Run(task) => {
                    self.nested_help.set(self.nested_help.get() + 1);
                    self.run(task);
                    self.nested_help.set(self.nested_help.get() - 1);
                }
            }
        };
        signal.remove_waiter(&waiter);
        self.shared.counters(self.lane).waited(started.elapsed());
        result
    }
}
