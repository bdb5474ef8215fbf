//! Waiting inside tasks: helping, cycles, refusals.

use super::*;

/// Returns the `n`th Fibonacci number, each half a task of its own.
fn fibonacci(scheduler: &Arc<Scheduler>, lane: Lane, n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let (to, from) = mpsc::channel();
    let inner = scheduler.clone();
    let half = job(move || to.send(fibonacci(&inner, lane, n - 1)).unwrap());
    let ticket = scheduler.submit(lane, None, "", half).unwrap();
    let other = fibonacci(scheduler, lane, n - 2);
    wait(Target::Task(&ticket), LONG).unwrap();
    from.try_recv().unwrap() + other
}

#[test]
fn tasks_that_wait_for_tasks_finish_even_on_one_thread() {
    for lane in Lane::ALL {
        let scheduler = Arc::new(scheduler(1, 1, 4096));
        assert_eq!(fibonacci(&scheduler, lane, 15), 610);
        let inner = scheduler.clone();
        let (to, from) = mpsc::channel();
        scheduler
            .submit(
                lane,
                None,
                "",
                job(move || to.send(fibonacci(&inner, lane, 12)).unwrap()),
            )
            .unwrap();
        assert_eq!(from.recv_timeout(LONG.unwrap()).unwrap(), 144);
        drop(from);
        scheduler.stop(false);
        scheduler.join(None).unwrap();
        assert!(conserved(&scheduler.stats(lane)));
    }
}

#[test]
fn a_waiting_compute_worker_helps_with_others_tasks() {
    let scheduler = Arc::new(scheduler(1, 2, 16));
    let (release, busy) = occupy(&scheduler, Lane::Compute);
    let (began, begins) = mpsc::channel();
    let awaited = busy.clone();
    let waiter = scheduler
        .submit(
            Lane::Compute,
            None,
            "",
            job(move || {
                began.send(()).unwrap();
                wait(Target::Task(&awaited), LONG).unwrap();
            }),
        )
        .unwrap();
    begins.recv().unwrap();
    // One thread is busy and the other waits: only by helping can this run.
    let other = scheduler
        .submit(Lane::Compute, None, "", job(|| ()))
        .unwrap();
    wait(Target::Task(&other), LONG).unwrap();
    assert!(!busy.has_ended() && !waiter.has_ended());
    drop(release);
    wait(Target::Task(&waiter), LONG).unwrap();
    assert_eq!(scheduler.stats(Lane::Compute).wait.count, 1);
}

#[test]
fn blocking_workers_help_when_all_of_them_wait() {
    let scheduler = Arc::new(scheduler(2, 1, 16));
    let signal = Arc::new(Signal::new());
    let began = Arc::new(Barrier::new(3));
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let (signal, began) = (signal.clone(), began.clone());
            let work = job(move || {
                began.wait();
                wait(Target::Signal(&signal), LONG).unwrap();
            });
            scheduler.submit(Lane::Blocking, None, "", work).unwrap()
        })
        .collect();
    began.wait();
    // The awaited event is itself a task of their lane, though no wait says so.
    scheduler
        .submit(Lane::Blocking, None, "", job(move || signal.fire()))
        .unwrap();
    for waiter in &waiters {
        wait(Target::Task(waiter), LONG).unwrap();
    }
}

#[test]
fn a_compute_worker_refuses_to_park() {
    let scheduler = Arc::new(scheduler(1, 1, 16));
    let (release, blocking) = occupy(&scheduler, Lane::Blocking);
    let (to, from) = mpsc::channel();
    scheduler
        .submit(
            Lane::Compute,
            None,
            "",
            job(move || {
                let signal = Signal::new();
                for target in [Target::Task(&blocking), Target::Signal(&signal)] {
                    to.send(wait(target, LONG).unwrap_err()).unwrap();
                }
                signal.fire();
                wait(Target::Signal(&signal), None).unwrap();
            }),
        )
        .unwrap();
    for error in (0..2).map(|_| from.recv_timeout(LONG.unwrap()).unwrap()) {
        assert!(
            matches!(&error, Error::Scheduler(text) if text.contains("only for compute tasks"))
        );
    }
    drop(release);
}

