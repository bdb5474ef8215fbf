//! The threads: what each does with a task, and how it waits.

use super::Shared;
use super::admit::profile_id;
use super::dropped::Reason;
use super::predict::Shown;
use super::profile::Profile;
use super::queue::{Aid, Help, Wish};
use super::stats::Count;
use super::task::{End, Lane, Record, Signal, Task, Ticket, Turn, Waiter};
use super::trace::Span;
use crate::error::{Error, Result};
use crate::sync::plain::{Arc, Ordering};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How many tasks that nobody on its stack waits for a worker may bury under one another while it waits.
/// Each delays those below it, so a few are help and many are a traffic jam.
const MAX_BURIED: usize = 8;

thread_local! {
    static ME: RefCell<Option<Rc<Worker>>> = const { RefCell::new(None) };
}

/// What can be waited for.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// The end of a task.
    Task(&'a Ticket),
    /// Anything else that somebody will fire.
    Signal(&'a Signal),
}

/// The lane whose worker the calling thread is, if it is one of any scheduler.
#[must_use]
pub fn current_lane() -> Option<Lane> {
    ME.with_borrow(|me| me.as_ref().map(|me| me.lane))
}

/// Waits until `target` has happened, or for at most `timeout`.
///
/// On a worker the wait is put to use: if the awaited task still stands in the queue of the worker's own
/// lane it is run here and now. Otherwise a compute worker runs other tasks of its lane, the most urgent
/// first. A blocking worker does so only while it waits for something that is no task of its scheduler
/// and all other threads of its lane wait too, so that none is left to run them. A task helped with is
/// finished before the wait looks again, so a timeout may be overrun by it.
///
/// # Errors
/// - [`Error::DeadlineExceeded`] when `timeout` has passed.
/// - [`Error::Scheduler`] on a compute worker that waits for anything but a compute task of its own
///   scheduler, since it could only park; when the wait would close a circle of waits; and
///   when a compute worker would have to help but too many tasks lie buried on its stack already.
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
        None if signal.park_outsider(until) => Ok(()),
        None => Err(timed_out()),
    }
}

fn timed_out() -> Error {
    Error::DeadlineExceeded(
        "the wait timed out before its task ended; the task goes on: cancel it if nobody needs it, \
         or wait longer"
            .into(),
    )
}

/// The life of one worker thread.
pub(super) fn work(shared: &Arc<Shared>, lane: Lane, seat: usize) {
    let me = Rc::new(Worker::new(shared.clone(), lane, seat));
    ME.set(Some(me.clone()));
    while let Some(task) = shared.queue(lane).next(seat) {
        me.run(task);
    }
    ME.set(None);
}

/// What the calling thread is, if it is a worker.
pub(super) fn me() -> Option<Rc<Worker>> {
    ME.with_borrow(Clone::clone)
}

/// Makes the calling thread this worker, or none; returns what it was.
pub(super) fn become_worker(worker: Option<Rc<Worker>>) -> Option<Rc<Worker>> {
    ME.replace(worker)
}

/// A thread of the pool, or a guest in its seat.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) lane: Lane,
    /// Its place in the queue: for the guest of a thread, the one beside that thread's.
    pub(super) seat: usize,
    /// Tasks on this stack that wait under others which they do not wait for.
    buried: Cell<usize>,
}

/// A task that begins.
pub(super) struct Begun<'a> {
    pub(super) record: &'a Record,
    pub(super) profile: &'a Profile,
    pub(super) queued: Instant,
    pub(super) start: Instant,
    /// Whether the circuit of its name waits for its end.
    pub(super) probe: bool,
}

