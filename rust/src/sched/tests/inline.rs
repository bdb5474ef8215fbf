//! Inline execution on the caller's thread.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{current, scope, sleep};

/// Waits until `done`, which another thread is about to cause.
fn until(done: impl Fn() -> bool) {
    let patience = Instant::now() + LONG.unwrap();
    while !done() {
        assert!(Instant::now() < patience);
        sleep(Duration::from_millis(1));
    }
}

/// Waits until all threads of the scheduler are asleep: before that no slot can be borrowed.
fn wait_until_idle(scheduler: &Scheduler) {
    for lane in Lane::ALL {
        let me = current().id();
        until(|| {
            scheduler
                .run(lane, None, "", move || current().id() == me)
                .unwrap()
        });
    }
}

#[test]
fn inline_work_runs_on_the_callers_thread_and_counts_like_a_task() {
    let scheduler = scheduler(1, 2, 16);
    wait_until_idle(&scheduler);
    let before = scheduler.stats(Lane::Compute);
    scheduler.trace(true);
    let me = current().id();
    let running = scheduler.run_inline(Lane::Compute, None, "here", |_| {
        assert_eq!(current().id(), me);
        assert_eq!(current_lane(), Some(Lane::Compute));
        scheduler.stats(Lane::Compute).running
    });
    assert!(matches!(running, Ok(RunInline::Done(1))));
    assert_eq!(current_lane(), None);
    let stats = scheduler.stats(Lane::Compute);
    assert!(conserved(&stats), "{stats:?}");
    assert_eq!(stats.completed, before.completed + 1);
    let Spans { spans, .. } = scheduler.take_trace();
    assert_eq!(spans.len(), 1);
    assert!(spans[0].inline && &*spans[0].name == "here" && spans[0].thread < 2);
    let names = scheduler.names(Lane::Compute);
    assert_eq!(
        (&*names[0].name, names[0].runs, names[0].running),
        ("here", 1, 0)
    );
}

#[test]
fn tasks_submitted_meanwhile_run_when_the_slot_is_returned() {
    let scheduler = scheduler(1, 1, 16);
    wait_until_idle(&scheduler);
    let mut queued = None;
    scheduler
        .run_inline(Lane::Compute, None, "", |_| {
            let ticket = scheduler
                .submit(Lane::Compute, None, "", job(|| ()))
                .unwrap();
            sleep(Duration::from_millis(10));
            assert!(!ticket.has_ended(), "the only slot is on loan");
            queued = Some(ticket);
        })
        .unwrap();
    wait(Target::Task(&queued.unwrap()), LONG).unwrap();
}

#[test]
fn a_full_lane_queues_the_work_in_order_and_runs_it_elsewhere() {
    let scheduler = scheduler(1, 1, 16);
    let (release, _) = occupy(&scheduler, Lane::Compute);
    let order = Arc::new(Mutex::new(Vec::new()));
    scope(|scope| {
        for (n, (name, deadline)) in [("later", None), ("sooner", Some(in_ms(60_000)))]
            .into_iter()
            .enumerate()
        {
            let (scheduler, order) = (&scheduler, order.clone());
            scope.spawn(move || {
                let me = current().id();
                let there = scheduler
                    .run(Lane::Compute, deadline, name, move || {
                        order.lock().unwrap().push(name);
                        current().id()
                    })
                    .unwrap();
                assert_ne!(there, me);
            });
            until(|| scheduler.stats(Lane::Compute).queued == n + 1);
        }
        drop(release);
    });
    assert_eq!(*order.lock().unwrap(), ["sooner", "later"]);
}

#[test]
fn panics_reach_the_caller_and_free_the_slot() {
    let scheduler = scheduler(1, 1, 16);
    wait_until_idle(&scheduler);
    let before = scheduler.stats(Lane::Compute);
    let panicking = |scheduler: &Scheduler| {
        // Without a message on stderr, unlike `panic!`.
        let work = || std::panic::resume_unwind(Box::new("on purpose"));
        let run = || scheduler.run::<()>(Lane::Compute, None, "", work);
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    };
    panicking(&scheduler);
    assert_eq!(current_lane(), None);
    wait_until_idle(&scheduler);
    let (release, _) = occupy(&scheduler, Lane::Compute);
    scope(|scope| {
        scope.spawn(|| panicking(&scheduler));
        until(|| scheduler.stats(Lane::Compute).queued == 1);
        drop(release);
    });
    let stats = scheduler.stats(Lane::Compute);
    assert!(conserved(&stats), "{stats:?}");
    assert_eq!(stats.panicked, before.panicked + 2);
}

