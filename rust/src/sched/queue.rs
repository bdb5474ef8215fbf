//! Queue of one lane: bounded, ordered by urgency, with one sleep slot per worker.
//!
//! All state is under one short lock. While it is held, no caller-defined type is dropped or allocated, and
//! the closures called take no lock.
//!
//! # Inline workers
//!
//! A caller that runs its work itself borrows the slot of an idle worker. That worker sleeps on, its slot
//! *on loan*, and the inline worker counts in its place, so no more tasks of the lane run at once than it
//! has threads. A worker is idle only while every queued task has had a worker woken for it, so an inline
//! task overtakes no queued one. An inline worker sleeps in a slot of its own, beside the borrowed one:
//! both may sleep at once, one inside a wait, the other until its slot is returned.
//!
//! # No lost wake-up
//!
//! A worker sleeps only after it has checked, under the lock, everything that could concern it. A thread
//! that changes any of it takes the lock, marks the sleeper awake, and then notifies that sleeper's own
//! condition variable. So a change comes either before the check or after the sleep has begun. Three
//! interleavings deserve a note:
//!
//! - A waiting worker is woken for a task, finds its own wait over, and leaves. The task would be stranded
//!   while others sleep, so a leaving waiter passes the wake-up on.
//! - An inline worker returns its slot while tasks wait that arrived when all slots were taken. Those woke
//!   nobody, so the return checks the queue under the lock: the slot's worker is either woken or sleeps as
//!   if it had checked itself. The same holds for a stop meanwhile, which wakes only workers that sleep as
//!   idle.
//! - The last running worker of a lane that helps only when all wait begins to wait while tasks are queued.
//!   Nobody pushes again, so it checks the queue itself, counting itself among the waiting, and wakes
//!   another waiter if it may not help.

use super::order::{Cost, TaskOrder, WorkAhead};
use super::task::Key;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Takes a lock whose guarded code cannot panic halfway, so that poisoning can be ignored.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until notified or, if `left` is given, until it has passed.
pub(super) fn sleep<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    left: Option<Duration>,
) -> MutexGuard<'a, T> {
    match left {
        None => condvar.wait(guard).unwrap_or_else(PoisonError::into_inner),
        Some(left) => {
            condvar
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
    }
}

/// Owner of numbered sleep slots.
pub(super) trait Wake: Send + Sync {
    /// Wakes the sleeper at `slot`, which then checks again. Does nothing if nobody sleeps there.
    fn wake(&self, slot: usize);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SlotState {
    Awake,
    /// Sleeps for lack of tasks.
    Idle,
    /// Sleeps inside a wait, and may be woken to help.
    WaitingToHelp,
    /// Sleeps inside a wait until its signal fires.
    Waiting,
    /// Sleeps until the inline worker returns its slot.
    OnLoan,
}

/// Work ahead of a task that is submitted now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ahead {
    /// A worker is idle, or waits and would help at once.
    Free,
    /// Work of the queued tasks that precede it.
    Queued(WorkAhead),
}

struct State<T> {
    tasks: TaskOrder<T>,
    /// A slot for each worker, then one for the inline worker that borrows it.
    slots: Vec<SlotState>,
    /// Slots marked `Idle`, the last to fall asleep at the end: its caches are the warmest.
    idle: Vec<usize>,
    /// Slots marked `WaitingToHelp`.
    helpers: Vec<usize>,
    /// Workers inside a wait that run no task, asleep or about to check.
    waiting: usize,
    /// Workers that have not exited.
    threads: usize,
    stopped: bool,
}

/// Reason for which a queue refused a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Full {
        queued: usize,
    },
    Stopped,
    /// The `admit` callback refused it.
    Late,
}

/// Result of a push.
pub(super) struct Pushed<T> {
    /// The task, if it was refused.
    pub(super) refused: Option<(T, Refusal)>,
    /// Expired tasks that were removed to make room.
    pub(super) expired: Vec<T>,
}

/// Next action of a waiting worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WaitAction<T> {
    /// Its wait is over.
    Done,
    /// Run this task, then wait again.
    Run(T),
    /// A task needs it, but it has reached the limit of nested tasks.
    TooDeep,
    /// The timeout has passed.
    TimedOut,
}

/// Permission of a waiting worker to run tasks that it does not wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HelpPolicy {
    Never,
    Allowed,
    /// It should help, but has reached the limit of nested tasks.
    Exhausted,
}

