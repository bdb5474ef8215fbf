//! One lane: a bounded queue in order of urgency, and the seats where its threads sleep.
//!
//! Everything is under one short lock; nothing is dropped or allocated by the caller's types while it is
//! held, and what is called takes no lock.
//!
//! # Guests
//!
//! A caller that runs its work itself takes the seat of an idle thread: that thread sleeps on, *lent*, and the
//! guest counts in its place, so no more tasks of the lane run at once than it has threads. There is an idle
//! thread only while every queued task has had a thread called for it, so a guest overtakes nobody. A guest has
//! a place of its own to sleep in, beside that of the thread whose seat it took: both may sleep at once, the
//! one inside a wait, the other until its seat comes back.
//!
//! # No lost wake-up
//!
//! A thread sleeps only after it has looked, under the lock, for all that could concern it; whoever
//! changes any of it takes the lock, marks the sleeper awake, and then notifies that sleeper's own
//! condition variable. So a change comes either before the look or after the sleep has begun. Three
//! interleavings need a line each:
//!
//! - A helper woken for a task finds that what it waits for is done, and leaves. The task would sit
//!   there while others sleep, so a leaving helper passes the wake-up on.
//! - A guest leaves while tasks wait that came after all seats were taken. They called nobody, so the guest
//!   looks, under the lock, as it gives the seat back: the thread either goes to work, or to sleep as if it
//!   had looked itself. The same goes for a stop meanwhile, which calls only those who sleep as idle.
//! - The last running thread of a lane that only helps in need begins to wait while tasks are queued.
//!   Nobody pushes again, so it must look itself, counting itself among the waiting, and if it is not one
//!   to help it must call one that is.

use super::order::{Before, Cost, Order};
use super::task::Key;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Takes a lock whose guarded code cannot panic half-way, so that poison says nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps until notified or, with a time left, until it has passed.
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

/// What can be woken at a numbered seat.
pub(super) trait Wake: Send + Sync {
    /// Wakes the sleeper at `seat`, who then looks again; nothing if nobody sleeps there.
    fn wake(&self, seat: usize);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seat {
    Awake,
    /// Sleeps for lack of tasks.
    Idle,
    /// Sleeps inside a wait, and may be called to help.
    Helper,
    /// Sleeps inside a wait until what it waits for has happened.
    Deaf,
    /// Sleeps until the guest that took its seat gives it back.
    Lent,
}

/// What a task would find if it came now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ahead {
    /// A thread that is idle, or that waits and would help at once.
    Free,
    /// Queued tasks that go first.
    Queued(Before),
}

struct State<T> {
    tasks: Order<T>,
    /// A place for each thread, then one for each thread's guest.
    seats: Vec<Seat>,
    /// Seats marked `Idle`, the last to fall asleep at the end: its caches are the warmest.
    idle: Vec<usize>,
    /// Seats marked `Helper`.
    helpers: Vec<usize>,
    /// Threads inside a wait and not running a task, asleep or about to look.
    waiting: usize,
    /// Threads that have not left.
    threads: usize,
    stopped: bool,
}

/// Why a queue took no task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Full,
    Stopped,
    /// The judge said no.
    Late,
}

/// What became of a push.
pub(super) struct Pushed<T> {
    /// The task comes back if it was refused.
    pub(super) refused: Option<(T, Refusal)>,
    /// Tasks whose deadline has passed, thrown out to make room.
    pub(super) expired: Vec<T>,
}

/// What a waiter shall do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Help<T> {
    /// What it waits for has happened.
    Done,
    /// Run this task, then come back.
    Run(T),
    /// A task needs it, but it has already buried as many tasks as it may.
    TooDeep,
    /// The time is over.
    TimedOut,
}

/// Whether a waiter runs tasks that it does not wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aid {
    No,
    Yes,
    /// It ought to, but has buried as many as it may.
    Exhausted,
}

