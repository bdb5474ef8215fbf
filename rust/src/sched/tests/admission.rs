//! Refusal of tasks that would end too late.

use super::*;

/// Runs `name` often enough that its run time, a little over `ms`, is known.
fn teach(scheduler: &Scheduler, lane: Lane, name: &str, ms: u64) {
    for _ in 0..8 {
        let nap = job(move || std::thread::sleep(Duration::from_millis(ms)));
        let ticket = scheduler.submit(lane, None, name, nap).unwrap();
        wait(Target::Task(&ticket), LONG).unwrap();
    }
}

fn refusal(result: Result<Ticket>) -> String {
    match result {
        Err(Error::Overloaded(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_would_end_after_its_deadline_is_refused_at_once() {
    let scheduler = scheduler(1, 2, 16);
    teach(&scheduler, Lane::Compute, "nap", 20);
    let text = refusal(scheduler.submit(Lane::Compute, Some(in_ms(5)), "nap", job(|| ())));
    assert!(
        text.contains("\"nap\" would end in ")
            && text.contains("its deadline allows ")
            && text.contains("0 queued tasks ahead"),
        "{text}"
    );
    let ticket = scheduler
        .submit(Lane::Compute, Some(in_ms(5_000)), "nap", job(|| ()))
        .unwrap();
    wait(Target::Task(&ticket), LONG).unwrap();
    let stats = scheduler.stats(Lane::Compute);
    assert!(conserved(&stats), "{stats:?}");
    assert_eq!((stats.refused_late, stats.rejected), (1, 0));
    let names = scheduler.names(Lane::Compute);
    assert_eq!((&*names[0].name, names[0].refused_late), ("nap", 1));
    assert!(names[0].mean_us.unwrap() >= 17_000.0, "{names:?}");
}

#[test]
fn without_a_history_or_a_deadline_or_the_switch_nothing_is_refused() {
    let scheduler = scheduler(1, 1, 16);
    teach(&scheduler, Lane::Compute, "nap", 20);
    let (release, _) = occupy(&scheduler, Lane::Compute);
    std::thread::sleep(Duration::from_millis(10));
    let (to, from) = mpsc::channel();
    for (name, deadline) in [("new", Some(in_ms(5))), ("nap", None)] {
        scheduler
            .submit(Lane::Compute, deadline, name, reporting(name, &to))
            .unwrap();
    }
    drop((release, from));
    let open = Scheduler::new(&Config {
        admission: false,
        ..Config::default()
    })
    .unwrap();
    teach(&open, Lane::Compute, "nap", 20);
    open.submit(Lane::Compute, Some(in_ms(5)), "nap", job(|| ()))
        .unwrap();
}

#[test]
fn what_goes_first_and_what_runs_count_and_what_goes_later_does_not() {
    let scheduler = scheduler(1, 1, 64);
    teach(&scheduler, Lane::Compute, "nap", 20);
    let nap = || job(|| std::thread::sleep(Duration::from_millis(20)));
    // Expected to run for 20 ms, and runs on.
    let (release, _) = hold(&scheduler, Lane::Compute, "nap");
    for _ in 0..10 {
        scheduler
            .submit(Lane::Compute, Some(in_ms(10_000)), "nap", nap())
            .unwrap();
    }
    let last = scheduler.predict(Lane::Compute, "nap", None);
    assert_eq!(last.ahead, 10);
    assert!(last.queue >= Duration::from_millis(200), "{last:?}");
    let first = scheduler.predict(Lane::Compute, "nap", Some(in_ms(5_000)));
    assert_eq!(first.ahead, 0);
    assert!(first.queue < Duration::from_millis(100), "{first:?}");
    assert!(first.run.unwrap() >= Duration::from_millis(20));
    let unknown = scheduler.predict(Lane::Compute, "unknown", None);
    assert_eq!((unknown.run, unknown.ahead), (None, 10));
    // 100 ms suffice if it goes first, but not for two tasks, nor behind ten.
    scheduler
        .submit(Lane::Compute, Some(in_ms(150)), "nap", nap())
        .unwrap();
    for n in 0.. {
        match scheduler.submit(Lane::Compute, Some(in_ms(150)), "nap", nap()) {
            Ok(_) => assert!(n < 8, "eight more of 20 ms do not fit into 150 ms"),
            refused => {
                let text = refusal(refused);
                assert!(
                    text.contains(&format!("{} queued tasks ahead", n + 1)),
                    "{text}"
                );
                break;
            }
        }
    }
    let free = scheduler.predict(Lane::Blocking, "nap", None);
    assert_eq!(free, Prediction::default(), "the other lane is idle");
    drop(release);
}

#[test]
fn a_hanging_lane_refuses_and_a_partly_hanging_one_does_not() {
    let scheduler = scheduler(2, 1, 16);
    teach(&scheduler, Lane::Blocking, "nap", 2);
    let (first, _) = hold(&scheduler, Lane::Blocking, "nap");
    std::thread::sleep(Duration::from_millis(150));
    let deadline = || Some(in_ms(50));
    scheduler
        .submit(Lane::Blocking, deadline(), "nap", job(|| ()))
        .map(|ticket| wait(Target::Task(&ticket), LONG).unwrap())
        .unwrap();
    let (second, _) = hold(&scheduler, Lane::Blocking, "nap");
    std::thread::sleep(Duration::from_millis(150));
    let text = refusal(scheduler.submit(Lane::Blocking, deadline(), "nap", job(|| ())));
    assert!(text.contains("until one of the 2 threads"), "{text}");
    drop((first, second));
}

#[test]
fn a_name_refused_for_its_run_time_is_measured_again() {
    let scheduler = scheduler(1, 1, 16);
    teach(&scheduler, Lane::Compute, "once slow", 30);
    let mut refused = 0;
    let mut ran = 0;
    let until = in_ms(20_000);
    // It has become fast; one task a second measures, and each counts.
    while scheduler.names(Lane::Compute)[0].likely_us.unwrap() > 10_000.0 {
        assert!(Instant::now() < until, "it never learns");
        match scheduler.submit(Lane::Compute, Some(in_ms(10)), "once slow", job(|| ())) {
            Ok(ticket) => {
                wait(Target::Task(&ticket), LONG).unwrap();
                ran += 1;
                // Without a deadline nothing is refused, and the history is updated as well.
                for _ in 0..60 {
                    let ticket = scheduler
                        .submit(Lane::Compute, None, "once slow", job(|| ()))
                        .unwrap();
                    wait(Target::Task(&ticket), LONG).unwrap();
                }
            }
            Err(Error::Overloaded(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(refused > 5 && ran == 1, "{refused} refused, {ran} ran");
}
