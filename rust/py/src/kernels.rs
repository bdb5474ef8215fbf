use crate::errors::{detached, raise, to_py};
use aif_core::bf16::Matrix;
use aif_core::error::Error;
use aif_core::lsh::{self, Kind, Level, Sequence, SimTier};
use aif_core::xla::TARGETS;
use numpy::ndarray::{Array2, Array3};
use numpy::{
    IntoPyArray, PyArray2, PyArray3, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};
use std::ptr::NonNull;

/// Handlers for XLA as capsules of function pointers, for ``jax.ffi.register_ffi_target``.
#[pyfunction]
fn ffi_targets(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let targets = PyDict::new(py);
    for (name, handler) in TARGETS {
        let pointer =
            NonNull::new(handler as *mut std::ffi::c_void).expect("a function has an address");
        // SAFETY: the pointer is that of a function, which lives as long as the process; JAX reads it from
        // a capsule of this name, or without one.
        let capsule =
            unsafe { PyCapsule::new_with_pointer(py, pointer, c"xla._CUSTOM_CALL_TARGET") }?;
        targets.set_item(name, capsule)?;
    }
    Ok(targets)
}

/// Return the CPU features that kernels are written for, and whether this CPU has them.
#[pyfunction]
fn cpu_features(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let features = PyDict::new(py);
    for (name, present) in Level::cpu_features() {
        features.set_item(name, present)?;
    }
    Ok(features)
}

/// Return the instruction set that each kernel uses. Raises ``ConfigError`` if ``AIF_JAX_KERNELS`` names
/// one that this CPU lacks.
#[pyfunction]
fn chosen_kernels(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let level = Level::chosen().map_err(|error| to_py(py, &error))?;
    let chosen = PyDict::new(py);
    for name in ["simtier", "table_sum", "interaction"] {
        chosen.set_item(name, level.name())?;
    }
    Ok(chosen)
}

/// Run `SimTier` on `NumPy` arrays with a named instruction set, for tests: see
/// ``aif_jax.kernels.simtier``.
#[pyfunction]
#[pyo3(signature = (cand, seq, channel, edges, *, channels, kind, implementation))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // the shape of a Python function
fn simtier<'py>(
    py: Python<'py>,
    cand: PyReadonlyArray2<'py, u8>,
    seq: PyReadonlyArray2<'py, u8>,
    channel: PyReadonlyArray1<'py, i32>,
    edges: PyReadonlyArray1<'py, i32>,
    channels: usize,
    kind: &str,
    implementation: &str,
) -> PyResult<Bound<'py, PyArray3<i32>>> {
    let [n, width] = [cand.shape()[0], cand.shape()[1]];
    if seq.shape()[1] != width {
        let message = format!(
            "simtier: cand has {width} bytes a signature and seq {}; they must agree",
            seq.shape()[1]
        );
        return Err(raise(py, "RequestError", message));
    }
    let (cand, signatures) = (cand.as_slice()?, seq.as_slice()?);
    let (channel, edges) = (channel.as_slice()?, edges.as_slice()?);
    let out = detached(py, || {
        let kind = Kind::from_name(kind)?;
        let sequence = Sequence {
            kind,
            width,
            signatures,
            channel,
            channels,
            edges,
        };
        let ready = SimTier::new(Level::from_name(implementation)?, &sequence)?;
        let mut out = Array3::zeros([n, channels, edges.len() + 1]);
        ready.count(cand, out.as_slice_mut().expect("a new array is contiguous"));
        Ok(out)
    })?;
    Ok(out.into_pyarray(py))
}

/// Run the table sum on `NumPy` arrays with a named instruction set, for tests: see
/// ``aif_jax.kernels.table_sum``.
#[pyfunction]
#[pyo3(signature = (table, sig, *, bits, implementation))]
#[allow(clippy::needless_pass_by_value)] // the shape of a Python function
fn table_sum<'py>(
    py: Python<'py>,
    table: PyReadonlyArray3<'py, f32>,
    sig: PyReadonlyArray2<'py, u8>,
    bits: usize,
    implementation: &str,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (width, [n, signature_bytes]) = (table.shape()[2], [sig.shape()[0], sig.shape()[1]]);
    let (table, sig) = (table.as_slice()?, sig.as_slice()?);
    let out = detached(py, || {
        let level = Level::from_name(implementation)?;
        let mut out = Array2::zeros([n, width]);
        let sums = out.as_slice_mut().expect("a new array is contiguous");
        lsh::table_sum(
            level,
            bits,
            Matrix::F32(table),
            signature_bytes,
            sig,
            width,
            sums,
        )?;
        Ok::<_, Error>(out)
    })?;
    Ok(out.into_pyarray(py))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(ffi_targets, module)?)?;
    module.add_function(wrap_pyfunction!(cpu_features, module)?)?;
    module.add_function(wrap_pyfunction!(chosen_kernels, module)?)?;
    module.add_function(wrap_pyfunction!(simtier, module)?)?;
    module.add_function(wrap_pyfunction!(table_sum, module)?)
}
