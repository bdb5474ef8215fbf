//! One call of `submit` or `run`, from its checked arguments to a future or a result.

use super::call::{Call, told};
use super::{SIGNALS_EVERY, Task};
use crate::errors::{detached, raise, to_py};
use aif_core::error::Error;
use aif_core::sched::{self, Lane, Running, Scheduler, Seated, Target};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};
use std::time::Instant;

/// `concurrent.futures.Future`.
pub(super) fn future_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "concurrent.futures", "Future")
}

/// `aif_jax.futures.TaskFuture`, which tells the scheduler when it is cancelled.
fn task_future_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "aif_jax.futures", "TaskFuture")
}

/// A copy of the context variables as they are now.
fn copy_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    COPY.import(py, "contextvars", "copy_context")?.call0()
}

/// Where and until when something shall run.
pub(super) struct Asked<'a> {
    pub(super) core: &'a Scheduler,
    pub(super) lane: Lane,
    pub(super) deadline: Option<Instant>,
    /// Whether it is the next step of something that was taken on before.
    pub(super) goes_on: bool,
}

impl Asked<'_> {
    /// Queues it; returns its future, and the scheduler's side of that.
    pub(super) fn submit<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        bound: Bound<'py, PyTuple>,
    ) -> PyResult<(Bound<'py, PyAny>, Task)> {
        let future = task_future_class(py)?.call0()?;
        let job = Call {
            future: future.clone().unbind(),
            context: copy_context(py)?.unbind(),
            bound: bound.unbind(),
        }
        .into_job();
        let ticket = if self.goes_on {
            self.core.submit_next(self.lane, self.deadline, name, job)
        } else {
            self.core.submit(self.lane, self.deadline, name, job)
        }
        .map_err(|error| to_py(py, &error))?;
        Ok((future, Task(ticket)))
    }

    /// Runs it here if a thread of the lane is idle, otherwise queues it and waits.
    pub(super) fn run<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        bound: Bound<'py, PyTuple>,
        is_forked: impl Fn() -> bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let context = copy_context(py)?;
        let here = |running: Running<'_>| {
            let (end, result) = told(py, || {
                context.call_method1(intern!(py, "run"), bound.clone())
            });
            if !is_forked() {
                running.end(end);
            }
            result
        };
        match self
            .core
            .run_here(self.lane, self.deadline, name, here)
            .map_err(|error| to_py(py, &error))?
        {
            Seated::Ran(result) => result,
            Seated::Full(_) => self.queue_and_wait(py, name, bound),
        }
    }

    fn queue_and_wait<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        bound: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (future, Task(ticket)) = self.submit(py, name, bound)?;
        loop {
            let now = Instant::now();
            let left = match self.deadline {
                Some(at) if at > now => SIGNALS_EVERY.min(at - now),
                _ => SIGNALS_EVERY,
            };
            match detached(py, || Ok(sched::wait(Target::Task(&ticket), Some(left))))? {
                Ok(()) => break,
                Err(Error::DeadlineExceeded(_)) => {
                    if let Err(interrupt) = py.check_signals() {
                        ticket.cancel();
                        return Err(interrupt);
                    }
                    // If it is still queued then, nobody else need tell it.
                    let _ = ticket.expire();
                }
                Err(error) => {
                    ticket.cancel();
                    return Err(to_py(py, &error));
                }
            }
        }
        if future
            .call_method0(intern!(py, "cancelled"))?
            .extract::<bool>()?
        {
            return Err(raise(
                py,
                "SchedulerError",
                format!(
                    "the scheduler was shut down, and its queue emptied, while task {name:?} waited for a thread"
                ),
            ));
        }
        future.call_method1(intern!(py, "result"), (0,))
    }
}