/// What a waiter waits for, and how far it may go meanwhile.
pub(super) struct Wish<'a> {
    /// Whether it has happened. Read under the lock.
    pub(super) done: &'a dyn Fn() -> bool,
    /// The key of the awaited task if it belongs to this lane: run it rather than wait for it.
    pub(super) own: Option<Key>,
    /// Whether it runs tasks that it does not wait for.
    pub(super) aid: Aid,
    pub(super) until: Option<Instant>,
}

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    /// One a place, so that a wake-up goes to one sleeper and to the right one.
    condvars: Box<[Condvar]>,
    threads: usize,
    bound: usize,
    /// Whether waiters always run what is queued, or only when no other thread of the lane runs.
    always_help: bool,
}

impl<T: Cost> State<T> {
    /// Marks who shall look at the queue awake, and names them; the caller notifies.
    fn call_one(&mut self, always_help: bool) -> Option<usize> {
        let seat = self.idle.pop().or_else(|| {
            let needed = always_help || self.waiting == self.threads;
            if needed { self.helpers.pop() } else { None }
        })?;
        self.seats[seat] = Seat::Awake;
        Some(seat)
    }

    fn park(&mut self, seat: usize, kind: Seat) {
        self.seats[seat] = kind;
        match kind {
            Seat::Idle => self.idle.push(seat),
            Seat::Helper => self.helpers.push(seat),
            Seat::Deaf | Seat::Awake | Seat::Lent => {}
        }
    }

    /// Marks `seat` awake; false if it was.
    fn unpark(&mut self, seat: usize) -> bool {
        match self.seats[seat] {
            // A seat that is lent comes back by its guest alone.
            Seat::Awake | Seat::Lent => return false,
            Seat::Deaf => {}
            Seat::Idle => self.idle.retain(|&other| other != seat),
            Seat::Helper => self.helpers.retain(|&other| other != seat),
        }
        self.seats[seat] = Seat::Awake;
        true
    }

    /// What a task with this key would find.
    fn ahead(&self, key: &Key, always_help: bool) -> Ahead {
        if !self.idle.is_empty() || (always_help && !self.helpers.is_empty()) {
            Ahead::Free
        } else {
            Ahead::Queued(self.tasks.before(key))
        }
    }
}

impl<T: Cost> Queue<T> {
    pub(super) fn new(threads: usize, bound: usize, always_help: bool) -> Self {
        Self {
            state: Mutex::new(State {
                tasks: Order::new(),
                seats: vec![Seat::Awake; 2 * threads],
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

    /// Threads that would take up a task at once, or whose seats a guest could take.
    pub(super) fn idle(&self) -> usize {
        lock(&self.state).idle.len()
    }

    fn notify(&self, seat: Option<usize>) {
        if let Some(seat) = seat {
            self.condvars[seat].notify_one();
        }
    }

    /// Queues `task`. A full queue first gives up what has expired: in order of deadline it is in front; if it
    /// still is full, a `bounded` task is refused.
    ///
    /// `judge`, called under the lock, is told what goes before the task, and may refuse it.
    pub(super) fn push(
        &self,
        key: Key,
        task: T,
        now_ns: u64,
        bounded: bool,
        judge: Option<&mut dyn FnMut(Ahead) -> bool>,
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
                let refused = Some((task, Refusal::Full));
                return Pushed { refused, expired };
            }
        }
        if let Some(judge) = judge
            && !judge(state.ahead(&key, self.always_help))
        {
            let refused = Some((task, Refusal::Late));
            return Pushed { refused, expired };
        }
        state.tasks.insert(key, task);
        let seat = state.call_one(self.always_help);
        drop(state);
        self.notify(seat);
        Pushed {
            refused: None,
            expired,
        }
    }

    /// The most urgent task for the worker at `seat`, who sleeps until there is one; none when the
    /// queue is stopped and empty, after which the worker must not come back.
    pub(super) fn next(&self, seat: usize) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(task) = state.tasks.pop() {
                return Some(task);
            }
            if state.stopped {
                state.threads -= 1;
                return None;
            }
            state.park(seat, Seat::Idle);
            while state.seats[seat] != Seat::Awake {
                state = sleep(&self.condvars[seat], state, None);
            }
        }
    }

