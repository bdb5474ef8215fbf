//! Tests of the scheduler with real threads.

mod admission;
mod circuit;
mod counting;
mod ending;
mod inline;
mod order;
#[path = "../../../tests/common/run_or_queue.rs"]
mod run_or_queue;
mod waiting;

use super::*;
use run_or_queue::RunOrQueue;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Barrier, Mutex};

const LONG: Option<Duration> = Some(Duration::from_secs(30));

fn scheduler(blocking: usize, compute: usize, bound: usize) -> Scheduler {
    Scheduler::new(&Config {
        blocking_threads: blocking,
        compute_threads: compute,
        queue_bound: bound,
        ..Config::default()
    })
    .unwrap()
}

/// Makes a job that runs `work`, and panics if it is dropped instead.
fn job(work: impl FnOnce() + Send + 'static) -> Job {
    Box::new(move |call| {
        assert!(
            matches!(call, JobCall::Run(_)),
            "dropped, though it should run: {call:?}"
        );
        work();
    })
}

/// Makes a job that reports the reason of its call.
fn reporting(name: &'static str, to: &Sender<(&'static str, String)>) -> Job {
    let to = to.clone();
    Box::new(move |call| {
        let told = match call {
            JobCall::Run(_) => "run".into(),
            JobCall::Expired(dropped) | JobCall::Refused(dropped) => dropped.error().to_string(),
            JobCall::Cancelled => "cancelled".into(),
            JobCall::Stopped => "stopped".into(),
        };
        to.send((name, told)).unwrap();
    })
}

/// Submits a job that runs `work`.
fn submit(scheduler: &Scheduler, lane: Lane, work: impl FnOnce() + Send + 'static) -> Ticket {
    scheduler.submit(lane, None, "", job(work)).unwrap()
}

/// Submits a job to the compute lane that reports the reason of its call under its name.
fn submit_reporting(
    scheduler: &Scheduler,
    deadline: Deadline,
    name: &'static str,
    to: &Sender<(&'static str, String)>,
) -> Ticket {
    scheduler
        .submit(Lane::Compute, deadline, name, reporting(name, to))
        .unwrap()
}

/// Occupies one thread of `lane` from the return of this function until the sender is dropped.
fn hold(scheduler: &Scheduler, lane: Lane, name: &str) -> (Sender<()>, Ticket) {
    let (release, released) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let work = job(move || {
        begun.send(()).unwrap();
        let _ = released.recv();
    });
    let ticket = scheduler.submit(lane, None, name, work).unwrap();
    begins.recv_timeout(LONG.unwrap()).unwrap();
    (release, ticket)
}

/// Holds a thread by [`hold`], under a name of no interest.
fn occupy(scheduler: &Scheduler, lane: Lane) -> (Sender<()>, Ticket) {
    hold(scheduler, lane, "occupy")
}

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn conserved(stats: &LaneStats) -> bool {
    stats.submitted
        == stats.completed
            + stats.failed
            + stats.cancelled
            + stats.expired
            + stats.shed
            + stats.panicked
        && stats.queued == 0
        && stats.running == 0
}

fn names(from: &Receiver<(&'static str, String)>, n: usize) -> Vec<&'static str> {
    (0..n)
        .map(|_| from.recv_timeout(LONG.unwrap()).unwrap().0)
        .collect()
}
