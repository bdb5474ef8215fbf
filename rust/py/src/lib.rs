//! Python binding of `aif-core`: argument checks, conversion, and releasing the GIL. No logic.

mod cache;
mod errors;
mod features;
mod kernels;
mod keys;
mod sched;

use pyo3::prelude::*;

/// Native half of `aif_jax`; import its names from `aif_jax`, not from here.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    cache::register(module)?;
    keys::register(module)?;
    features::register(module)?;
    sched::register(module)?;
    kernels::register(module)
}
