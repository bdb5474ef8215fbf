//! What is scheduled: jobs, their order, and the ticket that stands for one.

use super::Shared;
use super::dropped::{Dropped, Reason};
use super::order::Cost;
use super::profile::Profile;
use super::queue::{Wake, lock, sleep};
use super::worker::{Running, Target, wait};
use crate::error::{Error, Result};
use crate::sync::plain::{Arc, AtomicUsize, Ordering as Plain, Weak};
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};
use std::fmt;
use std::time::Instant;

/// The two kinds of work, kept apart so that waiting never starves computing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Calls that wait for something else: retrieval, feature stores. Many threads.
    Blocking,
    /// Programs that use the cores. Few threads, since each program brings its own pool.
    Compute,
}

impl Lane {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Blocking, Self::Compute];

    /// `blocking` or `compute`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Compute => "compute",
        }
    }

    /// The lane of this name.
    ///
    /// # Errors
    /// [`Error::Config`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.name() == name)
            .ok_or_else(|| {
                Error::Config(format!(
                    "there is no lane {name:?}; use \"blocking\" for calls that wait and \"compute\" \
                     for calls that use the cores"
                ))
            })
    }
}

/// The order of tasks in a lane: earliest deadline first, none last, then first come, first served.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    /// Nanoseconds since the scheduler's start; `u64::MAX` for none.
    pub(super) deadline_ns: u64,
    pub(super) sequence: u64,
}

/// Why a job is called: to run, or to tell its caller that it will not.
#[derive(Debug)]
pub enum Turn<'a> {
    /// Do the work, and say how it ended.
    Run(Running<'a>),
    /// The deadline passed in the queue. Its error says by how much.
    Expired(Dropped<'a>),
    /// Its turn came while calls of its name hang. Its error says how many.
    Refused(Dropped<'a>),
    /// [`Ticket::cancel`] took it out of the queue.
    Cancelled,
    /// The scheduler was stopped and its queue emptied.
    Stopped,
}

/// What became of a job that was told to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It has a result.
    Completed,
    /// It has an error to report.
    Failed,
    /// It panicked, which a job may catch itself in order to report it.
    Panicked,
    /// Its caller had lost interest before it began.
    Cancelled,
    /// It still had to wait for something before it could begin, and [its deadline came](Running::expired).
    Expired,
}

/// A piece of work, which carries its own way of handing over its result.
///
/// Once accepted it is called exactly once: on a worker with [`Turn::Run`], or with the reason why it is
/// dropped, on the thread that drops it. A panic is caught and counted, and the worker lives on.
pub type Job = Box<dyn FnOnce(Turn<'_>) + Send>;

/// Something that happens once and can be waited for with [`wait`](super::wait()).
#[derive(Default)]
pub struct Signal {
    fired: AtomicBool,
    waiters: Mutex<Vec<Waiter>>,
}

#[derive(Clone)]
pub(super) struct Waiter {
    pub(super) place: Arc<dyn Wake>,
    pub(super) seat: usize,
}

impl Waiter {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.place, &other.place) && self.seat == other.seat
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal")
            .field("fired", &self.is_fired())
            .finish_non_exhaustive()
    }
}

impl Signal {
    /// A signal that has not been fired.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it has happened. What was written before [`fire`](Self::fire) is then visible.
    pub fn is_fired(&self) -> bool {
        self.fired.load(Ordering::Acquire)
    }

    /// Says that it has happened, and wakes all who wait for it. Later calls do nothing.
    pub fn fire(&self) {
        let waiters = {
            let mut waiters = lock(&self.waiters);
            // Release: pairs with `is_fired`. Under the lock, so that nobody is added after the taking.
            self.fired.store(true, Ordering::Release);
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters {
            waiter.place.wake(waiter.seat);
        }
    }

    /// Has `waiter` woken when this fires. If it has fired already, nothing will wake the waiter, and it
    /// sees so before it sleeps.
    pub(super) fn add(&self, waiter: Waiter) {
        let mut waiters = lock(&self.waiters);
        if !self.is_fired() {
            waiters.push(waiter);
        }
    }

    pub(super) fn forget(&self, waiter: &Waiter) {
        lock(&self.waiters).retain(|other| !other.is(waiter));
    }

    /// Parks a thread that is no worker. False if `until` came first.
    pub(super) fn park_outsider(&self, until: Option<Instant>) -> bool {
        let parker = Arc::new(Outsider::default());
        let waiter = Waiter {
            place: parker.clone(),
            seat: 0,
        };
        self.add(waiter.clone());
        let mut called = lock(&parker.called);
        while !*called && !self.is_fired() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            called = sleep(&parker.condvar, called, left);
        }
        drop(called);
        self.forget(&waiter);
        self.is_fired()
    }
}

