//! Jobs, their keys, and the tickets that stand for submitted jobs.

use super::Shared;
use super::circuit::Probe;
use super::dropped::{Dropped, Reason};
use super::order::Cost;
use super::profile::Profile;
use super::queue::{Wake, lock, sleep};
use super::worker::Running;
use crate::error::{Error, Result};
use crate::sync::plain::{Arc, AtomicUsize, Ordering as Plain, Weak};
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};
use std::fmt;
use std::time::Instant;

/// Kind of work; separate lanes keep waiting calls from starving computing ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Calls that wait for something else: retrieval, feature stores. Many threads.
    Blocking,
    /// Calls that use the cores. Few threads, since each program brings its own pool.
    Compute,
}

impl Lane {
    /// Both lanes, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Blocking, Self::Compute];

    /// Returns `blocking` or `compute`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Compute => "compute",
        }
    }

    /// Parses the name of a lane.
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

/// Time by which a task should have ended; `None` for no deadline.
pub type Deadline = Option<Instant>;

/// Order of tasks in a lane: earliest deadline first, tasks without one last, ties in the order of
/// submission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    /// Nanoseconds since the scheduler's anchor; `u64::MAX` for none.
    pub(super) deadline_ns: u64,
    pub(super) sequence: u64,
}

/// Reason for calling a job: to run it, or to report that it will not run.
#[derive(Debug)]
pub enum JobCall<'a> {
    /// Run the work and report its outcome.
    Run(Running<'a>),
    /// The deadline passed in the queue. The error says by how much.
    Expired(Dropped<'a>),
    /// The circuit of its name was open when a thread reached it. The error says how many calls hang.
    Refused(Dropped<'a>),
    /// [`Ticket::cancel`] removed it from the queue.
    Cancelled,
    /// The scheduler was stopped and its queue emptied.
    Stopped,
}

/// Outcome of a job that was called to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobOutcome {
    /// It returned a result.
    Completed,
    /// It returned an error.
    Failed,
    /// It panicked; a job may catch the panic itself in order to report it.
    Panicked,
    /// Its caller cancelled it before the work began.
    Cancelled,
    /// Its [deadline passed](Running::expired) while it waited between its call and its work.
    Expired,
}

/// Unit of work that delivers its own result.
///
/// Once accepted it is called exactly once: on a worker with [`JobCall::Run`], or with the reason for
/// dropping it, on the thread that drops it. A panic is caught and counted, and the worker continues.
pub type Job = Box<dyn FnOnce(JobCall<'_>) + Send>;

/// One-shot event that can be waited for with [`wait`](super::wait()).
#[derive(Default)]
pub struct Signal {
    fired: AtomicBool,
    waiters: Mutex<Vec<Waiter>>,
}

#[derive(Clone)]
pub(super) struct Waiter {
    pub(super) owner: Arc<dyn Wake>,
    pub(super) slot: usize,
}

impl Waiter {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.owner, &other.owner) && self.slot == other.slot
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
    /// Makes a signal that has not fired.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns whether it has fired. Writes before [`fire`](Self::fire) are then visible.
    pub fn is_fired(&self) -> bool {
        self.fired.load(Ordering::Acquire)
    }

    /// Fires the signal and wakes all waiters. Later calls do nothing.
    pub fn fire(&self) {
        let waiters = {
            let mut waiters = lock(&self.waiters);
            // Release: pairs with `is_fired`. Under the lock, so that no waiter is added after the list is
            // taken.
            self.fired.store(true, Ordering::Release);
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters {
            waiter.owner.wake(waiter.slot);
        }
    }

    /// Registers `waiter` to be woken by `fire`. If the signal has fired already, the waiter is not woken
    /// and must check before it sleeps.
    pub(super) fn add_waiter(&self, waiter: Waiter) {
        let mut waiters = lock(&self.waiters);
        if !self.is_fired() {
            waiters.push(waiter);
        }
    }

    pub(super) fn remove_waiter(&self, waiter: &Waiter) {
        lock(&self.waiters).retain(|other| !other.is(waiter));
    }

    /// Blocks a thread that is not a worker. Returns false if `until` came first.
    pub(super) fn wait_on_thread(&self, until: Option<Instant>) -> bool {
        let parker = Arc::new(ThreadParker::default());
        let waiter = Waiter {
            owner: parker.clone(),
            slot: 0,
        };
        self.add_waiter(waiter.clone());
        let mut woken = lock(&parker.woken);
        while !*woken && !self.is_fired() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            woken = sleep(&parker.condvar, woken, left);
        }
        drop(woken);
        self.remove_waiter(&waiter);
        self.is_fired()
    }
}

/// Sleep slot of one thread that is not a worker.
#[derive(Default)]
struct ThreadParker {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Wake for ThreadParker {
    fn wake(&self, _seat: usize) {
        *lock(&self.woken) = true;
        self.condvar.notify_one();
    }
}

/// State that outlives a task: its worker and its end.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) lane: Lane,
    pub(super) key: Key,
    /// Index of the worker on whose stack it is, or `NO_WORKER`.
    runner: AtomicUsize,
    pub(super) ended: Signal,
}

const NO_WORKER: usize = usize::MAX;

impl Record {
    pub(super) fn new(lane: Lane, key: Key) -> Self {
        Self {
            lane,
            key,
            runner: AtomicUsize::new(NO_WORKER),
            ended: Signal::new(),
        }
    }

    // Relaxed: cycles are searched under the lock of `WaitGraph` only, and each task in one was started by
    // the thread that then took that lock to record its wait.
    pub(super) fn begin(&self, worker: usize) {
        self.runner.store(worker, Plain::Relaxed);
    }

    pub(super) fn runner(&self) -> Option<usize> {
        let runner = self.runner.load(Plain::Relaxed);
        (runner != NO_WORKER).then_some(runner)
    }
}

/// Job in a queue.
pub(super) struct Task {
    pub(super) record: Arc<Record>,
    pub(super) job: Job,
    pub(super) profile: Arc<Profile>,
    /// Mean run time of its name when it was queued.
    pub(super) cost_ns: u64,
    pub(super) queued: Instant,
    /// Its number as a probe, if the circuit of its name waits for its end.
    pub(super) probe: Option<Probe>,
}

impl Cost for Task {
    fn cost_ns(&self) -> u64 {
        self.cost_ns
    }
}

/// Handle of a submitted job, to cancel it or to wait for it. It keeps no part of the job alive.
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
    /// Returns whether the job has run or was dropped, and has been counted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.record.ended.is_fired()
    }

    /// Returns the lane to which the job was submitted.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.record.lane
    }

    /// Removes the job from the queue and calls it with [`JobCall::Cancelled`] on this thread.
    ///
    /// Returns false if it has started or ended; a running job is never interrupted.
    #[expect(
        clippy::must_use_candidate,
        reason = "a caller that cancels need not know whether the task ran"
    )]
    pub fn cancel(&self) -> bool {
        self.take_back(|_| Reason::Cancelled)
    }

    /// If its deadline has passed, removes the job from the queue and calls it with [`JobCall::Expired`] on
    /// this thread. Returns false if the deadline has not passed, or if the job has started or ended.
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
        // In the child of a fork the queue may be locked for ever.
        let Some(shared) = self.shared.upgrade().filter(|shared| !shared.is_forked()) else {
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
}
