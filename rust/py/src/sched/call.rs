//! One task on its worker: from the future's claim to its result.

use crate::errors::{panic_text, raise, to_py};
use aif_core::sched::{End, Job, Running, Turn};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a job needs from Python. Only ever dropped while attached.
pub(super) struct Call {
    pub(super) future: Py<PyAny>,
    pub(super) context: Py<PyAny>,
    /// The function and its arguments.
    pub(super) bound: Py<PyTuple>,
}

impl Call {
    pub(super) fn into_job(self) -> Job {
        Box::new(move |turn| {
            let mut slot = Some((self, turn));
            Python::try_attach(|py| {
                if let Some((call, turn)) = slot.take() {
                    call.take_turn(py, turn);
                }
            });
            // Without an interpreter nobody waits for the future, and nothing of Python's may be touched.
            std::mem::forget(slot);
        })
    }

    fn take_turn(self, py: Python<'_>, turn: Turn<'_>) {
        let future = self.future.bind(py).clone();
        let told = match turn {
            Turn::Run(running) => self.run(py, running),
            Turn::Expired(dropped) | Turn::Refused(dropped) => claim(&future).and_then(|claimed| {
                // The GIL may have been waited for, and the future cancelled meanwhile.
                if claimed {
                    set_exception(&future, to_py(py, &dropped.error()))
                } else {
                    dropped.cancelled();
                    Ok(())
                }
            }),
            Turn::Cancelled => claim(&future).map(drop),
            Turn::Stopped => future
                .call_method0(intern!(py, "cancel"))
                .and_then(|_| claim(&future))
                .map(drop),
        };
        if let Err(error) = told {
            // Somebody else has set this future, which is theirs to explain; the worker goes on.
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
        // The GIL may have been taken for longer than the task had time.
        if let Some(error) = running.expired() {
            let claimed = claim(&future)?;
            running.end(if claimed {
                End::Expired
            } else {
                End::Cancelled
            });
            return if claimed {
                set_exception(&future, to_py(py, &error))
            } else {
                Ok(())
            };
        }
        if !claim(&future)? {
            running.end(End::Cancelled);
            return Ok(());
        }
        let (end, result) = told(py, || {
            context
                .bind(py)
                .call_method1(intern!(py, "run"), bound.bind(py))
        });
        // Before the result is out, so that whoever has it finds the arguments released.
        bound.drop_ref(py);
        context.drop_ref(py);
        running.end(end);
        match result {
            Ok(value) => {
                future.call_method1(intern!(py, "set_result"), (value,))?;
                Ok(())
            }
            Err(error) => set_exception(&future, error),
        }
    }
}

/// Calls a function of Python, and says how that ended. A Rust panic inside it surfaces here as a panic again,
/// past every `Result`, and becomes an exception.
pub(super) fn told<'py>(
    py: Python<'py>,
    function: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
) -> (End, PyResult<Bound<'py, PyAny>>) {
    match catch_unwind(AssertUnwindSafe(function)) {
        Ok(Ok(value)) => (End::Completed, Ok(value)),
        Ok(Err(error)) => (End::Failed, Err(error)),
        Err(panic) => {
            let said = panic_text(&*panic);
            let error = raise(
                py,
                "SchedulerError",
                format!("native code that the task called panicked: {said}"),
            );
            (End::Panicked, Err(error))
        }
    }
}

/// Marks the future as running; false if it was cancelled, of which those who wait for it are told.
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
