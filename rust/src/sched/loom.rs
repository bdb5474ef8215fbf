//! Every interleaving of the queue's protocol: each task is taken once, nobody sleeps for ever.
//!
//! A lost wake-up is a deadlock, which loom reports. Run with
//! `RUSTFLAGS="--cfg aif_loom" cargo test --release -p aif-core sched::loom`.

use super::order::Cost;
use super::queue::{Aid, Help, Queue, Wake, Wish};
use super::task::{Key, Signal, Waiter};
use loom::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

impl Cost for usize {
    fn cost_ns(&self) -> u64 {
        *self as u64
    }
}

/// Explores `model` with up to three preemptions, which is seconds; all interleavings of the larger models
/// would be hours, and three showed every fault that was planted to try them.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn key(sequence: u64) -> Key {
    Key {
        deadline_ns: u64::MAX,
        sequence,
    }
}

/// Waits for `awaited` as a worker does, and fires `by_task` for each task it helps with; returns the sum of
/// those.
fn help(
    queue: &Arc<Queue<usize>>,
    seat: usize,
    aid: Aid,
    awaited: &Signal,
    by_task: &Signal,
) -> usize {
    let place = queue.clone() as Arc<dyn Wake>;
    awaited.add(Waiter { place, seat });
    let wish = Wish {
        done: &|| awaited.is_fired(),
        own: None,
        aid,
        until: None,
    };
    let mut sum = 0;
    while let Help::Run(task) = queue.help(seat, &wish) {
        sum += task;
        by_task.fire();
    }
    sum
}

/// Runs tasks as a worker does; returns the sum of their values.
fn work(queue: &Queue<usize>, seat: usize) -> usize {
    std::iter::from_fn(|| queue.next(seat)).sum()
}

/// Waits for `signal` as a worker does; returns the sum of the tasks it helped with.
fn wait(queue: &Arc<Queue<usize>>, seat: usize, signal: &Signal, own: Option<Key>) -> usize {
    let waiter = Waiter {
        place: queue.clone() as Arc<dyn Wake>,
        seat,
    };
    signal.add(waiter.clone());
    let mut sum = 0;
    loop {
        let help = queue.help(
            seat,
            &Wish {
                done: &|| signal.is_fired(),
                own,
                aid: Aid::Yes,
                until: None,
            },
        );
        match help {
            Help::Done => break,
            Help::Run(task) => {
                sum += task;
                if own.is_some() {
                    signal.fire();
                }
            }
            other => panic!("{other:?}"),
        }
    }
    signal.forget(&waiter);
    sum
}

fn push(queue: &Queue<usize>, sequence: u64, task: usize) {
    assert!(
        queue
            .push(key(sequence), task, 0, true, None)
            .refused
            .is_none()
    );
}

#[test]
fn two_workers_take_each_task_once_and_leave_when_stopped() {
    explore(|| {
        let queue = Arc::new(Queue::new(2, 8, false));
        let workers = [0, 1].map(|seat| {
            let queue = queue.clone();
            loom::thread::spawn(move || work(&queue, seat))
        });
        push(&queue, 0, 1);
        push(&queue, 1, 10);
        assert!(queue.stop(false).is_empty());
        let done: usize = workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum();
        assert_eq!(done, 11);
    });
}

#[test]
fn cancelling_and_emptying_take_a_task_from_workers_or_leave_it_to_them() {
    explore(|| {
        let queue = Arc::new(Queue::new(1, 8, false));
        let taken = Arc::new(AtomicUsize::new(0));
        push(&queue, 0, 1);
        push(&queue, 1, 10);
        let worker = loom::thread::spawn({
            let queue = queue.clone();
            move || work(&queue, 0)
        });
        let canceller = loom::thread::spawn({
            let (queue, taken) = (queue.clone(), taken.clone());
            move || taken.fetch_add(queue.remove(&key(0)).unwrap_or(0), Ordering::Relaxed)
        });
        let dropped: usize = queue.stop(true).into_iter().sum();
        canceller.join().unwrap();
        let done = worker.join().unwrap();
        assert_eq!(done + dropped + taken.load(Ordering::Relaxed), 11);
    });
}

