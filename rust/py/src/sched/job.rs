//! Execution of a Python task on its worker.

use crate::errors::{panic_text, raise, to_py};
use aif_core::sched::{Job, JobCall, JobOutcome, Running};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Python objects of a job. Dropped only while attached to the interpreter.
pub(super) struct PyJob {
    pub(super) future: Py<PyAny>,
    pub(super) context: Py<PyAny>,
    /// The function and its arguments.
    pub(super) bound: Py<PyTuple>,
}

impl PyJob {
    pub(super) fn into_job(self) -> Job {
        Box::new(move |call| {
            let mut slot = Some((self, call));
            Python::try_attach(|py| {
                if let Some((job, call)) = slot.take() {
                    job.handle(py, call);
                }
            });
            // Without an interpreter nobody waits for the future, and no Python object may be touched.
            std::mem::forget(slot);
        })
    }

    fn handle(self, py: Python<'_>, call: JobCall<'_>) {
        let future = self.future.bind(py).clone();
        let reported = match call {
            JobCall::Run(running) => self.run(py, running),
            JobCall::Expired(dropped) | JobCall::Refused(dropped) => {
                claim(&future).and_then(|claimed| {
                    // The future may have been cancelled while this thread waited for the GIL.
                    if claimed {
                        set_exception(&future, to_py(py, &dropped.error()))
                    } else {
                        dropped.cancelled();
                        Ok(())
                    }
                })
            }
            JobCall::Cancelled => claim(&future).map(drop),
            JobCall::Stopped => future
                .call_method0(intern!(py, "cancel"))
                .and_then(|_| claim(&future))
                .map(drop),
        };
        if let Err(error) = reported {
            // The future was set by other code, which is its own fault; the worker continues.
            error.write_unraisable(py, Some(&future));
        }
    }

    fn run(self, py: Python<'_>, running: Running<'_>) -> PyResult<()> {
        let Self {
            future,
            context,
            bound,
        } = self;
        let future = future.into_bound(py);
        // The deadline may have passed while this worker waited for the GIL.
        if let Some(error) = running.expired() {
            let claimed = claim(&future)?;
            running.finish(if claimed {
                JobOutcome::Expired
            } else {
                JobOutcome::Cancelled
            });
            return if claimed {
                set_exception(&future, to_py(py, &error))
            } else {
                Ok(())
            };
        }
        if !claim(&future)? {
            running.finish(JobOutcome::Cancelled);
            return Ok(());
        }
        let (outcome, result) = call_guarded(py, || {
            context
                .bind(py)
                .call_method1(intern!(py, "run"), bound.bind(py))
        });
        // Before the result is delivered, so that its receiver finds the arguments released.
        bound.drop_ref(py);
        context.drop_ref(py);
        running.finish(outcome);
        match result {
            Ok(value) => {
                future.call_method1(intern!(py, "set_result"), (value,))?;
                Ok(())
            }
            Err(error) => set_exception(&future, error),
        }
    }
}

/// Calls a Python function and classifies its outcome. A Rust panic inside it unwinds through every `Result`
/// up to here, and becomes an exception.
pub(super) fn call_guarded<'py>(
    py: Python<'py>,
    function: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
) -> (JobOutcome, PyResult<Bound<'py, PyAny>>) {
    match catch_unwind(AssertUnwindSafe(function)) {
        Ok(Ok(value)) => (JobOutcome::Completed, Ok(value)),
        Ok(Err(error)) => (JobOutcome::Failed, Err(error)),
        Err(panic) => {
            let text = panic_text(&*panic);
            let error = raise(
                py,
                "SchedulerError",
                format!("native code that the task called panicked: {text}"),
            );
            (JobOutcome::Panicked, Err(error))
        }
    }
}

/// Marks the future as running. Returns false if it was cancelled, and notifies its waiters.
fn claim(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future
        .call_method0(intern!(future.py(), "set_running_or_notify_cancel"))?
        .extract()
}

fn set_exception(future: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    let py = future.py();
    future.call_method1(intern!(py, "set_exception"), (error.into_value(py),))?;
    Ok(())
}
