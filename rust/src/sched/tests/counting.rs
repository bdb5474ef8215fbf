//! Spans and counts, alone and under load.

use super::*;

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
                    let work: Job = Box::new(move |call| {
                        told.fetch_add(1, Ordering::Relaxed);
                        if matches!(call, JobCall::Run(_)) {
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
fn a_delivered_result_is_already_counted() {
    let scheduler = scheduler(1, 1, 16);
    scheduler.trace(true);
    for (n, end) in [
        JobOutcome::Completed,
        JobOutcome::Failed,
        JobOutcome::Cancelled,
    ]
    .into_iter()
    .enumerate()
    {
        let (to, from) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let work: Job = Box::new(move |call| {
            let JobCall::Run(running) = call else {
                unreachable!("nobody drops it");
            };
            running.finish(end);
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

#[test]
fn a_dropped_task_is_counted_as_its_caller_sees_it_and_before_it_knows() {
    type Tell = fn(Dropped<'_>) -> String;
    let told: [(Tell, [u64; 2]); 3] = [
        (|dropped| dropped.error().to_string(), [1, 0]),
        (
            |dropped| {
                dropped.cancelled();
                "gave up".into()
            },
            [1, 1],
        ),
        (
            |dropped| {
                drop(dropped);
                "never said".into()
            },
            [2, 1],
        ),
    ];
    let scheduler = scheduler(1, 1, 16);
    for (tell, [expired, cancelled]) in told {
        let (to, from) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (hold, ticket) = occupy(&scheduler, Lane::Compute);
        let work: Job = Box::new(move |call| {
            let JobCall::Expired(dropped) = call else {
                unreachable!("it expires: {call:?}");
            };
            to.send(tell(dropped)).unwrap();
            let _ = released.recv();
        });
        let late = scheduler
            .submit_next(Lane::Compute, Some(in_ms(200)), "late", work)
            .unwrap();
        // Long enough that it is queued by then: dropped by `submit_next` it would wait for this thread.
        std::thread::sleep(Duration::from_millis(250));
        drop(hold);
        wait(Target::Task(&ticket), LONG).unwrap();
        let said = from.recv_timeout(LONG.unwrap()).unwrap();
        let stats = scheduler.stats(Lane::Compute);
        assert_eq!(
            (stats.expired, stats.cancelled),
            (expired, cancelled),
            "{said}"
        );
        assert!(conserved(&stats), "{stats:?}");
        drop(release);
        wait(Target::Task(&late), LONG).unwrap();
    }
}