/// Pushes a task while the signal fires: the helper may be called for the one and leave for the other.
fn helper_and_worker(always_help: bool) {
    explore(move || {
        let queue = Arc::new(Queue::new(2, 8, always_help));
        let signal = Arc::new(Signal::new());
        let helper = loom::thread::spawn({
            let (queue, signal) = (queue.clone(), signal.clone());
            move || {
                let helped = wait(&queue, 0, &signal, None);
                helped + work(&queue, 0)
            }
        });
        let worker = loom::thread::spawn({
            let queue = queue.clone();
            move || work(&queue, 1)
        });
        push(&queue, 0, 1);
        signal.fire();
        assert!(queue.stop(false).is_empty());
        assert_eq!(helper.join().unwrap() + worker.join().unwrap(), 1);
    });
}

#[test]
fn a_task_pushed_to_an_eager_helper_is_never_stranded() {
    helper_and_worker(true);
}

#[test]
fn a_task_pushed_to_a_reluctant_helper_is_never_stranded() {
    helper_and_worker(false);
}

/// All threads wait, and what they wait for is in the queue: only help gets them out. The first helps if
/// `first` says so, the second always does.
fn all_wait(always_help: bool, first: Aid) {
    explore(move || {
        let queue = Arc::new(Queue::new(2, 8, always_help));
        let signal = Arc::new(Signal::new());
        let waiters = [(0, first), (1, Aid::Yes)].map(|(seat, aid)| {
            let (queue, signal) = (queue.clone(), signal.clone());
            loom::thread::spawn(move || help(&queue, seat, aid, &signal, &signal))
        });
        push(&queue, 0, 1);
        let ran: usize = waiters
            .into_iter()
            .map(|waiter| waiter.join().unwrap())
            .sum();
        assert_eq!(ran, 1);
    });
}

#[test]
fn eager_waiters_run_what_they_all_wait_for() {
    all_wait(true, Aid::Yes);
}

#[test]
fn reluctant_waiters_run_what_they_all_wait_for() {
    all_wait(false, Aid::Yes);
}

#[test]
fn a_waiter_that_never_helps_is_not_called_in_place_of_one_that_does() {
    all_wait(false, Aid::No);
}

#[test]
fn a_helper_that_leaves_passes_its_call_on() {
    explore(|| {
        let queue = Arc::new(Queue::new(2, 8, true));
        let signals = Arc::new([Signal::new(), Signal::new()]);
        // The first, once it has what it waits for, goes its way and does not come back to the queue. The
        // second waits for what the task does.
        let waiters = [0, 1].map(|seat| {
            let (queue, signals) = (queue.clone(), signals.clone());
            loom::thread::spawn(move || help(&queue, seat, Aid::Yes, &signals[seat], &signals[1]))
        });
        push(&queue, 0, 1);
        signals[0].fire();
        let ran: usize = waiters
            .into_iter()
            .map(|waiter| waiter.join().unwrap())
            .sum();
        assert_eq!(ran, 1);
    });
}

#[test]
fn the_awaited_task_runs_once_by_its_waiter_or_by_a_worker() {
    explore(|| {
        let queue = Arc::new(Queue::new(2, 8, true));
        let signal = Arc::new(Signal::new());
        push(&queue, 0, 1);
        let worker = loom::thread::spawn({
            let (queue, signal) = (queue.clone(), signal.clone());
            move || {
                let mut ran = 0;
                while let Some(task) = queue.next(1) {
                    ran += task;
                    signal.fire();
                }
                ran
            }
        });
        let helped = wait(&queue, 0, &signal, Some(key(0)));
        assert!(queue.stop(false).is_empty());
        assert_eq!(helped + worker.join().unwrap(), 1);
    });
}

