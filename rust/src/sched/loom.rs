//! Loom models of the queue: each task is taken once, and no worker sleeps for ever.
//!
//! A lost wake-up is a deadlock, which loom reports. Run with `RUSTFLAGS="--cfg aif_loom" cargo test
//! --release -p aif-core sched::loom`; `LOOM_MAX_PREEMPTIONS` lowers the bound.

use super::order::Cost;
use super::queue::{HelpPolicy, Queue, WaitAction, WaitRequest, Wake};
use super::task::{Key, Signal, Waiter};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::JoinHandle;
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
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

fn key(sequence: u64) -> Key {
    Key {
        deadline_ns: u64::MAX,
        sequence,
    }
}

/// Waits for `awaited` as a worker does, and fires `by_task` after each task it runs meanwhile; returns
/// their sum.
fn help(
    queue: &Arc<Queue<usize>>,
    slot: usize,
    policy: HelpPolicy,
    awaited: &Signal,
    by_task: &Signal,
) -> usize {
    let owner = queue.clone() as Arc<dyn Wake>;
    awaited.add_waiter(Waiter { owner, slot });
    let request = WaitRequest {
        done: &|| awaited.is_fired(),
        own: None,
        policy,
        until: None,
    };
    let mut sum = 0;
    while let WaitAction::Run(task) = queue.wait(slot, &request) {
        sum += task;
        by_task.fire();
    }
    sum
}

/// Runs tasks as a worker does; returns their sum.
fn work(queue: &Queue<usize>, slot: usize) -> usize {
    std::iter::from_fn(|| queue.next(slot)).sum()
}

fn spawn_worker(queue: &Arc<Queue<usize>>, slot: usize) -> JoinHandle<usize> {
    let queue = queue.clone();
    loom::thread::spawn(move || work(&queue, slot))
}

fn join_all(workers: [JoinHandle<usize>; 2]) -> usize {
    workers
        .into_iter()
        .map(|worker| worker.join().unwrap())
        .sum()
}

/// Waits for `signal` as a worker does; returns the sum of the tasks it ran meanwhile.
fn wait(queue: &Arc<Queue<usize>>, slot: usize, signal: &Signal, own: Option<Key>) -> usize {
    let waiter = Waiter {
        owner: queue.clone() as Arc<dyn Wake>,
        slot,
    };
    signal.add_waiter(waiter.clone());
    let mut sum = 0;
    loop {
        let help = queue.wait(
            slot,
            &WaitRequest {
                done: &|| signal.is_fired(),
                own,
                policy: HelpPolicy::Allowed,
                until: None,
            },
        );
        match help {
            WaitAction::Done => break,
            WaitAction::Run(task) => {
                sum += task;
                if own.is_some() {
                    signal.fire();
                }
            }
            other => panic!("{other:?}"),
        }
    }
    signal.remove_waiter(&waiter);
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
        let workers = [0, 1].map(|slot| spawn_worker(&queue, slot));
        push(&queue, 0, 1);
        push(&queue, 1, 10);
        assert!(queue.stop(false).is_empty());
        assert_eq!(join_all(workers), 11);
    });
}

