//! Stress test of the scheduler: many threads use it in every way at once, and it is stopped meanwhile.
//! Each task ends exactly once, no lane runs more tasks than it has threads, and all counts add up.
//!
//! A round is a scheduler from its start to its stop. Rounds are repeated for a short time, or for
//! `AIF_STRESS_SECONDS`.

#[path = "common/run_or_queue.rs"]
mod run_or_queue;

use aif_core::error::Error;
use aif_core::sched::{
    CircuitState, Config, Job, JobCall, JobOutcome, Lane, LaneStats, RunInline, Running, Scheduler,
    Signal, Target, Ticket, wait,
};
use run_or_queue::RunOrQueue;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

const CALLERS: u64 = 6;
const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn time() -> Duration {
    let seconds = std::env::var("AIF_STRESS_SECONDS").ok();
    seconds.map_or(Duration::from_millis(500), |seconds| {
        Duration::from_secs_f64(seconds.parse().expect("AIF_STRESS_SECONDS is a number"))
    })
}

/// xorshift64*; a seed of its own for each thread and round, so that a failing round can be identified.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// Observations of the tasks and the callers of a round, for each lane.
#[derive(Default)]
struct Seen {
    accepted: AtomicU64,
    completed: AtomicU64,
    panicked: AtomicU64,
    expired: AtomicU64,
    cancelled: AtomicU64,
    shed: AtomicU64,
    overloaded: AtomicU64,
    stopped: AtomicU64,
    inside: AtomicI64,
    most: AtomicI64,
}

impl Seen {
    fn up(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self, error: &Error) {
        match error {
            Error::Overloaded(_) | Error::QueueFull { .. } => Self::up(&self.overloaded),
            Error::Scheduler(text) if text.contains("shut down") => Self::up(&self.stopped),
            other => panic!("{other}"),
        }
    }
}

struct Round {
    scheduler: Scheduler,
    seen: [Seen; 2],
    tickets: Mutex<Vec<Ticket>>,
}

impl Round {
    fn seen(&self, lane: Lane) -> &Seen {
        &self.seen[lane as usize]
    }

