//! Computing what a cache misses once, although many ask for it at the same moment.

use crate::sync::{Arc, Condvar, Mutex};
use std::collections::HashMap;
use std::sync::PoisonError;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// One computation at a time for each key; whoever asks meanwhile gets its result.
///
/// It keeps nothing: a value is handed to those who wait for it and forgotten. Unlike look-ups, waiting
/// takes locks and time. The values are clones, so `T` is best something shared.
pub struct SingleFlight<T, E> {
    flights: Mutex<HashMap<u64, Arc<Flight<T, E>>>>,
}

/// Why [`SingleFlight::run`] gave no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// The computation failed, here or where it was waited for.
    Computing(E),
    /// Another caller's computation took longer than this one was ready to wait.
    TimedOut,
    /// Another caller computes, and this one may not wait; or it is this thread itself that computes.
    WouldWait,
}

struct Flight<T, E> {
    pilot: ThreadId,
    outcome: Mutex<Outcome<T, E>>,
    landed: Condvar,
}

#[derive(Clone)]
enum Outcome<T, E> {
    Computing,
    Value(T),
    Failed(E),
    /// The computation panicked: the next one tries again.
    Abandoned,
}

impl<T: Clone, E: Clone> Default for SingleFlight<T, E> {
    fn default() -> Self {
        Self {
            flights: Mutex::new(HashMap::new()),
        }
    }
}

impl<T: Clone, E: Clone> SingleFlight<T, E> {
    /// The value of `compute`, or of another caller's computation for `key` that is under way.
    ///
    /// `patience` says how long to wait for another's: `None` is without limit, zero is not at all, which
    /// is for threads that others need, such as a compute worker.
    ///
    /// # Errors
    /// [`Failure`]; everyone who waited for a computation that failed gets its error.
    pub fn run(
        &self,
        key: u64,
        patience: Option<Duration>,
        compute: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, Failure<E>> {
        let start = Instant::now();
        loop {
            let (flight, ours) = self.board(key);
            if ours {
                let take_off = TakeOff {
                    of: self,
                    key,
                    flight: &flight,
                };
                let outcome = compute();
                take_off.land(match &outcome {
                    Ok(value) => Outcome::Value(value.clone()),
                    Err(error) => Outcome::Failed(error.clone()),
                });
                return outcome.map_err(Failure::Computing);
            }
            match flight.wait(start, patience)? {
                Outcome::Value(value) => return Ok(value),
                Outcome::Failed(error) => return Err(Failure::Computing(error)),
                Outcome::Abandoned | Outcome::Computing => {}
            }
        }
    }

    /// The flight of a key, and whether it is new and so the caller's to fly.
    fn board(&self, key: u64) -> (Arc<Flight<T, E>>, bool) {
        // A poisoned map is whole: nothing in here panics between two changes.
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return (Arc::clone(flight), false);
        }
        let flight = Arc::new(Flight {
            pilot: thread::current().id(),
            outcome: Mutex::new(Outcome::Computing),
            landed: Condvar::new(),
        });
        flights.insert(key, Arc::clone(&flight));
        (flight, true)
    }
}

impl<T: Clone, E: Clone> Flight<T, E> {
    fn wait(
        &self,
        start: Instant,
        patience: Option<Duration>,
    ) -> Result<Outcome<T, E>, Failure<E>> {
        if self.pilot == thread::current().id() {
            return Err(Failure::WouldWait);
        }
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        while matches!(*outcome, Outcome::Computing) {
            outcome = match patience {
                None => self
                    .landed
                    .wait(outcome)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(Failure::WouldWait),
                Some(patience) => {
                    let left = patience.saturating_sub(start.elapsed());
                    if left.is_zero() {
                        return Err(Failure::TimedOut);
                    }
                    let waited = self.landed.wait_timeout(outcome, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Ok(outcome.clone())
    }
}

/// Ends a flight whatever happens, so that nobody waits for a computation that panicked.
struct TakeOff<'a, T: Clone, E: Clone> {
    of: &'a SingleFlight<T, E>,
    key: u64,
    flight: &'a Flight<T, E>,
}

impl<T: Clone, E: Clone> TakeOff<'_, T, E> {
    fn land(self, outcome: Outcome<T, E>) {
        *self
            .flight
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = outcome;
        // The rest is what happens on a panic too.
    }
}

impl<T: Clone, E: Clone> Drop for TakeOff<'_, T, E> {
    fn drop(&mut self) {
        // From here on, whoever asks computes anew; by now a cache has the value.
        let mut flights = self
            .of
            .flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        flights.remove(&self.key);
        drop(flights);
        let mut outcome = self
            .flight
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if matches!(*outcome, Outcome::Computing) {
            *outcome = Outcome::Abandoned;
        }
        drop(outcome);
        self.flight.landed.notify_all();
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, mpsc};

    type Flights = SingleFlight<u32, String>;

    #[test]
    fn a_stampede_computes_once() {
        let (flights, computed) = (Flights::default(), AtomicUsize::new(0));
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    let value = flights.run(7, None, || {
                        computed.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(50));
                        Ok(42)
                    });
                    assert_eq!(value, Ok(42));
                });
            }
        });
        assert_eq!(computed.into_inner(), 1);
        assert_eq!(flights.run(7, None, || Ok(43)), Ok(43), "nothing is kept");
    }

    /// Runs `beside` while a computation for key 7 is under way, which then ends with `outcome`.
    fn during(
        flights: &Flights,
        outcome: impl FnOnce() -> Result<u32, String> + Send,
        beside: impl FnOnce() + Send,
    ) {
        let (under_way, started) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                let compute = || {
                    under_way.send(()).unwrap();
                    may_end.recv().unwrap();
                    outcome()
                };
                let _ = catch_unwind(AssertUnwindSafe(|| flights.run(7, None, compute)));
            });
            started.recv().unwrap();
            scope.spawn(beside);
            thread::sleep(Duration::from_millis(30));
            end.send(()).unwrap();
        });
    }

    #[test]
    fn those_who_wait_get_the_error_too() {
        let flights = Flights::default();
        during(
            &flights,
            || Err("no row".into()),
            || {
                let outcome = flights.run(7, None, || unreachable!());
                assert_eq!(outcome, Err(Failure::Computing("no row".into())));
            },
        );
    }

    #[test]
    fn a_panic_leaves_the_next_one_to_try() {
        let flights = Flights::default();
        during(
            &flights,
            || panic!("on purpose"),
            || {
                assert_eq!(flights.run(7, None, || Ok(2)), Ok(2));
            },
        );
    }

    #[test]
    fn who_may_not_wait_is_told_so() {
        let flights = Flights::default();
        during(
            &flights,
            || Ok(1),
            || {
                let run = |patience| flights.run(7, Some(patience), || unreachable!());
                assert_eq!(run(Duration::ZERO), Err(Failure::WouldWait));
                assert_eq!(run(Duration::from_millis(5)), Err(Failure::TimedOut));
                let nested = flights.run(9, None, || {
                    assert_eq!(flights.run(9, None, || Ok(1)), Err(Failure::WouldWait));
                    Ok(9)
                });
                assert_eq!(
                    nested,
                    Ok(9),
                    "a computation that asks for itself is told so"
                );
                assert_eq!(
                    flights.run(8, Some(Duration::ZERO), || Ok(8)),
                    Ok(8),
                    "another key"
                );
            },
        );
    }
}