/// Condition and limits of a wait.
pub(super) struct WaitRequest<'a> {
    /// Returns whether the wait is over. Called under the lock.
    pub(super) done: &'a dyn Fn() -> bool,
    /// Key of the awaited task if it belongs to this lane: it is run instead of waited for.
    pub(super) own: Option<Key>,
    /// Permission to run tasks that it does not wait for.
    pub(super) policy: HelpPolicy,
    pub(super) until: Option<Instant>,
}

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    /// One per slot, so that a wake-up reaches exactly the right sleeper.
    condvars: Box<[Condvar]>,
    threads: usize,
    bound: usize,
    /// True if waiting workers always run queued tasks, false if only when all workers of the lane wait.
    always_help: bool,
}

impl<T: Cost> State<T> {
    /// Marks a sleeper awake that should check the queue, and returns its slot for the caller to notify.
    fn wake_one(&mut self, always_help: bool) -> Option<usize> {
        let slot = self.idle.pop().or_else(|| {
            let needed = always_help || self.waiting == self.threads;
            if needed { self.helpers.pop() } else { None }
        })?;
        self.slots[slot] = SlotState::Awake;
        Some(slot)
    }

    fn park(&mut self, slot: usize, kind: SlotState) {
        self.slots[slot] = kind;
        match kind {
            SlotState::Idle => self.idle.push(slot),
            SlotState::WaitingToHelp => self.helpers.push(slot),
            SlotState::Waiting | SlotState::Awake | SlotState::OnLoan => {}
        }
    }

    /// Marks `slot` awake. Returns false if it was awake.
    fn unpark(&mut self, slot: usize) -> bool {
        match self.slots[slot] {
            // Only the inline worker returns a slot on loan.
            SlotState::Awake | SlotState::OnLoan => return false,
            SlotState::Waiting => {}
            SlotState::Idle => self.idle.retain(|&other| other != slot),
            SlotState::WaitingToHelp => self.helpers.retain(|&other| other != slot),
        }
        self.slots[slot] = SlotState::Awake;
        true
    }

    /// Returns the work ahead of a task with this key.
    fn ahead(&self, key: &Key, always_help: bool) -> Ahead {
        if !self.idle.is_empty() || (always_help && !self.helpers.is_empty()) {
            Ahead::Free
        } else {
            Ahead::Queued(self.tasks.work_ahead(key))
        }
    }
}

impl<T: Cost> Queue<T> {
    pub(super) fn new(threads: usize, bound: usize, always_help: bool) -> Self {
        Self {
            state: Mutex::new(State {
                tasks: TaskOrder::new(),
                slots: vec![SlotState::Awake; 2 * threads],
                idle: Vec::with_capacity(threads),
                helpers: Vec::with_capacity(threads),
                waiting: 0,
                threads,
                stopped: false,
            }),
            condvars: (0..2 * threads).map(|_| Condvar::new()).collect(),
            threads,
            bound,
            always_help,
        }
    }

