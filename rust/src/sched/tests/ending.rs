//! Panics, stopping, dropping.

use super::*;

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
                .submit(Lane::Blocking, None, "", reporting("queued", &to))
                .unwrap();
        }
        scheduler.stop(drop_queued);
        let error = scheduler
            .submit(Lane::Compute, None, "after", reporting("after", &to))
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
        .submit(Lane::Compute, None, "", reporting("queued", &to))
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
    submit(&scheduler, Lane::Blocking, move || {
        begins.recv().unwrap();
        assert!(inner.join(None).is_err(), "it would wait for itself");
        drop(inner);
        to.send(()).unwrap();
    });
    drop(scheduler);
    begun.send(()).unwrap();
    from.recv_timeout(LONG.unwrap()).unwrap();
}

/// Makes a scheduler of 2 blocking threads and 1 compute thread whose threads run inside `scope`.
fn scoped(scope: impl Fn(&mut (dyn FnMut() + Send)) + Send + Sync + 'static) -> Scheduler {
    Scheduler::new(&Config {
        blocking_threads: 2,
        compute_threads: 1,
        worker_scope: Arc::new(scope),
        ..Config::default()
    })
    .unwrap()
}

#[test]
fn threads_whose_scope_unwinds_or_skips_the_loop_are_joined() {
    // Without a message on stderr, unlike `panic!`.
    let unwind = || std::panic::resume_unwind(Box::new("on purpose"));
    for scheduler in [
        scoped(|_| ()),
        scoped(move |_| unwind()),
        scoped(move |work| {
            work();
            unwind();
        }),
    ] {
        scheduler.stop(true);
        let joined = scheduler.join(LONG).unwrap();
        if !joined {
            // Dropping it would wait for ever.
            std::mem::forget(scheduler);
        }
        assert!(joined);
    }
}

#[test]
fn a_waiting_worker_helps_in_place_of_a_lost_one() {
    let lost = thread_name(Lane::Blocking, 0);
    let scheduler = scoped(move |work| {
        if std::thread::current().name() != Some(&lost) {
            work();
        }
    });
    let signal = Arc::new(Signal::new());
    let awaited = signal.clone();
    let waiter = scheduler.submit(
        Lane::Blocking,
        None,
        "",
        job(move || wait(Target::Signal(&awaited), LONG).unwrap()),
    );
    submit(&scheduler, Lane::Blocking, move || signal.fire());
    wait(Target::Task(&waiter.unwrap()), LONG).unwrap();
    assert_eq!(scheduler.stats(Lane::Blocking).panicked, 0);
}
