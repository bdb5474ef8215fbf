//! Deduplication of concurrent computations of one missing row.

use crate::sync::{Arc, Condvar, Mutex};
use std::collections::HashMap;
use std::sync::PoisonError;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// One computation at a time for each key, whose result all concurrent callers share.
///
/// It stores nothing: a value is passed to the waiting callers and dropped. Unlike look-ups, waiting takes
/// locks and time. The values are cloned, so `T` is best a shared pointer.
pub struct SingleFlight<T, E> {
    flights: Mutex<HashMap<u64, Arc<Flight<T, E>>>>,
}

/// Reason for which [`SingleFlight::run`] returned no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// The computation failed, in this call or in the one it waited for.
    Computing(E),
    /// The computation of another caller took longer than the timeout.
    TimedOut,
    /// Another caller computes and this one may not wait, or this thread itself computes the key.
    WouldWait,
}

struct Flight<T, E> {
    leader: ThreadId,
    outcome: Mutex<Outcome<T, E>>,
    completed: Condvar,
}

#[derive(Clone)]
enum Outcome<T, E> {
    Computing,
    Value(T),
    Failed(E),
    /// The computation panicked: the next caller tries again.
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
    /// Returns the value of `compute`, or of another caller's running computation for `key`.
    ///
    /// `timeout` limits the wait for another caller: `None` is without limit, and zero does not wait, which
    /// is for threads that must not block, such as a compute worker.
    ///
    /// # Errors
    /// [`Failure`]; every caller that waited for a failed computation gets its error.
    pub fn run(
        &self,
        key: u64,
        timeout: Option<Duration>,
        compute: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, Failure<E>> {
        let start = Instant::now();
        loop {
            let (flight, leads) = self.join_or_lead(key);
            if leads {
                let guard = CompletionGuard {
                    of: self,
                    key,
                    flight: &flight,
                };
                let outcome = compute();
                guard.complete(match &outcome {
                    Ok(value) => Outcome::Value(value.clone()),
                    Err(error) => Outcome::Failed(error.clone()),
                });
                return outcome.map_err(Failure::Computing);
            }
            match flight.wait(start, timeout)? {
                Outcome::Value(value) => return Ok(value),
                Outcome::Failed(error) => return Err(Failure::Computing(error)),
                Outcome::Abandoned | Outcome::Computing => {}
            }
        }
    }

    /// Returns the flight of a key, and whether the caller leads it because it is new.
    fn join_or_lead(&self, key: u64) -> (Arc<Flight<T, E>>, bool) {
        // A poisoned map is consistent: nothing in here panics between two changes.
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return (Arc::clone(flight), false);
        }
        let flight = Arc::new(Flight {
            leader: thread::current().id(),
            outcome: Mutex::new(Outcome::Computing),
            completed: Condvar::new(),
        });
        flights.insert(key, Arc::clone(&flight));
        (flight, true)
    }
}

impl<T: Clone, E: Clone> Flight<T, E> {
    fn wait(&self, start: Instant, timeout: Option<Duration>) -> Result<Outcome<T, E>, Failure<E>> {
        if self.leader == thread::current().id() {
            return Err(Failure::WouldWait);
        }
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        while matches!(*outcome, Outcome::Computing) {
            outcome = match timeout {
                None => self
                    .completed
                    .wait(outcome)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(Failure::WouldWait),
                Some(timeout) => {
                    let left = timeout.saturating_sub(start.elapsed());
                    if left.is_zero() {
                        return Err(Failure::TimedOut);
                    }
                    let waited = self.completed.wait_timeout(outcome, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Ok(outcome.clone())
    }
}

/// Guard that completes a flight even on a panic, so that no caller waits for ever.
struct CompletionGuard<'a, T: Clone, E: Clone> {
    of: &'a SingleFlight<T, E>,
    key: u64,
    flight: &'a Flight<T, E>,
}

impl<T: Clone, E: Clone> CompletionGuard<'_, T, E> {
    fn complete(self, outcome: Outcome<T, E>) {
        *self
            .flight
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = outcome;
        // Dropping the guard does the rest, on a panic too.
    }
}

impl<T: Clone, E: Clone> Drop for CompletionGuard<'_, T, E> {
    fn drop(&mut self) {
        // From here on, the next caller computes anew; by now a cache has the value.
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
        self.flight.completed.notify_all();
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

    /// Runs `beside` during a computation for key 7, which then ends with `outcome`.
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
                let run = |timeout| flights.run(7, Some(timeout), || unreachable!());
                assert_eq!(run(Duration::ZERO), Err(Failure::WouldWait));
                assert_eq!(run(Duration::from_millis(5)), Err(Failure::TimedOut));
                let nested = flights.run(9, None, || {
                    assert_eq!(flights.run(9, None, || Ok(1)), Err(Failure::WouldWait));
                    Ok(9)
                });
                assert_eq!(
                    nested,
                    Ok(9),
                    "a computation that requests its own key gets an error"
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