/// Given to a job that runs, so that it can say that the work is over before it hands over the result:
/// whoever has the result then finds it counted.
pub struct Running<'a> {
    worker: &'a Worker,
    task: &'a Begun<'a>,
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
    /// Why the work should not begin any more, for a job that had to wait between its turn and its work: the
    /// deadline has passed. Such a job ends as [`End::Expired`].
    #[must_use]
    pub fn expired(&self) -> Option<Error> {
        let shared = &self.worker.shared;
        let now = Instant::now();
        let Begun {
            record,
            profile,
            queued,
            ..
        } = *self.task;
        (record.key.deadline_ns <= shared.nanos(now))
            .then(|| shared.expired(&profile.name, self.worker.lane, record.key, queued, now))
    }

    /// Says how the work ended. A job that returns without it has [completed](End::Completed).
    pub fn end(self, end: End) {
        let meter = self.worker.shared.meter(self.worker.lane);
        match end {
            End::Completed => self.count(&meter.completed),
            End::Failed => self.count(&meter.failed),
            End::Panicked => self.count(&meter.panicked),
            End::Cancelled => self.count_unbegun(&meter.cancelled),
            End::Expired => self.count_unbegun(&meter.expired),
        }
    }

    /// It never did anything, so it has no times.
    fn count_unbegun(&self, count: &Count) {
        self.leave_name(false);
        self.ended.set(true);
        count.up();
        self.worker.shared.meter(self.worker.lane).ended.up();
    }

    fn count(&self, count: &Count) {
        let shared = &*self.worker.shared;
        let Begun {
            record,
            profile,
            queued,
            start,
            ..
        } = *self.task;
        let end = Instant::now();
        let run_ns = (end - start).as_nanos() as u64;
        let meter = shared.meter(self.worker.lane);
        meter.ran(start - queued, end - start);
        profile.learn(run_ns, shared.nanos(end));
        self.leave_name(run_ns <= shared.hang_ns(profile));
        if shared.nanos(end) > record.key.deadline_ns {
            meter.overrun.up();
        }
        if self.traced {
            shared.trace.push(Span {
                name: profile.name.clone(),
                lane: self.worker.lane,
                thread: self.worker.thread(),
                guest: self.worker.is_guest(),
                queued_ns: shared.nanos(queued),
                start_ns: shared.nanos(start),
                end_ns: shared.nanos(end),
            });
        }
        self.ended.set(true);
        count.up();
        meter.ended.up();
    }

    /// Takes the task out of those of its name that run.
    fn leave_name(&self, in_time: bool) {
        // Relaxed: a count that orders nothing.
        self.task.profile.running.fetch_sub(1, Ordering::Relaxed);
        if self.task.probe {
            self.task.profile.circuit.probed(in_time);
        }
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, lane: Lane, seat: usize) -> Self {
        Self {
            shared,
            lane,
            seat,
            buried: Cell::new(0),
        }
    }

    /// Its number among all workers and guests.
    pub(super) fn number(&self) -> usize {
        self.shared.number(self.lane, self.seat)
    }

    /// The number within the lane of the thread that it is, or whose seat it has.
    fn thread(&self) -> usize {
        self.seat % self.shared.queue(self.lane).threads()
    }

    fn is_guest(&self) -> bool {
        self.seat >= self.shared.queue(self.lane).threads()
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
        let probe = if task.probe {
            Ok(true)
        } else {
            shared.pass(self.lane, &task.profile, now_ns)
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
        let begun = Begun {
            record: &record,
            profile: &profile,
            queued,
            start,
            probe,
        };
        // Its panic has been counted, and reported by the panic hook.
        drop(self.perform(&begun, |running| job(Turn::Run(running))));
        record.ended.fire();
    }

    /// Does the work of a task, and counts it.
    pub(super) fn perform<R>(
        &self,
        task: &Begun<'_>,
        work: impl FnOnce(Running<'_>) -> R,
    ) -> std::thread::Result<R> {
        let shared = &*self.shared;
        shared.meter(self.lane).begun.up();
        // Relaxed: a count that orders nothing.
        task.profile.running.fetch_add(1, Ordering::Relaxed);
        task.record.begin(self.number());
        let clock = &shared.clocks(self.lane)[self.thread()];
        let before = clock.show(Shown {
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
        if self.is_guest() && shared.is_forked() {
            // Locks and counts stayed with the parent.
            return outcome;
        }
        if !ended.get() {
            running().end(if outcome.is_ok() {
                End::Completed
            } else {
                End::Panicked
            });
        }
        clock.show(before);
        outcome
    }

    /// Whether to run tasks of others while waiting.
    ///
    /// A compute thread must never stand still while there is work. A blocking thread may, that is its
    /// trade, and helping would only delay it: what it waits for moves without it if it is a task, since
    /// every chain of waits ends at a task that runs. Only a signal of unknown origin may depend on
    /// what stands in the queue, so there it helps, if all the others wait too.
    fn aid(&self, for_own_task: bool) -> Aid {
        let room = self.buried.get() < MAX_BURIED;
        match self.lane {
            Lane::Compute if room => Aid::Yes,
            Lane::Compute => Aid::Exhausted,
            Lane::Blocking if room && !for_own_task => Aid::Yes,
            Lane::Blocking => Aid::No,
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
                 could only park it, and compute threads are few; end this task here and submit the \
                 rest when the awaited result is there (Future.add_done_callback), or wait in the \
                 blocking lane"
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
            place: queue.clone(),
            seat: self.seat,
        };
        signal.add(waiter.clone());
        let result = loop {
            if let Some(record) = record
                && !self.shared.waits.enter(number, record)
            {
                break Err(Error::Scheduler(
                    "this wait would never end: the awaited task waits, through others, for a task on \
                     this very thread; hand results on with Future.add_done_callback instead of \
                     waiting inside tasks"
                        .into(),
                ));
            }
            let help = queue.help(
                self.seat,
                &Wish {
                    done: &|| signal.is_fired(),
                    own,
                    aid: self.aid(record.is_some()),
                    until,
                },
            );
            self.shared.waits.leave(number);
            match help {
                Help::Done => break Ok(()),
                Help::TimedOut => break Err(timed_out()),
                Help::TooDeep => {
                    break Err(Error::Scheduler(format!(
                        "{MAX_BURIED} waiting tasks already lie under one another on this thread of the \
                         {} lane and more are queued; wait less inside tasks, or give the lane more \
                         threads",
                        self.lane.name()
                    )));
                }
                Help::Run(task) if own == Some(task.record.key) => self.run(task),
                Help::Run(task) => {
                    self.buried.set(self.buried.get() + 1);
                    self.run(task);
                    self.buried.set(self.buried.get() - 1);
                }
            }
        };
        signal.forget(&waiter);
        self.shared.meter(self.lane).waited(started.elapsed());
        result
    }
}
