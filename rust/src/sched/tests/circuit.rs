//! Circuit breaker for blocking calls that hang.

use super::*;

fn with_circuit() -> Scheduler {
    with_circuit_after(Duration::from_millis(20))
}

fn with_circuit_after(hang: Duration) -> Scheduler {
    Scheduler::new(&Config {
        blocking_threads: 4,
        compute_threads: 2,
        hang: Some(hang),
        hang_share: 0.5,
        ..Config::default()
    })
    .unwrap()
}

/// A scheduler whose circuit of "stuck" is open; none of its calls hang any more.
fn with_open_circuit() -> Scheduler {
    let scheduler = with_circuit();
    let held = [0, 1].map(|_| hold(&scheduler, Lane::Blocking, "stuck"));
    std::thread::sleep(Duration::from_millis(40));
    run_one(&scheduler, "stuck").unwrap_err();
    for (release, ticket) in held {
        drop(release);
        wait(Target::Task(&ticket), LONG).unwrap();
    }
    scheduler
}

fn circuit(scheduler: &Scheduler, name: &str) -> CircuitState {
    let names = scheduler.names(Lane::Blocking);
    names
        .iter()
        .find(|stats| &*stats.name == name)
        .unwrap()
        .circuit
}

fn run_one(scheduler: &Scheduler, name: &str) -> Result<()> {
    let ticket = scheduler.submit(Lane::Blocking, None, name, job(|| ()))?;
    wait(Target::Task(&ticket), LONG)
}

#[test]
fn calls_that_hang_leave_threads_to_others_until_a_probe_ends_in_time() {
    let scheduler = with_circuit();
    let held = [0, 1].map(|_| hold(&scheduler, Lane::Blocking, "stuck"));
    std::thread::sleep(Duration::from_millis(40));
    for refusals in 1..=2 {
        let error = run_one(&scheduler, "stuck").unwrap_err();
        assert!(
            matches!(&error, Error::Overloaded(text)
                if text.contains("circuit of \"stuck\"") && text.contains("2 of its calls")),
            "{error}"
        );
        assert_eq!(scheduler.stats(Lane::Blocking).refused_open, refusals);
    }
    run_one(&scheduler, "healthy").unwrap();
    assert_eq!(circuit(&scheduler, "healthy"), CircuitState::Closed);
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::Open);
    for (release, ticket) in held {
        drop(release);
        wait(Target::Task(&ticket), LONG).unwrap();
    }
    // The probe hangs as well, and the next task sees it.
    let (release, probe) = hold(&scheduler, Lane::Blocking, "stuck");
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::HalfOpen);
    let error = run_one(&scheduler, "stuck").unwrap_err();
    assert!(
        error.to_string().contains("one task that was let through"),
        "{error}"
    );
    std::thread::sleep(Duration::from_millis(40));
    drop(release);
    wait(Target::Task(&probe), LONG).unwrap();
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::Open);
    run_one(&scheduler, "stuck").unwrap();
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::Closed);
    let stats = scheduler.stats(Lane::Blocking);
    assert!(conserved(&stats) && stats.refused_open == 3, "{stats:?}");
}

#[test]
fn a_probe_that_never_ends_does_not_keep_the_circuit_from_closing() {
    let scheduler = with_open_circuit();
    let (release, hung) = hold(&scheduler, Lane::Blocking, "stuck");
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::HalfOpen);
    std::thread::sleep(Duration::from_millis(40));
    // What is called has recovered; only the first probe sits in a socket that nobody answers.
    run_one(&scheduler, "stuck").unwrap();
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::Closed);
    drop(release);
    wait(Target::Task(&hung), LONG).unwrap();
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::Closed);
    let stats = scheduler.stats(Lane::Blocking);
    assert!(conserved(&stats), "{stats:?}");
}

#[test]
fn those_in_the_queue_are_shed_when_their_turn_comes() {
    // Long enough for all to be in the queue before the circuit opens, on a busy machine too.
    let hang = Duration::from_millis(300);
    let scheduler = with_circuit_after(hang);
    let stuck = [0, 1].map(|_| hold(&scheduler, Lane::Blocking, "stuck"));
    let busy = [0, 1].map(|_| occupy(&scheduler, Lane::Blocking));
    let (to, from) = mpsc::channel();
    for name in ["stuck", "healthy", "stuck"] {
        scheduler
            .submit(Lane::Blocking, None, name, reporting(name, &to))
            .unwrap();
    }
    std::thread::sleep(2 * hang);
    drop(busy);
    let mut told: Vec<_> = (0..3)
        .map(|_| from.recv_timeout(LONG.unwrap()).unwrap())
        .collect();
    told.sort();
    assert_eq!(told[0], ("healthy", "run".into()));
    assert!(
        told[1..]
            .iter()
            .all(|(_, told)| told.contains("has been open for")),
        "{told:?}"
    );
    drop(stuck);
    scheduler.stop(false);
    scheduler.join(None).unwrap();
    let stats = scheduler.stats(Lane::Blocking);
    assert!(conserved(&stats), "{stats:?}");
    assert_eq!((stats.shed, stats.refused_open), (2, 0));
}

#[test]
fn a_probe_that_never_begins_leaves_the_circuit_open_to_the_next() {
    let scheduler = with_open_circuit();
    let busy: Vec<_> = (0..4).map(|_| occupy(&scheduler, Lane::Blocking)).collect();
    let (to, from) = mpsc::channel();
    let probe = scheduler
        .submit(Lane::Blocking, None, "stuck", reporting("probe", &to))
        .unwrap();
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::HalfOpen);
    assert!(probe.cancel());
    assert_eq!(names(&from, 1), ["probe"]);
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::Open);
    drop(busy);
    run_one(&scheduler, "stuck").unwrap();
    assert_eq!(circuit(&scheduler, "stuck"), CircuitState::Closed);
}

#[test]
fn the_compute_lane_and_tasks_without_a_name_have_no_circuit() {
    let scheduler = with_circuit();
    let computing = [0, 1].map(|_| hold(&scheduler, Lane::Compute, "long"));
    let nameless = [0, 1].map(|_| hold(&scheduler, Lane::Blocking, ""));
    std::thread::sleep(Duration::from_millis(40));
    run_one(&scheduler, "").unwrap();
    let ticket = scheduler
        .submit(Lane::Compute, None, "long", job(|| ()))
        .unwrap();
    drop((computing, nameless));
    wait(Target::Task(&ticket), LONG).unwrap();
}
