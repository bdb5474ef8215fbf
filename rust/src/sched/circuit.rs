//! Keeps calls that hang from taking all threads of the blocking lane.
//!
//! A task that has run for longer than its name's limit hangs. While `threads * hang_share` of the lane's
//! threads are held by hanging tasks of one name, its circuit is **open**: further tasks of that name are refused,
//! and those that stand in the queue are dropped when their turn comes, so that the threads left serve other
//! names. Once fewer hang, the next task is let through as a **probe**, and the circuit is half open: if the
//! probe ends within the limit, the circuit closes; if it hangs too, it opens again.
//!
//! Nobody watches the clock: the state moves when a task of the name comes, and when a probe ends.

use crate::sync::plain::{AtomicBool, Mutex, Ordering};
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
    },
}

/// Whether a name's tasks may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CircuitState {
    /// They may.
    Closed,
    /// They are refused.
    Open,
    /// One of them is finding out whether they may again; the others are refused.
    HalfOpen,
}

/// What becomes of a task that comes to the circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Passage {
    Free,
    /// It passes, and its end must be reported.
    Probe,
    Refused {
        /// Since when the circuit has not been closed.
        since_ns: u64,
        /// Whether a probe is under way.
        probing: bool,
    },
}

#[derive(Default)]
pub(super) struct Circuit {
    /// Whether the state is another than `Closed`; read without the lock by everyone who passes.
    tripped: AtomicBool,
    state: Mutex<State>,
}

impl Circuit {
    pub(super) fn is_tripped(&self) -> bool {
        // Relaxed: who misses a change is treated as having come before it.
        self.tripped.load(Ordering::Relaxed)
    }

    fn set(&self, state: &mut State, new: State) {
        *state = new;
        self.tripped.store(new != State::Closed, Ordering::Relaxed);
    }

    /// Lets a task pass or not, while `hanging` tasks of its name hang and `limit` are too many.
    pub(super) fn pass(&self, hanging: usize, limit: usize, now_ns: u64) -> Passage {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Closed if hanging < limit => Passage::Free,
            State::Closed => {
                self.set(&mut state, State::Open { since_ns: now_ns });
                Passage::Refused {
                    since_ns: now_ns,
                    probing: false,
                }
            }
            State::Open { since_ns } if hanging < limit => {
                self.set(&mut state, State::HalfOpen { since_ns });
                Passage::Probe
            }
            State::Open { since_ns } => Passage::Refused {
                since_ns,
                probing: false,
            },
            State::HalfOpen { since_ns } => Passage::Refused {
                since_ns,
                probing: true,
            },
        }
    }

    /// Tells how the probe ended: in time, or not, of which never having started is one way.
    pub(super) fn probed(&self, in_time: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::HalfOpen { since_ns } = *state {
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

    #[test]
    fn it_opens_probes_one_and_closes() {
        let circuit = Circuit::default();
        let refused = |probing| Passage::Refused {
            since_ns: 5,
            probing,
        };
        assert_eq!(circuit.pass(2, 3, 1), Passage::Free);
        assert!(!circuit.is_tripped());
        assert_eq!(circuit.pass(3, 3, 5), refused(false));
        assert_eq!(circuit.pass(4, 3, 6), refused(false));
        assert_eq!(circuit.state(), CircuitState::Open);
        assert_eq!(circuit.pass(2, 3, 7), Passage::Probe);
        assert_eq!(circuit.pass(0, 3, 8), refused(true));
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        circuit.probed(false);
        assert_eq!(circuit.state(), CircuitState::Open);
        assert_eq!(circuit.pass(2, 3, 9), Passage::Probe);
        circuit.probed(true);
        assert_eq!(circuit.state(), CircuitState::Closed);
        assert!(!circuit.is_tripped());
        assert_eq!(circuit.pass(2, 3, 10), Passage::Free);
    }
}