    pub(super) fn bound(&self) -> usize {
        self.bound
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.state).tasks.len()
    }

    /// Returns the number of workers that would start a task at once, or whose slot could be borrowed.
    pub(super) fn idle(&self) -> usize {
        lock(&self.state).idle.len()
    }

    fn notify(&self, slot: Option<usize>) {
        if let Some(slot) = slot {
            self.condvars[slot].notify_one();
        }
    }

    /// Queues `task`. A full queue first drops its expired tasks, which are at the front of the order; if
    /// it is still full, a `bounded` task is refused.
    ///
    /// `admit` is called under the lock with the work ahead of the task, and may refuse it.
    pub(super) fn push(
        &self,
        key: Key,
        task: T,
        now_ns: u64,
        bounded: bool,
        admit: Option<&mut dyn FnMut(Ahead) -> bool>,
    ) -> Pushed<T> {
        let mut expired = Vec::new();
        let mut state = lock(&self.state);
        if state.stopped {
            let refused = Some((task, Refusal::Stopped));
            return Pushed { refused, expired };
        }
        if state.tasks.len() >= self.bound {
            while let Some(first) = state.tasks.first()
                && first.deadline_ns <= now_ns
            {
                expired.extend(state.tasks.pop());
            }
            if bounded && state.tasks.len() >= self.bound {
                let queued = state.tasks.len();
                let refused = Some((task, Refusal::Full { queued }));
                return Pushed { refused, expired };
            }
        }
        if let Some(admit) = admit
            && !admit(state.ahead(&key, self.always_help))
        {
            let refused = Some((task, Refusal::Late));
            return Pushed { refused, expired };
        }
        state.tasks.insert(key, task);
        let slot = state.wake_one(self.always_help);
        drop(state);
        self.notify(slot);
        Pushed {
            refused: None,
            expired,
        }
    }

    /// Returns the most urgent task for the worker at `slot`, which sleeps until there is one. Returns
    /// `None` once the queue is stopped and empty, after which the worker must not call again.
    pub(super) fn next(&self, slot: usize) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(task) = state.tasks.pop() {
                return Some(task);
            }
            if state.stopped {
                state.threads -= 1;
                return None;
            }
            state.park(slot, SlotState::Idle);
            while state.slots[slot] != SlotState::Awake {
                state = sleep(&self.condvars[slot], state, None);
            }
        }
    }

    /// Removes a worker whose thread ends although [`next`](Self::next) did not end it.
    pub(super) fn lose_worker(&self) {
        let mut state = lock(&self.state);
        state.threads -= 1;
        // All workers that are left may wait, so that one of them has to help now.
        let woken = if state.tasks.is_empty() {
            None
        } else {
            state.wake_one(self.always_help)
        };
        drop(state);
        self.notify(woken);
    }

    /// Returns the next action of the waiting worker at `slot`, which sleeps until there is one.
    pub(super) fn wait(&self, slot: usize, request: &WaitRequest<'_>) -> WaitAction<T> {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let next = loop {
            if (request.done)() {
                break WaitAction::Done;
            }
            if let Some(task) = request.own.and_then(|key| state.tasks.remove(&key)) {
                break WaitAction::Run(task);
            }
            let needed = self.always_help || state.waiting == state.threads;
            if needed && !state.tasks.is_empty() {
                match request.policy {
                    HelpPolicy::Never => {}
                    HelpPolicy::Exhausted => break WaitAction::TooDeep,
                    HelpPolicy::Allowed => {
                        if let Some(task) = state.tasks.pop() {
                            break WaitAction::Run(task);
                        }
                    }
                }
            }
            let left = request
                .until
                .map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break WaitAction::TimedOut;
            }
            if !state.tasks.is_empty() {
                // This worker may have been the last to run, and not be allowed to help.
                let other = state.wake_one(self.always_help);
                self.notify(other);
            }
            let kind = if request.policy == HelpPolicy::Never {
                SlotState::Waiting
            } else {
                SlotState::WaitingToHelp
            };
            state.park(slot, kind);
            while state.slots[slot] != SlotState::Awake {
                state = sleep(&self.condvars[slot], state, left);
                if left.is_some() {
                    // Awake by timeout or by a wake-up: the loop finds out which.
                    state.unpark(slot);
                }
            }
        };
        state.waiting -= 1;
        // This worker may have been woken for a task that it does not take.
        let other = if matches!(next, WaitAction::Run(_)) || state.tasks.is_empty() {
            None
        } else {
            state.wake_one(self.always_help)
        };
        drop(state);
        self.notify(other);
        next
    }

    /// Returns the work ahead of a task with this key if it were pushed now.
    pub(super) fn ahead(&self, key: &Key) -> Ahead {
        lock(&self.state).ahead(key, self.always_help)
    }

    /// Borrows the slot of an idle worker for the caller, if there is one. Returns the inline worker's own
    /// slot, which must be handed to [`return_slot`](Self::return_slot).
    pub(super) fn borrow_slot(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        if state.stopped || state.idle.is_empty() {
            return None;
        }
        // The longest asleep: workers with warm caches are left for pushed tasks.
        let slot = state.idle.remove(0);
        state.slots[slot] = SlotState::OnLoan;
        Some(self.threads + slot)
    }

    /// Returns the borrowed slot of the inline worker at `inline_slot`.
    pub(super) fn return_slot(&self, inline_slot: usize) {
        let slot = inline_slot - self.threads;
        let mut state = lock(&self.state);
        debug_assert_eq!(state.slots[slot], SlotState::OnLoan);
        if state.tasks.is_empty() && !state.stopped {
            state.park(slot, SlotState::Idle);
            return;
        }
        state.slots[slot] = SlotState::Awake;
        drop(state);
        self.notify(Some(slot));
    }

    /// Removes the task, if no worker has taken it.
    pub(super) fn remove(&self, key: &Key) -> Option<T> {
        lock(&self.state).tasks.remove(key)
    }

    /// Refuses tasks from now on and lets the workers exit once the queue is empty. With `empty` all queued
    /// tasks are removed at once and returned.
    pub(super) fn stop(&self, empty: bool) -> Vec<T> {
        let mut state = lock(&self.state);
        state.stopped = true;
        let tasks = if empty {
            state.tasks.take()
        } else {
            Vec::new()
        };
        while let Some(slot) = state.idle.pop() {
            state.slots[slot] = SlotState::Awake;
            self.condvars[slot].notify_one();
        }
        drop(state);
        tasks
    }

    pub(super) fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }
}

impl<T: Cost + Send> Wake for Queue<T> {
    fn wake(&self, slot: usize) {
        let called = lock(&self.state).unpark(slot);
        if called {
            self.condvars[slot].notify_one();
        }
    }
}
