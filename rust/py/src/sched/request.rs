//! Calls of `submit` and `run`, from their checked arguments to a future or a result.

use super::job::{PyJob, call_guarded};
use super::{SIGNAL_CHECK_INTERVAL, Task};
use crate::errors::{detached, raise, to_py};
use aif_core::error::Error;
use aif_core::sched::{self, Lane, RunInline, Running, Scheduler, Target};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};
use std::borrow::Cow;
use std::time::Instant;

/// Returns `concurrent.futures.Future`.
pub(super) fn future_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "concurrent.futures", "Future")
}

/// Returns `aif_jax.futures.TaskFuture`, which cancels its task when it is cancelled.
fn task_future_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "aif_jax.futures", "TaskFuture")
}

/// Copies the current context variables.
fn copy_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    COPY.import(py, "contextvars", "copy_context")?.call0()
}

/// Checked arguments of a task.
pub(super) struct TaskRequest<'a, 'py> {
    pub(super) core: &'a Scheduler,
    pub(super) lane: Lane,
    pub(super) deadline: Option<Instant>,
    /// True for the next step of a request whose first step was accepted.
    pub(super) continuation: bool,
    pub(super) name: Cow<'a, str>,
    /// The function and its arguments.
    pub(super) bound: Bound<'py, PyTuple>,
}

impl<'py> TaskRequest<'_, 'py> {
    /// Queues the task; returns its future and the canceller of that future.
    pub(super) fn submit(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Task)> {
        let future = task_future_class(py)?.call0()?;
        let job = PyJob {
            future: future.clone().unbind(),
            context: copy_context(py)?.unbind(),
            bound: self.bound.clone().unbind(),
        }
        .into_job();
        let ticket = if self.continuation {
            self.core
                .submit_next(self.lane, self.deadline, &self.name, job)
        } else {
            self.core.submit(self.lane, self.deadline, &self.name, job)
        }
        .map_err(|error| to_py(py, &error))?;
        Ok((future, Task(ticket)))
    }

    /// Runs the task inline if a thread of the lane is idle, otherwise queues it and waits.
    pub(super) fn run(
        &self,
        py: Python<'py>,
        is_forked: impl Fn() -> bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let context = copy_context(py)?;
        let inline = |running: Running<'_>| {
            let (outcome, result) = call_guarded(py, || {
                context.call_method1(intern!(py, "run"), self.bound.clone())
            });
            if !is_forked() {
                running.finish(outcome);
            }
            result
        };
        match self
            .core
            .run_inline(self.lane, self.deadline, &self.name, inline)
            .map_err(|error| to_py(py, &error))?
        {
            RunInline::Done(result) => result,
            RunInline::NoIdleWorker(_) => self.queue_and_wait(py),
        }
    }

    fn queue_and_wait(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (future, Task(ticket)) = self.submit(py)?;
        loop {
            let now = Instant::now();
            let left = match self.deadline {
                Some(at) if at > now => SIGNAL_CHECK_INTERVAL.min(at - now),
                _ => SIGNAL_CHECK_INTERVAL,
            };
            match detached(py, || Ok(sched::wait(Target::Task(&ticket), Some(left))))? {
                Ok(()) => break,
                Err(Error::DeadlineExceeded(_)) => {
                    if let Err(interrupt) = py.check_signals() {
                        ticket.cancel();
                        return Err(interrupt);
                    }
                    // A task that is still queued then is dropped here.
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
                    "the scheduler was shut down, and its queue emptied, while task {:?} waited for a thread",
                    self.name
                ),
            ));
        }
        future.call_method1(intern!(py, "result"), (0,))
    }
}
