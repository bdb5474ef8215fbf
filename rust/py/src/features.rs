//! Standardisation of numeric columns for Python.

use crate::errors::{detached, raise};
use aif_core::standard::{Anomalies, Standard};
use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

/// Maximum number of values processed with the GIL held: they take some tens of microseconds, for which
/// releasing it is not worthwhile.
const VALUES_WITH_GIL: usize = 8192;

type Standardised<'py> = (Bound<'py, PyArray2<f32>>, usize, usize, usize);

/// Standardise a contiguous column of float32 or float64; see the stub.
#[pyfunction]
fn standardise<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    mean: f64,
    std: f64,
    clip: f64,
    log1p: bool,
) -> PyResult<Standardised<'py>> {
    let by = Standard {
        mean,
        std,
        clip,
        log1p,
    };
    if clip.is_nan() || clip < 0.0 {
        let message = format!("standardise: clip is {clip}; expected a bound of at least 0");
        return Err(raise(py, "SchemaError", message));
    }
    if let Ok(column) = values.cast::<PyArray1<f32>>() {
        return standardise_column(py, column, &by);
    }
    if let Ok(column) = values.cast::<PyArray1<f64>>() {
        return standardise_column(py, column, &by);
    }
    let given = match values.cast::<PyUntypedArray>() {
        Ok(array) => format!("{}{:?}", array.dtype(), array.shape()),
        Err(_) => values.get_type().name()?.to_string(),
    };
    Err(refused(py, &given))
}

fn refused(py: Python<'_>, given: &str) -> PyErr {
    let message = format!(
        "standardise takes a contiguous one-dimensional NumPy array of float32 or float64; got {given}. \
         np.ascontiguousarray(values, dtype=np.float64) makes one"
    );
    raise(py, "SchemaError", message)
}

fn standardise_column<'py, T: Element + Copy + Into<f64> + Sync>(
    py: Python<'py>,
    column: &Bound<'py, PyArray1<T>>,
    by: &Standard,
) -> PyResult<Standardised<'py>> {
    if column.len() == 0 {
        // The pointer of an empty array is arbitrary and need not be aligned.
        return Ok((PyArray2::zeros(py, [0, 2], false), 0, 0, 0));
    }
    if !column.is_c_contiguous() || !column.data().is_aligned() {
        return Err(refused(py, "a view that is not contiguous or not aligned"));
    }
    let borrowed = column
        .try_readonly()
        .map_err(|_| refused(py, "an array that another call is writing to"))?;
    let values = borrowed.as_slice()?;
    let mut out = vec![[0.0f32; 2]; values.len()];
    let anomalies: Anomalies = if values.len() <= VALUES_WITH_GIL {
        aif_core::standard::standardise(values, by, &mut out)
    } else {
        detached(py, || {
            Ok(aif_core::standard::standardise(values, by, &mut out))
        })?
    };
    let rows = out.len();
    let encoded = PyArray1::from_vec(py, out.into_flattened()).reshape([rows, 2])?;
    Ok((
        encoded,
        anomalies.missing,
        anomalies.infinite,
        anomalies.clipped,
    ))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(standardise, module)?)
}
