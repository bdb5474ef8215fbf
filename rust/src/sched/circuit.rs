//! Circuit breaker: keeps hanging calls from taking all threads of the blocking lane.
//!
//! A task that runs for longer than its name's limit hangs. While hanging tasks of one name hold `threads *
//! hang_share` of the lane's threads, its circuit is **open**: new tasks of that name are refused and
//! queued ones are dropped when a thread reaches them, so that the remaining threads serve other names.
//! Once fewer hang, the next task is admitted as a **probe** and the circuit is half open: it closes if the
//! probe ends within the limit, and opens again if the probe ends late or hangs. A probe that has hung no
//! longer decides: the next one does, and the end of the hung one is ignored.
//!
//! No timer drives it: the state changes when a task of the name arrives and when a probe ends.

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use std::sync::PoisonError;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Closed,
    Open {
        since_ns: u64,
    },
    HalfOpen {
        since_ns: u64,
        probe: Probe,
        probe_ns: u64,
    },
}

/// Number of a probe among those of its circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Probe(u64);

/// State of a name's circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CircuitState {
    /// Tasks are admitted.
    Closed,
    /// Tasks are refused.
    Open,
    /// One task runs as a probe; the others are refused.
    HalfOpen,
}

/// Decision about a task that arrives at the circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CircuitDecision {
    Allow,
    /// The task is admitted, and its end must be reported.
    Probe(Probe),
    Reject {
        /// Time at which the circuit left the closed state.
        since_ns: u64,
        /// True while a probe runs.
        probing: bool,
    },
}

#[derive(Default)]
pub(super) struct Circuit {
    /// True unless the state is `Closed`; read without the lock on every admission.
    tripped: AtomicBool,
    state: Mutex<State>,
    /// Number of the latest probe; written with the lock of the state held.
    probes: AtomicU64,
}

impl Circuit {
    pub(super) fn is_tripped(&self) -> bool {
        // Relaxed: a task that misses a change is treated as having come before it.
        self.tripped.load(Ordering::Relaxed)
    }

    fn set(&self, state: &mut State, new: State) {
        *state = new;
        self.tripped.store(new != State::Closed, Ordering::Relaxed);
    }

    /// Admits or rejects a task, given `hanging` tasks of its name, the `limit` at which the circuit opens
    /// and the time `hang_ns` after which a task hangs.
    pub(super) fn decide(
        &self,
        hanging: usize,
        limit: usize,
        now_ns: u64,
        hang_ns: u64,
    ) -> CircuitDecision {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::HalfOpen {
            since_ns, probe_ns, ..
        } = *state
            && now_ns.saturating_sub(probe_ns) > hang_ns
        {
            self.set(&mut state, State::Open { since_ns });
        }
        match *state {
            State::Closed if hanging < limit => CircuitDecision::Allow,
            State::Closed => {
                self.set(&mut state, State::Open { since_ns: now_ns });
                CircuitDecision::Reject {
                    since_ns: now_ns,
                    probing: false,
                }
            }
            State::Open { since_ns } if hanging < limit => {
                // Relaxed: the lock orders it.
                let probe = Probe(self.probes.fetch_add(1, Ordering::Relaxed));
                let half_open = State::HalfOpen {
                    since_ns,
                    probe,
                    probe_ns: now_ns,
                };
                self.set(&mut state, half_open);
                CircuitDecision::Probe(probe)
            }
            State::Open { since_ns } => CircuitDecision::Reject {
                since_ns,
                probing: false,
            },
            State::HalfOpen { since_ns, .. } => CircuitDecision::Reject {
                since_ns,
                probing: true,
            },
        }
    }

    /// Reports the end of a probe: `in_time` is false if it ended late or never started. A probe that has
    /// been replaced by another decides nothing.
    pub(super) fn finish_probe(&self, ended: Probe, in_time: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::HalfOpen {
            since_ns, probe, ..
        } = *state
            && probe == ended
        {
            let new = if in_time {
                State::Closed
            } else {
                State::Open { since_ns }
            };
            self.set(&mut state, new);
        }
    }

