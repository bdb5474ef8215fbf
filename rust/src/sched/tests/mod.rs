//! The scheduler with real threads.

mod waiting;

use super::*;
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

/// A job that runs `work`, and panics if it is dropped instead.
fn job(work: impl FnOnce() + Send + 'static) -> Job {
    Box::new(move |turn| {
        assert!(
            matches!(turn, Turn::Run(_)),
            "dropped, though it should run: {turn:?}"
        );
        work();
    })
}

/// A job that says what it was told.
fn telling(name: &'static str, to: &Sender<(&'static str, String)>) -> Job {
    let to = to.clone();
    Box::new(move |turn| {
        let told = match turn {
            Turn::Run(_) => "run".into(),
            Turn::Expired(error) => error.to_string(),
            Turn::Cancelled => "cancelled".into(),
            Turn::Stopped => "stopped".into(),
        };
        to.send((name, told)).unwrap();
    })
}

/// Occupies one thread of `lane` from the return of this function until the sender is dropped.
fn occupy(scheduler: &Scheduler, lane: Lane) -> (Sender<()>, Ticket) {
    let (release, released) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let ticket = scheduler
        .submit(
            lane,
            None,
            "occupy",
            job(move || {
                begun.send(()).unwrap();
                let _ = released.recv();
            }),
        )
        .unwrap();
    begins.recv_timeout(LONG.unwrap()).unwrap();
    (release, ticket)
}

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn conserved(stats: &LaneStats) -> bool {
    stats.submitted
        == stats.completed + stats.failed + stats.cancelled + stats.expired + stats.panicked
        && stats.queued == 0
        && stats.running == 0
}

