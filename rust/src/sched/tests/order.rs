//! Order of tasks, expiry and cancellation.

use super::*;

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
            .submit(Lane::Compute, deadline, name, reporting(name, &to))
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
    assert!(matches!(
        &error,
        Error::QueueFull {
            lane: "blocking",
            queued: 2,
            limit: 2
        }
    ));
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
        submit_reporting(&scheduler, soon, name, &to);
    }
    std::thread::sleep(Duration::from_millis(10));
    submit_reporting(&scheduler, None, "c", &to);
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
    let late = submit_reporting(&scheduler, Some(in_ms(5)), "late", &to);
    let past = submit_reporting(&scheduler, Some(scheduler.anchor()), "past", &to);
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
    let first = submit_reporting(&scheduler, None, "first", &to);
    assert!(first.cancel() && first.has_ended());
    assert_eq!(from.try_recv().unwrap(), ("first", "cancelled".into()));
    assert!(!first.cancel(), "a second time");
    let second = submit_reporting(&scheduler, None, "second", &to);
    assert!(!running.cancel());
    drop(release);
    wait(Target::Task(&second), LONG).unwrap();
    assert!(!second.cancel(), "after the end");
    assert_eq!(scheduler.stats(Lane::Compute).cancelled, 1);
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
    let error = Lane::from_name("gpu").unwrap_err();
    assert!(error.to_string().contains("\"gpu\""), "{error}");
}
