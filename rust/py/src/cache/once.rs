//! `get_or_compute`: one concurrent Python computation for each key.

use crate::errors::raise;
use aif_core::cache::{Failure, SingleFlight};
use aif_core::sched::{self, Lane};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows and errors are shared by all callers that waited for them.
#[derive(Default)]
pub(crate) struct Flights(SingleFlight<Arc<Py<PyDict>>, Arc<PyErr>>);

/// Interval at which a waiting thread checks for interrupts.
const SIGNAL_CHECK_INTERVAL: Duration = Duration::from_millis(100);

impl Flights {
    /// Returns the row that `compute` gives, in this thread or in another that computes it already.
    pub(crate) fn run<'py>(
        &self,
        py: Python<'py>,
        key: u64,
        timeout_s: Option<f64>,
        compute: impl FnOnce(Python<'_>) -> PyResult<Py<PyDict>> + Send,
    ) -> PyResult<Bound<'py, PyDict>> {
        let timeout = match timeout_s {
            _ if sched::current_lane() == Some(Lane::Compute) => Duration::ZERO,
            None => Duration::MAX,
            Some(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| {
                let message =
                    format!("timeout_s is {seconds}; give a number of seconds from 0 on, or None");
                raise(py, "RequestError", message)
            })?,
        };
        let start = Instant::now();
        let mut compute = Some(compute);
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let outcome = py.detach(|| {
                self.0.run(key, Some(left.min(SIGNAL_CHECK_INTERVAL)), || {
                    let compute = compute.take().expect("a computation of ours ends the loop");
                    Python::attach(compute).map(Arc::new).map_err(Arc::new)
                })
            });
            match outcome {
                Ok(row) => return Ok(row.bind(py).clone()),
                Err(Failure::Computing(error)) => return Err(error.clone_ref(py)),
                Err(Failure::TimedOut) if start.elapsed() < timeout => py.check_signals()?,
                Err(Failure::TimedOut) => {
                    let message = format!(
                        "key {key} was still being computed by another thread after {:.3} s; raise timeout_s, \
                         or look at what computes it",
                        timeout.as_secs_f64()
                    );
                    return Err(raise(py, "DeadlineExceededError", message));
                }
                Err(Failure::WouldWait) => {
                    let message = format!(
                        "key {key} is being computed already, and this thread may not wait for it: it is a \
                         compute worker, or computes that key itself, or timeout_s is 0; call get_or_compute \
                         from the blocking lane or from a thread of your own"
                    );
                    return Err(raise(py, "SchedulerError", message));
                }
            }
        }
    }
}