fn names(from: &Receiver<(&'static str, String)>, n: usize) -> Vec<&'static str> {
    (0..n)
        .map(|_| from.recv_timeout(LONG.unwrap()).unwrap().0)
        .collect()
}

#[test]
fn the_earliest_deadline_goes_first_and_none_last() {
    let scheduler = scheduler(1, 1, 16);
    let (release, _) = occupy(&scheduler, Lane::Compute);
    let (to, from) = mpsc::channel();
    for (name, deadline) in [
        ("none, first", None),
        ("in 60 s", Some(in_ms(60_000))),
        ("none, second", None),
        ("in 20 s", Some(in_ms(20_000))),
        ("in 40 s", Some(in_ms(40_000))),
    ] {
        scheduler
            .submit(Lane::Compute, deadline, name, telling(name, &to))
            .unwrap();
    }
    drop(release);
    assert_eq!(
        names(&from, 5),
        [
            "in 20 s",
            "in 40 s",
            "in 60 s",
            "none, first",
            "none, second"
        ]
    );
}

#[test]
fn lanes_do_not_wait_for_each_other() {
    let scheduler = scheduler(1, 1, 16);
    let (release, busy) = occupy(&scheduler, Lane::Blocking);
    let ticket = scheduler
        .submit(Lane::Compute, None, "", job(|| ()))
        .unwrap();
    wait(Target::Task(&ticket), LONG).unwrap();
    assert!(!busy.has_ended());
    drop(release);
}

#[test]
fn a_full_queue_refuses_and_says_so() {
    let scheduler = scheduler(1, 1, 2);
    let (release, _) = occupy(&scheduler, Lane::Blocking);
    for _ in 0..2 {
        scheduler
            .submit(Lane::Blocking, None, "", job(|| ()))
            .unwrap();
    }
    let called = Arc::new(AtomicBool::new(false));
    let seen = called.clone();
    let refused: Job = Box::new(move |_| {
        seen.store(true, Ordering::SeqCst);
    });
    let error = scheduler
        .submit(Lane::Blocking, None, "", refused)
        .unwrap_err();
    assert!(
        matches!(&error, Error::Overloaded(text) if text.contains("blocking lane already holds 2"))
    );
    drop(release);
    scheduler.stop(false);
    scheduler.join(None).unwrap();
    let stats = scheduler.stats(Lane::Blocking);
    assert!(conserved(&stats), "{stats:?}");
    assert_eq!(
        (stats.submitted, stats.completed, stats.rejected),
        (3, 3, 1)
    );
    assert!(!called.load(Ordering::SeqCst));
}

#[test]
fn expired_tasks_make_room_in_a_full_queue() {
    let scheduler = scheduler(1, 1, 2);
    let (release, _) = occupy(&scheduler, Lane::Compute);
    let (to, from) = mpsc::channel();
    let soon = Some(in_ms(5));
    for name in ["a", "b"] {
        scheduler
            .submit(Lane::Compute, soon, name, telling(name, &to))
            .unwrap();
    }
    std::thread::sleep(Duration::from_millis(10));
    scheduler
        .submit(Lane::Compute, None, "c", telling("c", &to))
        .unwrap();
    for name in ["a", "b"] {
        let (who, told) = from.try_recv().unwrap();
        assert_eq!(who, name);
        assert!(told.contains("after its deadline"), "{told}");
    }
    drop(release);
    assert_eq!(names(&from, 1), ["c"]);
}

#[test]
fn an_expired_task_is_dropped_before_it_starts() {
    let scheduler = scheduler(1, 1, 16);
    let (release, _) = occupy(&scheduler, Lane::Compute);
    let (to, from) = mpsc::channel();
    let late = scheduler
        .submit(Lane::Compute, Some(in_ms(5)), "late", telling("late", &to))
        .unwrap();
    let past = scheduler
        .submit(
            Lane::Compute,
            Some(scheduler.anchor()),
            "past",
            telling("past", &to),
        )
        .unwrap();
    assert!(past.has_ended(), "nothing to wait for");
    std::thread::sleep(Duration::from_millis(10));
    drop(release);
    wait(Target::Task(&late), LONG).unwrap();
    let told: Vec<_> = from.try_iter().collect();
    assert_eq!(
        told.iter().map(|told| told.0).collect::<Vec<_>>(),
        ["past", "late"]
    );
    assert!(
        told[1].1.contains("\"late\"") && told[1].1.contains("compute lane"),
        "{told:?}"
    );
    scheduler.stop(false);
    scheduler.join(None).unwrap();
    let stats = scheduler.stats(Lane::Compute);
    assert!(conserved(&stats) && stats.expired == 2, "{stats:?}");
}

#[test]
fn cancelling_frees_the_place_at_once_and_never_stops_what_runs() {
    let scheduler = scheduler(1, 1, 1);
    let (release, running) = occupy(&scheduler, Lane::Compute);
    let (to, from) = mpsc::channel();
    let first = scheduler
        .submit(Lane::Compute, None, "", telling("first", &to))
        .unwrap();
    assert!(first.cancel() && first.has_ended());
    assert_eq!(from.try_recv().unwrap(), ("first", "cancelled".into()));
    assert!(!first.cancel(), "a second time");
    let second = scheduler
        .submit(Lane::Compute, None, "", telling("second", &to))
        .unwrap();
    assert!(!running.cancel());
    drop(release);
    wait(Target::Task(&second), LONG).unwrap();
    assert!(!second.cancel(), "after the end");
    assert_eq!(scheduler.stats(Lane::Compute).cancelled, 1);
}

#[test]
fn a_worker_survives_panics() {
    let scheduler = scheduler(1, 1, 64);
    let tickets: Vec<_> = (0..20)
        .map(|_| {
            // Without a message on stderr, unlike `panic!`.
            let job = job(|| std::panic::resume_unwind(Box::new("on purpose")));
            scheduler.submit(Lane::Compute, None, "", job).unwrap()
        })
        .collect();
    for ticket in &tickets {
        wait(Target::Task(ticket), LONG).unwrap();
    }
    let after = scheduler
        .submit(Lane::Compute, None, "", job(|| ()))
        .unwrap();
    wait(Target::Task(&after), LONG).unwrap();
    let stats = scheduler.stats(Lane::Compute);
    assert!(conserved(&stats), "{stats:?}");
    assert_eq!((stats.panicked, stats.completed), (20, 1));
}

#[test]
fn stopping_runs_or_drops_what_is_queued() {
    for drop_queued in [false, true] {
        let scheduler = scheduler(1, 1, 64);
        let (release, _) = occupy(&scheduler, Lane::Blocking);
        let (to, from) = mpsc::channel();
        for _ in 0..10 {
            scheduler
                .submit(Lane::Blocking, None, "", telling("queued", &to))
                .unwrap();
        }
        scheduler.stop(drop_queued);
        let error = scheduler
            .submit(Lane::Compute, None, "after", telling("after", &to))
            .unwrap_err();
        assert!(matches!(&error, Error::Scheduler(text) if text.contains("\"after\"")));
        assert!(!scheduler.join(Some(Duration::from_millis(20))).unwrap());
        drop(release);
        assert!(scheduler.join(None).unwrap());
        assert!(scheduler.join(None).unwrap(), "a second time");
        let want = if drop_queued { "stopped" } else { "run" };
        let told: Vec<_> = from.try_iter().collect();
        assert_eq!(told.len(), 10);
        assert!(told.iter().all(|(_, told)| told == want), "{told:?}");
        assert!(conserved(&scheduler.stats(Lane::Blocking)));
    }
}

#[test]
fn dropping_the_scheduler_drops_the_queue_and_joins() {
    let scheduler = scheduler(2, 1, 64);
    let (release, running) = occupy(&scheduler, Lane::Compute);
    let (to, from) = mpsc::channel();
    scheduler
        .submit(Lane::Compute, None, "", telling("queued", &to))
        .unwrap();
    let releaser = std::thread::spawn(move || {
        let told = from.recv_timeout(LONG.unwrap()).unwrap();
        drop(release);
        told
    });
    drop(scheduler);
    assert!(running.has_ended(), "joined");
    assert_eq!(releaser.join().unwrap(), ("queued", "stopped".into()));
}

#[test]
fn a_task_may_drop_the_last_handle_of_its_scheduler() {
    let scheduler = Arc::new(scheduler(1, 1, 16));
    let (begun, begins) = mpsc::channel();
    let (to, from) = mpsc::channel();
    let inner = scheduler.clone();
    scheduler
        .submit(
            Lane::Blocking,
            None,
            "",
            job(move || {
                begins.recv().unwrap();
                assert!(inner.join(None).is_err(), "it would wait for itself");
                drop(inner);
                to.send(()).unwrap();
            }),
        )
        .unwrap();
    drop(scheduler);
    begun.send(()).unwrap();
    from.recv_timeout(LONG.unwrap()).unwrap();
}

#[test]
fn spans_tell_what_ran_where_and_when() {
    let scheduler = scheduler(1, 1, 16);
    scheduler.trace(true);
    for name in ["first", "second"] {
        let ticket = scheduler
            .submit(
                Lane::Compute,
                None,
                name,
                job(|| std::thread::sleep(Duration::from_millis(2))),
            )
            .unwrap();
        wait(Target::Task(&ticket), LONG).unwrap();
    }
    scheduler.trace(false);
    let ticket = scheduler
        .submit(Lane::Compute, None, "unseen", job(|| ()))
        .unwrap();
    wait(Target::Task(&ticket), LONG).unwrap();
    let Spans { spans, lost } = scheduler.take_trace();
    assert_eq!(lost, 0);
    assert_eq!(
        spans.iter().map(|span| &*span.name).collect::<Vec<_>>(),
        ["first", "second"]
    );
    for span in &spans {
        assert!(span.queued_ns <= span.start_ns);
        assert!(span.end_ns - span.start_ns >= 2_000_000);
        assert_eq!((span.lane, span.thread), (Lane::Compute, 0));
    }
    assert!(spans[0].end_ns <= spans[1].queued_ns);
    assert_eq!(scheduler.take_trace(), Spans::default());
}

#[test]
fn a_full_trace_keeps_the_newest_and_counts_the_rest() {
    let scheduler = Scheduler::new(&Config {
        trace_capacity: 2,
        ..Config::default()
    })
    .unwrap();
    scheduler.trace(true);
    for name in ["a", "b", "c"] {
        let ticket = scheduler
            .submit(Lane::Compute, None, name, job(|| ()))
            .unwrap();
        wait(Target::Task(&ticket), LONG).unwrap();
    }
    let Spans { spans, lost } = scheduler.take_trace();
    assert_eq!(
        spans.iter().map(|span| &*span.name).collect::<Vec<_>>(),
        ["b", "c"]
    );
    assert_eq!(lost, 1);
}

#[test]
fn a_task_that_ends_late_counts_as_overrun() {
    let scheduler = scheduler(1, 1, 16);
    let ticket = scheduler
        .submit(
            Lane::Compute,
            Some(in_ms(200)),
            "",
            job(|| std::thread::sleep(Duration::from_millis(250))),
        )
        .unwrap();
    wait(Target::Task(&ticket), LONG).unwrap();
    let stats = scheduler.stats(Lane::Compute);
    assert_eq!((stats.completed, stats.overrun), (1, 1));
}

#[test]
fn impossible_settings_are_refused() {
    let good = Config::default();
    for (config, names) in [
        (
            Config {
                blocking_threads: 0,
                ..good.clone()
            },
            "blocking_threads is 0",
        ),
        (
            Config {
                compute_threads: 5000,
                ..good.clone()
            },
            "compute_threads is 5000",
        ),
        (
            Config {
                queue_bound: 0,
                ..good
            },
            "queue_bound is 0",
        ),
    ] {
        let error = Scheduler::new(&config).err().unwrap();
        assert!(
            matches!(&error, Error::Config(text) if text.contains(names)),
            "{error}"
        );
    }
    assert!(
        Lane::from_name("gpu")
            .unwrap_err()
            .to_string()
            .contains("\"gpu\"")
    );
}

#[test]
fn nothing_is_lost_or_done_twice_under_load() {
    const THREADS: usize = 4;
    const EACH: usize = 5_000;
    let scheduler = Arc::new(scheduler(3, 2, 256));
    let done: Arc<Mutex<HashSet<(usize, usize)>>> = Arc::default();
    let told = Arc::new(AtomicUsize::new(0));
    let refused = AtomicUsize::new(0);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (scheduler, done, told, refused, start) =
                (&scheduler, &done, &told, &refused, &start);
            scope.spawn(move || {
                start.wait();
                for n in 0..EACH {
                    let (done, told) = (done.clone(), told.clone());
                    let work: Job = Box::new(move |turn| {
                        told.fetch_add(1, Ordering::Relaxed);
                        if matches!(turn, Turn::Run(_)) {
                            assert!(done.lock().unwrap().insert((thread, n)));
                        }
                    });
                    let lane = Lane::ALL[n % 2];
                    let deadline = (n % 3 == 0).then(|| in_ms(1));
                    match scheduler.submit(lane, deadline, "", work) {
                        Ok(ticket) if n % 7 == 0 => drop(ticket.cancel()),
                        Ok(ticket) if n % 11 == 0 => {
                            wait(Target::Task(&ticket), LONG).unwrap();
                        }
                        Ok(_) => (),
                        Err(Error::Overloaded(_)) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    scheduler.stop(false);
    scheduler.join(None).unwrap();
    let lanes = Lane::ALL.map(|lane| scheduler.stats(lane));
    assert!(lanes.iter().all(conserved), "{lanes:?}");
    let sum = |of: fn(&LaneStats) -> u64| lanes.iter().map(of).sum::<u64>() as usize;
    assert_eq!(sum(|stats| stats.completed), done.lock().unwrap().len());
    assert_eq!(sum(|stats| stats.submitted), told.load(Ordering::Relaxed));
    assert_eq!(sum(|stats| stats.rejected), refused.load(Ordering::Relaxed));
    assert_eq!(
        sum(|stats| stats.submitted + stats.rejected),
        THREADS * EACH
    );
}

#[test]
fn whoever_has_a_result_finds_it_counted() {
    let scheduler = scheduler(1, 1, 16);
    scheduler.trace(true);
    for (n, end) in [End::Completed, End::Failed, End::Cancelled]
        .into_iter()
        .enumerate()
    {
        let (to, from) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let work: Job = Box::new(move |turn| {
            let Turn::Run(running) = turn else {
                unreachable!("nobody drops it");
            };
            running.end(end);
            to.send(()).unwrap();
            let _ = released.recv();
        });
        let ticket = scheduler.submit(Lane::Compute, None, "", work).unwrap();
        from.recv_timeout(LONG.unwrap()).unwrap();
        let stats = scheduler.stats(Lane::Compute);
        assert!(
            conserved(&stats) && stats.submitted == n as u64 + 1,
            "{stats:?}"
        );
        assert!(!ticket.has_ended(), "it still hands over");
        drop(release);
        wait(Target::Task(&ticket), LONG).unwrap();
    }
    let stats = scheduler.stats(Lane::Compute);
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (1, 1, 1));
    assert_eq!(
        (stats.run.count, scheduler.take_trace().spans.len()),
        (2, 2)
    );
}