#[test]
fn stopping_waits_for_inline_work_and_ends_its_worker() {
    let scheduler = scheduler(1, 1, 16);
    wait_until_idle(&scheduler);
    scope(|scope| {
        let (to, from) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let inner = &scheduler;
        scope.spawn(move || {
            inner
                .run_inline(Lane::Compute, None, "", |_| {
                    to.send(()).unwrap();
                    let _ = released.recv();
                    assert!(inner.join(None).is_err(), "it would wait for itself");
                    assert!(inner.run(Lane::Compute, None, "", || ()).is_err());
                })
                .unwrap();
        });
        from.recv().unwrap();
        scheduler.stop(false);
        let soon = Some(Duration::from_millis(20));
        assert!(!scheduler.join(soon).unwrap(), "one slot is on loan");
        drop(release);
        assert!(scheduler.join(LONG).unwrap());
    });
    let error = scheduler
        .run(Lane::Compute, None, "after", || ())
        .unwrap_err();
    assert!(matches!(&error, Error::Scheduler(text) if text.contains("\"after\"")));
}

#[test]
fn inline_work_waits_as_a_worker_does() {
    for lane in Lane::ALL {
        let scheduler = Arc::new(scheduler(1, 1, 64));
        wait_until_idle(&scheduler);
        let inner = scheduler.clone();
        let sum = scheduler
            .run(lane, None, "", move || {
                let total = Arc::new(AtomicUsize::new(0));
                let tickets: Vec<_> = (1..=10)
                    .map(|n| {
                        let total = total.clone();
                        let add = job(move || {
                            total.fetch_add(n, Ordering::Relaxed);
                        });
                        inner.submit(lane, None, "", add).unwrap()
                    })
                    .collect();
                // The only slot of the lane is this one, so this thread runs them itself.
                for ticket in tickets.iter().rev() {
                    wait(Target::Task(ticket), LONG).unwrap();
                }
                let nested = inner.run(lane, None, "", || 1000).unwrap();
                nested + total.load(Ordering::Relaxed)
            })
            .unwrap();
        assert_eq!(sum, 1055);
    }
}

#[test]
fn a_worker_whose_slot_is_on_loan_sleeps_while_the_borrower_waits() {
    let scheduler = Arc::new(scheduler(1, 2, 16));
    wait_until_idle(&scheduler);
    let (release, busy) = occupy(&scheduler, Lane::Compute);
    let inner = scheduler.clone();
    let caller = std::thread::spawn(move || {
        // Until the other worker, which may have looked for the first one's task, sleeps again.
        until(|| {
            let work = |_: Running<'_>| wait(Target::Task(&busy), LONG).unwrap();
            matches!(
                inner.run_inline(Lane::Compute, None, "inline", work),
                Ok(RunInline::Done(()))
            )
        });
    });
    until(|| scheduler.stats(Lane::Compute).running == 2);
    sleep(Duration::from_millis(10));
    // Only the inline worker can run the task: one thread is busy, and the other's slot is on loan.
    let (to, from) = mpsc::channel();
    let request = scheduler
        .submit(
            Lane::Compute,
            None,
            "",
            job(move || to.send(current().id()).unwrap()),
        )
        .unwrap();
    wait(Target::Task(&request), LONG).unwrap();
    assert_eq!(from.recv().unwrap(), caller.thread().id());
    drop(release);
    caller.join().unwrap();
    scheduler.stop(false);
    assert!(scheduler.join(LONG).unwrap());
}

#[test]
fn a_blocking_worker_may_run_inline_in_the_compute_lane_and_not_the_other_way() {
    let scheduler = Arc::new(scheduler(1, 1, 16));
    wait_until_idle(&scheduler);
    let inner = scheduler.clone();
    let (to, from) = mpsc::channel();
    let work = job(move || {
        let ran = inner
            .run_inline(Lane::Compute, None, "", |_| {
                let error = inner.run(Lane::Blocking, None, "", || ()).unwrap_err();
                assert!(error.to_string().contains("its own lane only"), "{error}");
                current_lane()
            })
            .unwrap();
        let RunInline::Done(inside) = ran else {
            panic!("an idle worker lends its slot");
        };
        to.send((inside, current_lane())).unwrap();
    });
    scheduler.submit(Lane::Blocking, None, "", work).unwrap();
    let (inside, after) = from.recv_timeout(LONG.unwrap()).unwrap();
    assert_eq!((inside, after), (Some(Lane::Compute), Some(Lane::Blocking)));
}

