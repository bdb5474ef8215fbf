//! Conversion of core errors into the exceptions of `aif_jax.errors`, and execution of native work.

use aif_core::error::Error;
use pyo3::exceptions::{PyMemoryError, PyOSError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Makes the exception `class` of `aif_jax.errors` with this message.
///
/// The module is imported when the first error is raised: `aif_jax` imports this extension while it
/// is itself being imported.
pub(crate) fn raise(py: Python<'_>, class: &str, message: String) -> PyErr {
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let made = ERRORS
        .get_or_try_init(py, || py.import("aif_jax.errors").map(Bound::unbind))
        .and_then(|module| module.bind(py).getattr(class))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match made {
        Ok(class) => PyErr::from_type(class, message),
        Err(error) => error,
    }
}

/// Converts `error` into a Python exception.
pub(crate) fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error {
        Error::Config(_) => "ConfigError",
        Error::Layout(_) => "LayoutError",
        Error::Request(_) | Error::StaleHandle(_) => "RequestError",
        Error::OutOfMemory { .. } => return PyMemoryError::new_err(error.to_string()),
        // Given an errno, Python picks the matching subclass.
        Error::File {
            code: Some(code), ..
        } => {
            return PyOSError::new_err((*code, error.to_string()));
        }
        Error::File { .. } => return PyOSError::new_err(error.to_string()),
        Error::QueueFull { .. } => {
            let message = format!(
                "{error} (the limit is queue_bound of a Scheduler, threads.max_queued of an Engine)"
            );
            return raise(py, "OverloadedError", message);
        }
        Error::Overloaded(_) | Error::RowsHeld { .. } => "OverloadedError",
        Error::DeadlineExceeded(_) => "DeadlineExceededError",
        Error::Scheduler(_) => "SchedulerError",
        _ => "AifError",
    };
    raise(py, class, error.to_string())
}

/// Returns the message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// Runs native `work` with the GIL released; its error or panic becomes a Python exception.
///
/// Every binding uses it, so that none forgets one of the three.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(to_py(py, &error)),
        Err(panic) => {
            let text = panic_text(&*panic);
            Err(raise(
                py,
                "AifError",
                format!("the native half of aif_jax panicked, which is a bug to report: {text}"),
            ))
        }
    }
}
