//! Keys for Python: hashes of strings, and first occurrences.

use crate::errors::{detached, raise};
use aif_core::cache::key_of;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

/// Borrows the keys as a contiguous `uint64[N]`, which blocks writes by other bindings meanwhile.
pub(crate) fn borrow_keys<'py>(keys: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, u64>> {
    let py = keys.py();
    let refuse = |given: String| {
        let message = format!(
            "keys must be a contiguous one-dimensional NumPy array of uint64; got {given}. \
             np.ascontiguousarray(keys, dtype=np.uint64) makes one of integers, and item_keys of any ids"
        );
        raise(py, "RequestError", message)
    };
    let Ok(array) = keys.cast::<PyUntypedArray>() else {
        return Err(refuse(keys.get_type().name()?.to_string()));
    };
    let Ok(typed) = keys.cast::<PyArray1<u64>>() else {
        return Err(refuse(format!("{}{:?}", array.dtype(), array.shape())));
    };
    if !array.is_c_contiguous() {
        return Err(refuse(format!("a view with strides {:?}", array.strides())));
    }
    if !typed.data().is_aligned() {
        return Err(refuse(
            "a view that does not start at a multiple of 8 bytes".into(),
        ));
    }
    typed
        .try_readonly()
        .map_err(|_| refuse("an array that another call is writing to".into()))
}

/// Strings hashed before the GIL is offered to other threads: a fraction of the interpreter's switch
/// interval.
const STRINGS_AT_ONCE: usize = 1 << 15;

/// Return the 64-bit keys of strings: XXH3-64 of their UTF-8 bytes, the same on every machine.
#[pyfunction]
fn hash_strings<'py>(
    py: Python<'py>,
    strings: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let refuse = |message: String| raise(py, "RequestError", message);
    let list = strings.cast::<PyList>().map_err(|_| {
        let given = strings.get_type().to_string();
        refuse(format!("hash_strings takes a list of str; got {given}. Use list(ids), or ids.tolist() of an array"))
    })?;
    let count = list.len();
    let mut keys = Vec::with_capacity(count);
    for i in 0..count {
        if i > 0 && i % STRINGS_AT_ONCE == 0 {
            // The strings are Python's, so the GIL is needed, but not for all of them in one go.
            py.detach(std::thread::yield_now);
        }
        let item = list.get_item(i).map_err(|_| {
            let now = list.len();
            refuse(format!(
                "the list of ids changed from {count} to {now} while it was hashed; give hash_strings a copy"
            ))
        })?;
        let text = item.cast::<PyString>().map_err(|_| {
            let given = item.get_type().to_string();
            refuse(format!(
                "id {i} is {given}; hash_strings takes str only. Use str(id) where that is meant"
            ))
        })?;
        let text = text.to_str().map_err(|_| {
            refuse(format!(
                "id {i} has no UTF-8 form (a lone surrogate); decode ids with errors='strict'"
            ))
        })?;
        keys.push(key_of(text.as_bytes()));
    }
    Ok(PyArray1::from_vec(py, keys))
}

/// Maximum number of keys processed with the GIL held: they take some tens of microseconds, for which
/// releasing it is not worthwhile.
const KEYS_WITH_GIL: usize = 8192;

/// Return the indices of the first occurrences of all keys, ascending; None if all keys differ.
#[pyfunction]
fn distinct<'py>(
    py: Python<'py>,
    keys: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyArray1<i64>>>> {
    let keys = borrow_keys(keys)?;
    let keys = keys.as_slice()?;
    if keys.len() >= 1 << 31 {
        let given = keys.len();
        let message =
            format!("distinct takes fewer than 2^31 keys; got {given}. Ask for them in parts");
        return Err(raise(py, "RequestError", message));
    }
    let places = if keys.len() <= KEYS_WITH_GIL {
        aif_core::distinct::distinct(keys)
    } else {
        detached(py, || Ok(aif_core::distinct::distinct(keys)))?
    };
    Ok(places.map(|places| PyArray1::from_vec(py, places)))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(hash_strings, module)?)?;
    module.add_function(wrap_pyfunction!(distinct, module)?)
}