    pub(super) fn state(&self) -> CircuitState {
        match *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Closed => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;

    const HANG_NS: u64 = 100;

    fn refused(probing: bool) -> CircuitDecision {
        CircuitDecision::Reject {
            since_ns: 5,
            probing,
        }
    }

    fn probed(decision: CircuitDecision) -> Probe {
        match decision {
            CircuitDecision::Probe(probe) => probe,
            other => panic!("expected a probe, got {other:?}"),
        }
    }

    #[test]
    fn it_opens_probes_one_and_closes() {
        let circuit = Circuit::default();
        assert_eq!(circuit.decide(2, 3, 1, HANG_NS), CircuitDecision::Allow);
        assert!(!circuit.is_tripped());
        assert_eq!(circuit.decide(3, 3, 5, HANG_NS), refused(false));
        assert_eq!(circuit.decide(4, 3, 6, HANG_NS), refused(false));
        assert_eq!(circuit.state(), CircuitState::Open);
        let probe = probed(circuit.decide(2, 3, 7, HANG_NS));
        assert_eq!(circuit.decide(0, 3, 8, HANG_NS), refused(true));
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        circuit.finish_probe(probe, false);
        assert_eq!(circuit.state(), CircuitState::Open);
        let probe = probed(circuit.decide(2, 3, 9, HANG_NS));
        circuit.finish_probe(probe, true);
        assert_eq!(circuit.state(), CircuitState::Closed);
        assert!(!circuit.is_tripped());
        assert_eq!(circuit.decide(2, 3, 10, HANG_NS), CircuitDecision::Allow);
    }

    #[test]
    fn a_probe_that_hangs_is_replaced_and_its_end_is_ignored() {
        let circuit = Circuit::default();
        assert_eq!(circuit.decide(3, 3, 5, HANG_NS), refused(false));
        let hung = probed(circuit.decide(2, 3, 10, HANG_NS));
        assert_eq!(circuit.decide(2, 3, 10 + HANG_NS, HANG_NS), refused(true));
        // As many as may hang, the probe among them: open, as before it.
        assert_eq!(circuit.decide(3, 3, 11 + HANG_NS, HANG_NS), refused(false));
        let next = probed(circuit.decide(1, 3, 12 + HANG_NS, HANG_NS));
        circuit.finish_probe(hung, true);
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        circuit.finish_probe(next, true);
        assert_eq!(circuit.state(), CircuitState::Closed);
        circuit.finish_probe(hung, false);
        assert_eq!(circuit.state(), CircuitState::Closed);
    }
}

#[cfg(all(test, aif_loom))]
mod models {
    //! Loom models of one circuit, between its callers and the ends of its probes, in every interleaving.

    use super::*;
    use loom::sync::{Arc, atomic::AtomicUsize};
    use loom::thread;

    const LIMIT: usize = 2;
    const HANG_NS: u64 = 100;

    fn open() -> Arc<Circuit> {
        let circuit = Arc::new(Circuit::default());
        let opened = circuit.decide(LIMIT, LIMIT, 5, HANG_NS);
        assert!(matches!(opened, CircuitDecision::Reject { .. }));
        circuit
    }

    fn settled(circuit: &Circuit) -> CircuitState {
        let state = circuit.state();
        assert_eq!(circuit.is_tripped(), state != CircuitState::Closed);
        state
    }

    /// Probes that are under way, and probes that have ended in time.
    #[derive(Clone)]
    struct Probes(Arc<AtomicUsize>, Arc<AtomicUsize>);

    impl Probes {
        /// Calls at a time at which no probe hangs, and ends at once.
        fn call(&self, circuit: &Circuit, hanging: usize, in_time: bool) {
            // Sequentially consistent, so that the checks themselves miss nothing.
            match circuit.decide(hanging, LIMIT, 10, HANG_NS) {
                CircuitDecision::Probe(probe) => {
                    assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "two probes");
                    self.0.fetch_sub(1, Ordering::SeqCst);
                    self.1.fetch_add(in_time.into(), Ordering::SeqCst);
                    circuit.finish_probe(probe, in_time);
                }
                CircuitDecision::Allow => assert_ne!(self.1.load(Ordering::SeqCst), 0),
                CircuitDecision::Reject { .. } => {}
            }
        }
    }

    /// Explores three callers of an open circuit: one after another is a probe, others are admitted only
    /// after one that ended in time, and no probe is left behind that would keep the next one out.
    fn three_callers(hanging: usize, in_time: [bool; 3]) {
        loom::model(move || {
            let circuit = open();
            let probes = Probes(Arc::default(), Arc::default());
            let others = [1, 2].map(|caller| {
                let (circuit, probes) = (circuit.clone(), probes.clone());
                thread::spawn(move || probes.call(&circuit, 0, in_time[caller]))
            });
            probes.call(&circuit, hanging, in_time[0]);
            for other in others {
                other.join().unwrap();
            }
            assert_ne!(settled(&circuit), CircuitState::HalfOpen);
            probes.call(&circuit, 0, true);
            assert_eq!(settled(&circuit), CircuitState::Closed);
        });
    }

    #[test]
    fn callers_at_the_same_time_are_one_probe_at_a_time() {
        three_callers(0, [true, false, false]);
    }

    #[test]
    fn a_caller_that_counts_hanging_calls_reopens_beside_probes() {
        three_callers(LIMIT, [true, true, false]);
    }

    /// A probe that hung ends while the next is admitted and ends: the next one decides.
    fn hung_probe_ends(late: bool, next: bool) {
        loom::model(move || {
            let circuit = open();
            let CircuitDecision::Probe(hung) = circuit.decide(0, LIMIT, 10, HANG_NS) else {
                panic!("nothing hangs");
            };
            let ending = thread::spawn({
                let circuit = circuit.clone();
                move || circuit.finish_probe(hung, late)
            });
            let closed = match circuit.decide(0, LIMIT, 11 + HANG_NS, HANG_NS) {
                CircuitDecision::Probe(probe) => {
                    circuit.finish_probe(probe, next);
                    next
                }
                CircuitDecision::Allow => late,
                CircuitDecision::Reject { .. } => panic!("the probe has hung"),
            };
            ending.join().unwrap();
            assert_eq!(settled(&circuit) == CircuitState::Closed, closed);
        });
    }

    #[test]
    fn the_end_of_a_hung_probe_does_not_decide_for_the_next() {
        hung_probe_ends(true, false);
        hung_probe_ends(false, true);
    }
}