#[test]
fn a_cycle_of_waits_is_an_error() {
    for lane in Lane::ALL {
        let scheduler = Arc::new(scheduler(2, 2, 16));
        let tickets: Arc<Mutex<Vec<Ticket>>> = Arc::default();
        let ready = Arc::new(Barrier::new(3));
        let (to, from) = mpsc::channel();
        for me in 0..2 {
            let (shared, gate, to) = (tickets.clone(), ready.clone(), to.clone());
            let work = job(move || {
                gate.wait();
                let other = shared.lock().unwrap()[1 - me].clone();
                to.send(wait(Target::Task(&other), LONG)).unwrap();
            });
            let ticket = scheduler.submit(lane, None, "", work).unwrap();
            tickets.lock().unwrap().push(ticket);
        }
        ready.wait();
        let mut results: Vec<_> = (0..2)
            .map(|_| from.recv_timeout(LONG.unwrap()).unwrap())
            .collect();
        results.sort_by_key(Result::is_ok);
        assert!(matches!(&results[0], Err(Error::Scheduler(text)) if text.contains("never end")));
        assert_eq!(
            results[1],
            Ok(()),
            "the other goes on once the first has given up"
        );
    }
}

#[test]
fn a_wait_times_out() {
    let scheduler = Arc::new(scheduler(2, 1, 16));
    let (release, busy) = occupy(&scheduler, Lane::Blocking);
    let soon = Some(Duration::from_millis(10));
    let outside = wait(Target::Task(&busy), soon).unwrap_err();
    let (to, from) = mpsc::channel();
    let awaited = busy.clone();
    submit(&scheduler, Lane::Blocking, move || {
        to.send(wait(Target::Task(&awaited), soon).unwrap_err())
            .unwrap();
    });
    let inside = from.recv_timeout(LONG.unwrap()).unwrap();
    for error in [outside, inside] {
        assert!(matches!(&error, Error::DeadlineExceeded(text) if text.contains("timed out")));
    }
    drop(release);
    wait(Target::Task(&busy), LONG).unwrap();
}

#[test]
fn helping_has_a_depth_and_says_so() {
    // The first thread is busy with the awaited task, so the second can only nest them.
    let scheduler = Arc::new(scheduler(1, 2, 64));
    let (release, busy) = occupy(&scheduler, Lane::Compute);
    let (to, from) = mpsc::channel();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (awaited, to) = (busy.clone(), to.clone());
            let work = job(move || to.send(wait(Target::Task(&awaited), LONG)).unwrap());
            scheduler.submit(Lane::Compute, None, "", work).unwrap()
        })
        .collect();
    let first = from.recv_timeout(LONG.unwrap()).unwrap().unwrap_err();
    assert!(
        first
            .to_string()
            .contains("8 waiting tasks are already nested")
    );
    drop(release);
    for task in &tasks {
        wait(Target::Task(task), LONG).unwrap();
    }
}

#[test]
fn blocking_tasks_that_wait_for_computing_do_not_pile_up() {
    let scheduler = Arc::new(scheduler(2, 1, 256));
    let (to, from) = mpsc::channel();
    for n in 0..100 {
        let (inner, to) = (scheduler.clone(), to.clone());
        let work = job(move || {
            let ticket = inner.submit(Lane::Compute, None, "", job(|| ())).unwrap();
            to.send((n, wait(Target::Task(&ticket), LONG))).unwrap();
        });
        scheduler.submit(Lane::Blocking, None, "", work).unwrap();
    }
    let order: Vec<i32> = (0..100)
        .map(|_| {
            let (n, result) = from.recv_timeout(LONG.unwrap()).unwrap();
            assert_eq!(result, Ok(()));
            n
        })
        .collect();
    // None is nested under a later one, so two threads nearly keep the order.
    for (place, n) in (0..).zip(order) {
        assert!(n <= place + 1, "task {n} came in place {place}");
    }
}