    /// What the worker at `seat`, who waits, shall do next; sleeps while that is nothing.
    pub(super) fn help(&self, seat: usize, wish: &Wish<'_>) -> Help<T> {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let next = loop {
            if (wish.done)() {
                break Help::Done;
            }
            if let Some(task) = wish.own.and_then(|key| state.tasks.remove(&key)) {
                break Help::Run(task);
            }
            let needed = self.always_help || state.waiting == state.threads;
            if needed && !state.tasks.is_empty() {
                match wish.aid {
                    Aid::No => {}
                    Aid::Exhausted => break Help::TooDeep,
                    Aid::Yes => {
                        if let Some(task) = state.tasks.pop() {
                            break Help::Run(task);
                        }
                    }
                }
            }
            let left = wish
                .until
                .map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break Help::TimedOut;
            }
            if !state.tasks.is_empty() {
                // This thread may have been the last to run, and not one to help.
                let other = state.call_one(self.always_help);
                self.notify(other);
            }
            let kind = if wish.aid == Aid::No {
                Seat::Deaf
            } else {
                Seat::Helper
            };
            state.park(seat, kind);
            while state.seats[seat] != Seat::Awake {
                state = sleep(&self.condvars[seat], state, left);
                if left.is_some() {
                    // Awake by time or by call: the loop finds out which.
                    state.unpark(seat);
                }
            }
        };
        state.waiting -= 1;
        // This thread may have been called for a task that it does not take.
        let other = if matches!(next, Help::Run(_)) || state.tasks.is_empty() {
            None
        } else {
            state.call_one(self.always_help)
        };
        drop(state);
        self.notify(other);
        next
    }

    /// What a task with this key would find in front of it now.
    pub(super) fn ahead(&self, key: &Key) -> Ahead {
        lock(&self.state).ahead(key, self.always_help)
    }

    /// Takes the seat of an idle thread for the caller, if there is one; returns the guest's place, which must
    /// be given back with [`leave`](Self::leave).
    pub(super) fn enter(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        if state.stopped || state.idle.is_empty() {
            return None;
        }
        // The one that has slept longest: those whose caches are warm are left for what is pushed.
        let seat = state.idle.remove(0);
        state.seats[seat] = Seat::Lent;
        Some(self.threads + seat)
    }

    /// Gives the seat back from which a guest came to `place`.
    pub(super) fn leave(&self, place: usize) {
        let seat = place - self.threads;
        let mut state = lock(&self.state);
        debug_assert_eq!(state.seats[seat], Seat::Lent);
        if state.tasks.is_empty() && !state.stopped {
            state.park(seat, Seat::Idle);
            return;
        }
        state.seats[seat] = Seat::Awake;
        drop(state);
        self.notify(Some(seat));
    }

    /// Takes the task out, if nobody has.
    pub(super) fn remove(&self, key: &Key) -> Option<T> {
        lock(&self.state).tasks.remove(key)
    }

    /// Refuses tasks from now on and sends the workers home once the queue is empty. With `empty` it is
    /// emptied at once and the tasks come back.
    pub(super) fn stop(&self, empty: bool) -> Vec<T> {
        let mut state = lock(&self.state);
        state.stopped = true;
        let tasks = if empty {
            state.tasks.take()
        } else {
            Vec::new()
        };
        while let Some(seat) = state.idle.pop() {
            state.seats[seat] = Seat::Awake;
            self.condvars[seat].notify_one();
        }
        drop(state);
        tasks
    }

    pub(super) fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }
}

impl<T: Cost + Send> Wake for Queue<T> {
    fn wake(&self, seat: usize) {
        let called = lock(&self.state).unpark(seat);
        if called {
            self.condvars[seat].notify_one();
        }
    }
}