/// The place where one thread that is no worker sleeps.
#[derive(Default)]
struct Outsider {
    called: Mutex<bool>,
    condvar: Condvar,
}

impl Wake for Outsider {
    fn wake(&self, _seat: usize) {
        *lock(&self.called) = true;
        self.condvar.notify_one();
    }
}

/// What outlives a task: who runs it, and whether it has ended.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) lane: Lane,
    pub(super) key: Key,
    /// The number of the worker on whose stack it is, or `NOBODY`.
    runner: AtomicUsize,
    pub(super) ended: Signal,
}

const NOBODY: usize = usize::MAX;

impl Record {
    pub(super) fn new(lane: Lane, key: Key) -> Self {
        Self {
            lane,
            key,
            runner: AtomicUsize::new(NOBODY),
            ended: Signal::new(),
        }
    }

    // Relaxed: a circle of waits is only ever looked for under the lock of `Waits`, and each of its tasks
    // was begun by the thread that then took that lock to say what it waits for.
    pub(super) fn begin(&self, worker: usize) {
        self.runner.store(worker, Plain::Relaxed);
    }

    pub(super) fn runner(&self) -> Option<usize> {
        let runner = self.runner.load(Plain::Relaxed);
        (runner != NOBODY).then_some(runner)
    }
}

/// A job in a queue.
pub(super) struct Task {
    pub(super) record: Arc<Record>,
    pub(super) job: Job,
    pub(super) profile: Arc<Profile>,
    /// What the profile said when it was queued.
    pub(super) cost_ns: u64,
    pub(super) queued: Instant,
    /// Whether the circuit of its name waits for its end.
    pub(super) probe: bool,
}

impl Cost for Task {
    fn cost_ns(&self) -> u64 {
        self.cost_ns
    }
}

/// Stands for a submitted job: cancels it, or is waited for. It keeps nothing of the job alive.
#[derive(Clone)]
pub struct Ticket {
    pub(super) record: Arc<Record>,
    pub(super) shared: Weak<Shared>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// Whether the job has run or was dropped, and has been counted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.record.ended.is_fired()
    }

    /// The lane it was submitted to.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.record.lane
    }

    /// Takes the job out of the queue, and calls it with [`Turn::Cancelled`] on this thread.
    ///
    /// False if it has begun or ended; a running job is never interrupted.
    #[expect(
        clippy::must_use_candidate,
        reason = "whoever cancels has done all they can"
    )]
    pub fn cancel(&self) -> bool {
        self.take_back(|_| Reason::Cancelled)
    }

    /// Takes the job out of the queue if its deadline has passed, and calls it with [`Turn::Expired`] on this
    /// thread. False if it has not, or if the job has begun or ended.
    #[must_use]
    pub fn expire(&self) -> bool {
        let now = Instant::now();
        let due = |shared: &Shared| self.record.key.deadline_ns <= shared.nanos(now);
        self.shared.upgrade().is_some_and(|shared| due(&shared))
            && self.take_back(|(shared, task)| {
                let name = &task.profile.name;
                let (lane, key) = (task.record.lane, task.record.key);
                Reason::Expired(shared.expired(name, lane, key, task.queued, now))
            })
    }

    fn take_back(&self, why: impl FnOnce((&Shared, &Task)) -> Reason) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return false;
        };
        match shared.queue(self.record.lane).remove(&self.record.key) {
            Some(task) => {
                let reason = why((&shared, &task));
                shared.drop_task(task, reason);
                true
            }
            None => false,
        }
    }

    /// Waits until the job has ended; if `deadline` comes while it is queued, it is dropped.
    ///
    /// # Errors
    /// [`Error::Scheduler`] where [`wait()`](super::wait()) gives it.
    pub fn wait_or_expire(&self, deadline: Option<Instant>) -> Result<()> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match wait(Target::Task(self), left) {
            Err(Error::DeadlineExceeded(_)) if self.expire() => Ok(()),
            // It runs: then it ends, and late.
            Err(Error::DeadlineExceeded(_)) => wait(Target::Task(self), None),
            Err(error) => {
                self.cancel();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }
}