#[test]
fn a_cycle_through_nested_work_is_an_error() {
    let scheduler = Arc::new(scheduler(2, 2, 16));
    let inner = scheduler.clone();
    let (hand, handed) = mpsc::channel::<Ticket>();
    let (to, from) = mpsc::channel();
    let outer = job(move || {
        let outer = handed.recv().unwrap();
        let nested = inner.clone();
        let work = move || {
            let work = job(move || to.send(wait(Target::Task(&outer), LONG)).unwrap());
            let other = nested.submit(Lane::Compute, None, "", work).unwrap();
            wait(Target::Task(&other), LONG)
        };
        // Either may be the last to close the cycle, and the last gives up.
        drop(inner.run(Lane::Compute, None, "", work).unwrap());
    });
    let outer = scheduler.submit(Lane::Compute, None, "", outer).unwrap();
    hand.send(outer.clone()).unwrap();
    wait(Target::Task(&outer), LONG).unwrap();
    let waited = from.recv_timeout(LONG.unwrap()).unwrap();
    assert!(
        matches!(&waited, Ok(()) | Err(Error::Scheduler(_))),
        "{waited:?}"
    );
}

#[test]
fn deadlines_apply_to_inline_work() {
    let scheduler = scheduler(1, 1, 16);
    wait_until_idle(&scheduler);
    let past = Some(scheduler.anchor());
    let error = scheduler
        .run(Lane::Compute, past, "late", || ())
        .unwrap_err();
    assert!(matches!(&error, Error::DeadlineExceeded(text) if text.contains("\"late\"")));
    let (release, _) = occupy(&scheduler, Lane::Compute);
    let start = Instant::now();
    // No thread reaches it before the end of the test: the caller itself watches the clock.
    let error = scheduler
        .run(Lane::Compute, Some(in_ms(20)), "queued", || ())
        .unwrap_err();
    assert!(matches!(&error, Error::DeadlineExceeded(text) if text.contains("\"queued\"")));
    assert!(start.elapsed() >= Duration::from_millis(20));
    drop(release);
    for _ in 0..8 {
        scheduler
            .run(Lane::Compute, None, "nap", || {
                sleep(Duration::from_millis(20));
            })
            .unwrap();
    }
    wait_until_idle(&scheduler);
    let error = scheduler
        .run(Lane::Compute, Some(in_ms(5)), "nap", || ())
        .unwrap_err();
    assert!(matches!(&error, Error::Overloaded(text) if text.contains("\"nap\" would end")));
    wait_until_idle(&scheduler);
    let stats = scheduler.stats(Lane::Compute);
    assert!(conserved(&stats), "{stats:?}");
    assert_eq!((stats.expired, stats.refused_late), (2, 1));
}

#[test]
fn inline_work_and_tasks_together_never_exceed_the_threads() {
    const THREADS: usize = 2;
    let scheduler = Arc::new(scheduler(THREADS, THREADS, 4096));
    let now = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let most = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicUsize::new(0));
    let here = AtomicUsize::new(0);
    let work = |lane: Lane| {
        let (now, most, done) = (now.clone(), most.clone(), done.clone());
        move || {
            most.fetch_max(
                now[lane as usize].fetch_add(1, Ordering::SeqCst) + 1,
                Ordering::SeqCst,
            );
            std::hint::black_box((0..2000).map(std::hint::black_box).sum::<u64>());
            now[lane as usize].fetch_sub(1, Ordering::SeqCst);
            done.fetch_add(1, Ordering::SeqCst);
            current().id()
        }
    };
    scope(|scope| {
        for caller in 0..6 {
            let (scheduler, work, here) = (&scheduler, &work, &here);
            scope.spawn(move || {
                for n in 0..2000 {
                    let lane = Lane::ALL[(caller + n) % 2];
                    if caller < 3 {
                        let there = scheduler.run(lane, None, "", work(lane)).unwrap();
                        here.fetch_add(usize::from(there == current().id()), Ordering::Relaxed);
                    } else {
                        let task = work(lane);
                        scheduler
                            .submit(
                                lane,
                                None,
                                "",
                                job(move || {
                                    task();
                                }),
                            )
                            .unwrap_or_else(|error| panic!("{error}"));
                        if n % 100 == 99 {
                            // Lets the queues run dry, so that inline workers find slots.
                            sleep(Duration::from_millis(1));
                        }
                    }
                }
            });
        }
    });
    scheduler.stop(false);
    scheduler.join(None).unwrap();
    assert_eq!(done.load(Ordering::SeqCst), 12_000);
    assert!(most.load(Ordering::SeqCst) <= THREADS);
    assert!(here.load(Ordering::SeqCst) > 0);
    for lane in Lane::ALL {
        let stats = scheduler.stats(lane);
        assert!(conserved(&stats), "{stats:?}");
    }
}
