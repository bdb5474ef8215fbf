//! Memory on loan from a pool, as an object that `NumPy` arrays keep alive.

use aif_core::pool::Lease;
use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::c_int;

/// Base object of the arrays of a gathered batch. It returns to its pool when the last array, and whatever
/// JAX made of them without a copy, is gone.
#[pyclass(frozen, module = "aif_jax._native")]
pub(crate) struct LeasedBuffer(Lease);

impl LeasedBuffer {
    pub(crate) fn new(lease: Lease) -> Self {
        Self(lease)
    }
}

#[pymethods]
impl LeasedBuffer {
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let lease = &slf.get().0;
        let (start, bytes) = (lease.as_ptr(), lease.len() as ffi::Py_ssize_t);
        // SAFETY: the memory is valid for as long as the object, which the view keeps alive; the
        // interpreter gave `view`.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), bytes, 0, flags) };
        if filled == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}