#[test]
fn cancelling_and_emptying_take_a_task_from_workers_or_leave_it_to_them() {
    explore(|| {
        let queue = Arc::new(Queue::new(1, 8, false));
        let taken = Arc::new(AtomicUsize::new(0));
        push(&queue, 0, 1);
        push(&queue, 1, 10);
        let worker = spawn_worker(&queue, 0);
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

/// Pushes a task while the signal fires: the waiter may be woken for the task and leave for the signal.
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
        let worker = spawn_worker(&queue, 1);
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

/// All threads wait for the queued task, so one of them must run it. The first helps if `first` allows it,
/// the second always does.
fn all_wait(always_help: bool, first: HelpPolicy) {
    explore(move || {
        let queue = Arc::new(Queue::new(2, 8, always_help));
        let signal = Arc::new(Signal::new());
        let waiters = [(0, first), (1, HelpPolicy::Allowed)].map(|(slot, policy)| {
            let (queue, signal) = (queue.clone(), signal.clone());
            loom::thread::spawn(move || help(&queue, slot, policy, &signal, &signal))
        });
        push(&queue, 0, 1);
        assert_eq!(join_all(waiters), 1);
    });
}

#[test]
fn eager_waiters_run_what_they_all_wait_for() {
    all_wait(true, HelpPolicy::Allowed);
}

#[test]
fn reluctant_waiters_run_what_they_all_wait_for() {
    all_wait(false, HelpPolicy::Allowed);
}

#[test]
fn a_waiter_that_never_helps_is_not_woken_instead_of_one_that_does() {
    all_wait(false, HelpPolicy::Never);
}

#[test]
fn a_waiter_that_leaves_passes_its_wake_up_on() {
    explore(|| {
        let queue = Arc::new(Queue::new(2, 8, true));
        let signals = Arc::new([Signal::new(), Signal::new()]);
        // The first leaves once its signal has fired and does not return to the queue. The second waits for
        // the task.
        let waiters = [0, 1].map(|slot| {
            let (queue, signals) = (queue.clone(), signals.clone());
            loom::thread::spawn(move || {
                help(
                    &queue,
                    slot,
                    HelpPolicy::Allowed,
                    &signals[slot],
                    &signals[1],
                )
            })
        });
        push(&queue, 0, 1);
        signals[0].fire();
        assert_eq!(join_all(waiters), 1);
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

/// An inline worker borrows a slot, if one is free, while a task is pushed; the worker must run the task
/// and exit.
fn loan_and_push(stop_first: bool) {
    explore(move || {
        let queue = Arc::new(Queue::new(1, 8, false));
        let worker = spawn_worker(&queue, 0);
        let borrower = loom::thread::spawn({
            let queue = queue.clone();
            move || {
                queue
                    .borrow_slot()
                    .map(|inline_slot| queue.return_slot(inline_slot))
                    .is_some()
            }
        });
        push(&queue, 0, 1);
        // The task must run, and the worker exit, whether the slot is returned before or after.
        if stop_first {
            assert!(queue.stop(false).is_empty());
            borrower.join().unwrap();
        } else {
            borrower.join().unwrap();
            assert!(queue.stop(false).is_empty());
        }
        assert_eq!(worker.join().unwrap(), 1);
    });
}

#[test]
fn a_task_pushed_while_a_slot_is_on_loan_runs_when_it_is_returned() {
    loan_and_push(false);
}

#[test]
fn a_stop_while_a_slot_is_on_loan_ends_the_worker_when_it_is_returned() {
    loan_and_push(true);
}

#[test]
fn a_task_runs_without_a_stop_although_its_slot_was_borrowed() {
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
        let borrower = loom::thread::spawn({
            let queue = queue.clone();
            move || {
                if let Some(inline_slot) = queue.borrow_slot() {
                    queue.return_slot(inline_slot);
                }
            }
        });
        push(&queue, 0, 1);
        // Without a stop that would wake everybody: only the push or the inline worker wakes the worker.
        assert!(ran.wait_on_thread(None));
        borrower.join().unwrap();
        assert!(queue.stop(false).is_empty());
        assert_eq!(worker.join().unwrap(), (Some(1), None));
    });
}

#[test]
fn two_inline_workers_never_share_a_slot_and_exclude_its_worker() {
    explore(|| {
        let queue = Arc::new(Queue::new(1, 8, false));
        let inside = Arc::new(AtomicUsize::new(0));
        // Sequentially consistent, so that the check itself cannot miss another thread.
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
        let borrower = loom::thread::spawn({
            let (queue, inside) = (queue.clone(), inside.clone());
            move || {
                if let Some(inline_slot) = queue.borrow_slot() {
                    occupy(&inside);
                    queue.return_slot(inline_slot);
                }
            }
        });
        if let Some(inline_slot) = queue.borrow_slot() {
            occupy(&inside);
            queue.return_slot(inline_slot);
        }
        push(&queue, 0, 1);
        borrower.join().unwrap();
        assert!(queue.stop(false).is_empty());
        assert_eq!(worker.join().unwrap(), 1);
    });
}

#[test]
fn an_inline_worker_that_waits_is_woken_in_its_own_slot() {
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
        // Only the task fires its signal: unless the worker has run it before, the inline worker must,
        // since the slot is on loan.
        let helped = queue.borrow_slot().map(|inline_slot| {
            let sum = help(&queue, inline_slot, HelpPolicy::Allowed, &signal, &signal);
            queue.return_slot(inline_slot);
            sum
        });
        pusher.join().unwrap();
        assert!(queue.stop(false).is_empty());
        assert_eq!(helped.unwrap_or(0) + worker.join().unwrap(), 1);
    });
}