    /// Does the work of a task: spins, sleeps, submits and waits, or panics.
    fn work(self: &Arc<Self>, lane: Lane, kind: u64, depth: u64) {
        let seen = self.seen(lane);
        // A task that waits or calls nested work is not running meanwhile; others may be on its thread.
        let enter = || {
            let inside = seen.inside.fetch_add(1, Ordering::SeqCst) + 1;
            seen.most.fetch_max(inside, Ordering::SeqCst);
        };
        let leave = || seen.inside.fetch_sub(1, Ordering::SeqCst);
        enter();
        match kind % 5 {
            0 if kind % 4 == 3 => sleep(Duration::from_millis(1)),
            0 => sleep(Duration::from_micros(50)),
            1 => drop(std::hint::black_box(vec![kind; 500])),
            _ => {}
        }
        leave();
        match kind % 11 {
            0 if depth > 0 => {
                if let Some(ticket) = self.submit(lane, None, kind / 11, depth - 1) {
                    // Refused if it would close a cycle, or if too many wait already.
                    match wait(Target::Task(&ticket), LONG) {
                        Ok(()) | Err(Error::Scheduler(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            1 if depth > 0 => self.run(lane, None, kind / 11, depth - 1),
            2 => resume_unwind(Box::new("on purpose")),
            _ => {}
        }
    }

    fn job(self: &Arc<Self>, lane: Lane, kind: u64, depth: u64) -> Job {
        let round = self.clone();
        Box::new(move |call| {
            let seen = round.seen(lane);
            match call {
                JobCall::Run(running) => {
                    let outcome = catch_unwind(AssertUnwindSafe(|| round.work(lane, kind, depth)));
                    let (count, end) = match outcome {
                        Ok(()) => (&seen.completed, JobOutcome::Completed),
                        Err(_) => (&seen.panicked, JobOutcome::Panicked),
                    };
                    Seen::up(count);
                    running.finish(end);
                }
                JobCall::Expired(_) => Seen::up(&seen.expired),
                JobCall::Refused(_) => Seen::up(&seen.shed),
                JobCall::Cancelled | JobCall::Stopped => Seen::up(&seen.cancelled),
            }
        })
    }

    fn submit(
        self: &Arc<Self>,
        lane: Lane,
        deadline: Option<Instant>,
        kind: u64,
        depth: u64,
    ) -> Option<Ticket> {
        let name = ["", "a", "b", "stuck"][(kind % 4) as usize];
        match self
            .scheduler
            .submit(lane, deadline, name, self.job(lane, kind, depth))
        {
            Ok(ticket) => {
                Seen::up(&self.seen(lane).accepted);
                Some(ticket)
            }
            Err(error) => {
                self.seen(lane).refused(&error);
                None
            }
        }
    }

    fn run(self: &Arc<Self>, lane: Lane, deadline: Option<Instant>, kind: u64, depth: u64) {
        // In the blocking lane without a name, so that no circuit is in the way: its error would not tell
        // whether the task was refused at submission or later.
        let name = ["", "run"][lane as usize];
        let round = self.clone();
        let seen = self.seen(lane);
        let began = Arc::new(AtomicBool::new(false));
        let inside = began.clone();
        let run = || {
            self.scheduler.run(lane, deadline, name, move || {
                inside.store(true, Ordering::SeqCst);
                round.work(lane, kind, depth);
            })
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Err(_) => {
                Seen::up(&seen.accepted);
                Seen::up(&seen.panicked);
            }
            Ok(Ok(())) => {
                Seen::up(&seen.accepted);
                Seen::up(&seen.completed);
            }
            Ok(Err(error)) => {
                assert!(!began.load(Ordering::SeqCst), "{error}");
                match &error {
                    Error::DeadlineExceeded(_) => {
                        Seen::up(&seen.accepted);
                        Seen::up(&seen.expired);
                    }
                    // Either the queue was emptied, or the wait was refused and the task removed.
                    Error::Scheduler(text) if !text.contains("came after") => {
                        Seen::up(&seen.accepted);
                        Seen::up(&seen.cancelled);
                    }
                    other => seen.refused(other),
                }
            }
        }
    }

    /// Runs one caller until the scheduler is stopped.
    fn call(self: &Arc<Self>, random: &mut Random) {
        let mut mine: Vec<Ticket> = Vec::new();
        while !self.scheduler.is_stopped() {
            let lane = Lane::ALL[random.below(2) as usize];
            let kind = random.below(10_000);
            let deadline = match random.below(4) {
                0 => Some(Instant::now() + Duration::from_micros(random.below(3_000))),
                1 => Some(Instant::now() + Duration::from_secs(60)),
                _ => None,
            };
            match random.below(12) {
                0..=5 => mine.extend(self.submit(lane, deadline, kind, 3)),
                6..=8 => self.run(lane, deadline, kind, 3),
                9 => {
                    // Cancels all of its tasks, started or not.
                    for ticket in &mine {
                        ticket.cancel();
                    }
                }
                10 => {
                    if let Some(ticket) = mine.last() {
                        wait(Target::Task(ticket), LONG).unwrap();
                    }
                    let _ = self.scheduler.predict(lane, "a", deadline);
                }
                _ => {
                    if let Some(ticket) = mine.last() {
                        let _ = ticket.expire();
                    }
                }
            }
            if mine.len() > 50 {
                self.tickets.lock().unwrap().append(&mut mine);
            }
        }
        self.tickets.lock().unwrap().append(&mut mine);
    }

    fn check(&self, config: &Config, drop_queued: bool) {
        for ticket in self.tickets.lock().unwrap().iter() {
            assert!(ticket.has_ended());
        }
        for (lane, threads) in Lane::ALL
            .into_iter()
            .zip([config.blocking_threads, config.compute_threads])
        {
            let stats: LaneStats = self.scheduler.stats(lane);
            let seen = self.seen(lane);
            let get = |count: &AtomicU64| count.load(Ordering::SeqCst);
            let told = [
                &seen.completed,
                &seen.panicked,
                &seen.expired,
                &seen.cancelled,
                &seen.shed,
            ]
            .map(get);
            let counted = [
                stats.completed,
                stats.panicked,
                stats.expired,
                stats.cancelled,
                stats.shed,
            ];
            assert_eq!(told, counted, "{lane:?} {drop_queued} {stats:?}");
            assert_eq!(get(&seen.accepted), stats.submitted, "{stats:?}");
            assert_eq!(counted.iter().sum::<u64>(), stats.submitted, "{stats:?}");
            assert_eq!((stats.queued, stats.running), (0, 0));
            assert_eq!(
                get(&seen.overloaded) + get(&seen.stopped),
                stats.rejected + stats.refused_late + stats.refused_open,
                "{stats:?}"
            );
            assert_eq!(seen.inside.load(Ordering::SeqCst), 0);
            assert!(seen.most.load(Ordering::SeqCst) <= threads as i64);
            for name in self.scheduler.names(lane) {
                assert_eq!(name.running, 0, "{name:?}");
                assert!(lane == Lane::Blocking || name.circuit == CircuitState::Closed);
            }
        }
    }
}

#[test]
fn every_task_has_one_end_and_every_count_adds_up() {
    let until = Instant::now() + time();
    // Of all rounds, so that no kind of end is missing from the test itself.
    let mut totals = [0_u64; 8];
    let mut round = 0_u64;
    while round < 12 || Instant::now() < until {
        let config = Config {
            blocking_threads: 1 + (round % 3) as usize,
            compute_threads: 1 + (round / 3 % 3) as usize,
            queue_bound: [4, 64, 1024][(round % 3) as usize],
            hang: round
                .is_multiple_of(2)
                .then_some(Duration::from_micros(200)),
            // So that a thread remains that finds the circuit open.
            hang_share: 0.4,
            admission: round % 5 != 4,
            ..Config::default()
        };
        let one = Arc::new(Round {
            scheduler: Scheduler::new(&config).unwrap(),
            seen: Default::default(),
            tickets: Mutex::default(),
        });
        let start = Barrier::new(CALLERS as usize + 1);
        let drop_queued = round % 4 < 2;
        scope(|scope| {
            for caller in 0..CALLERS {
                let (one, start) = (&one, &start);
                scope.spawn(move || {
                    start.wait();
                    one.call(&mut Random(
                        (round * CALLERS + caller + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                    ));
                });
            }
            start.wait();
            sleep(Duration::from_millis(20 + round % 30));
            one.scheduler.stop(drop_queued);
        });
        assert!(
            one.scheduler.join(LONG).unwrap(),
            "round {round}: threads are left"
        );
        one.check(&config, drop_queued);
        for lane in Lane::ALL {
            let stats = one.scheduler.stats(lane);
            let ends = [
                stats.completed,
                stats.panicked,
                stats.expired,
                stats.cancelled,
                stats.shed,
                stats.rejected,
                stats.refused_late,
                stats.refused_open,
            ];
            for (total, end) in totals.iter_mut().zip(ends) {
                *total += end;
            }
        }
        round += 1;
    }
    assert!(
        totals.iter().all(|&total| total > 0),
        "something never happened: {totals:?}"
    );
}

/// Every waiter outside the scheduler is woken by the end of its task, however it ends.
#[test]
fn every_waiter_is_woken_however_its_task_ends() {
    let until = Instant::now() + time() / 2;
    let mut rounds = 0_u64;
    while rounds < 50 || Instant::now() < until {
        let scheduler = Arc::new(
            Scheduler::new(&Config {
                blocking_threads: 1,
                compute_threads: 2,
                ..Config::default()
            })
            .unwrap(),
        );
        let fired = Arc::new(Signal::new());
        let tickets: Vec<Ticket> = (0..8)
            .map(|n| {
                let deadline = (n % 3 == 0).then(|| Instant::now() + Duration::from_micros(100));
                let fired = fired.clone();
                let job: Job = Box::new(move |_| fired.fire());
                scheduler.submit(Lane::Compute, deadline, "", job).unwrap()
            })
            .collect();
        scope(|scope| {
            for ticket in &tickets {
                scope.spawn(|| wait(Target::Task(ticket), LONG).unwrap());
            }
            scope.spawn(|| wait(Target::Signal(&fired), LONG).unwrap());
            scope.spawn(|| {
                for ticket in &tickets {
                    ticket.cancel();
                }
            });
            scope.spawn(|| {
                sleep(Duration::from_micros(50 * (rounds % 5)));
                scheduler.stop(rounds.is_multiple_of(2));
            });
        });
        assert!(scheduler.join(LONG).unwrap());
        rounds += 1;
    }
}