/// A guest comes, if a seat is free, while a task is pushed; returns what the worker ran, having been sent home.
fn guest_and_push(stop_first: bool) {
    explore(move || {
        let queue = Arc::new(Queue::new(1, 8, false));
        let worker = loom::thread::spawn({
            let queue = queue.clone();
            move || work(&queue, 0)
        });
        let guest = loom::thread::spawn({
            let queue = queue.clone();
            move || queue.enter().map(|place| queue.leave(place)).is_some()
        });
        push(&queue, 0, 1);
        // The task must run, and the worker go home, whether the guest left before or leaves after.
        if stop_first {
            assert!(queue.stop(false).is_empty());
            guest.join().unwrap();
        } else {
            guest.join().unwrap();
            assert!(queue.stop(false).is_empty());
        }
        assert_eq!(worker.join().unwrap(), 1);
    });
}

#[test]
fn a_task_pushed_while_a_guest_has_the_seat_runs_when_it_leaves() {
    guest_and_push(false);
}

#[test]
fn a_stop_while_a_guest_has_the_seat_sends_the_worker_home_when_it_leaves() {
    guest_and_push(true);
}

#[test]
fn a_task_runs_before_anyone_stops_though_a_guest_came_between() {
    explore(|| {
        let queue = Arc::new(Queue::new(1, 8, false));
        let ran = Arc::new(Signal::new());
        let worker = loom::thread::spawn({
            let (queue, ran) = (queue.clone(), ran.clone());
            move || {
                let task = queue.next(0);
                ran.fire();
                (task, queue.next(0))
            }
        });
        let guest = loom::thread::spawn({
            let queue = queue.clone();
            move || {
                if let Some(place) = queue.enter() {
                    queue.leave(place);
                }
            }
        });
        push(&queue, 0, 1);
        // Without a stop that would wake everybody: only the push or the guest calls the worker.
        assert!(ran.park_outsider(None));
        guest.join().unwrap();
        assert!(queue.stop(false).is_empty());
        assert_eq!(worker.join().unwrap(), (Some(1), None));
    });
}

#[test]
fn two_guests_never_share_a_seat_and_exclude_its_worker() {
    explore(|| {
        let queue = Arc::new(Queue::new(1, 8, false));
        let inside = Arc::new(AtomicUsize::new(0));
        // Sequentially consistent, so that the check itself cannot miss another.
        let occupy = |inside: &AtomicUsize| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            inside.fetch_sub(1, Ordering::SeqCst);
        };
        let worker = loom::thread::spawn({
            let (queue, inside) = (queue.clone(), inside.clone());
            move || {
                let mut sum = 0;
                while let Some(task) = queue.next(0) {
                    occupy(&inside);
                    sum += task;
                }
                sum
            }
        });
        let guest = loom::thread::spawn({
            let (queue, inside) = (queue.clone(), inside.clone());
            move || {
                if let Some(place) = queue.enter() {
                    occupy(&inside);
                    queue.leave(place);
                }
            }
        });
        if let Some(place) = queue.enter() {
            occupy(&inside);
            queue.leave(place);
        }
        push(&queue, 0, 1);
        guest.join().unwrap();
        assert!(queue.stop(false).is_empty());
        assert_eq!(worker.join().unwrap(), 1);
    });
}

#[test]
fn a_guest_that_waits_is_called_in_its_own_place() {
    explore(|| {
        let queue = Arc::new(Queue::new(1, 8, true));
        let signal = Arc::new(Signal::new());
        let worker = loom::thread::spawn({
            let (queue, signal) = (queue.clone(), signal.clone());
            move || {
                let tasks = std::iter::from_fn(|| queue.next(0));
                tasks.inspect(|_| signal.fire()).sum::<usize>()
            }
        });
        let pusher = loom::thread::spawn({
            let queue = queue.clone();
            move || push(&queue, 0, 1)
        });
        // What it waits for is done by the task alone: if the worker has not run it before, it must do so
        // itself, since the worker's seat is lent.
        let helped = queue.enter().map(|place| {
            let sum = help(&queue, place, Aid::Yes, &signal, &signal);
            queue.leave(place);
            sum
        });
        pusher.join().unwrap();
        assert!(queue.stop(false).is_empty());
        assert_eq!(helped.unwrap_or(0) + worker.join().unwrap(), 1);
    });
}
