//! Conversion between columns of rows and `NumPy` arrays.

use super::lease::LeasedBuffer;
use crate::errors::{detached, raise};
use aif_core::buffer::ALIGN;
use aif_core::cache::{Column, RowLayout};
use aif_core::pool::BufferPool;
use numpy::{
    PyArray1, PyArrayDescr, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1,
    PyReadwriteArray1, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping, PySlice, PyTuple};
use std::sync::Arc;

/// Input column: its bytes, borrowed so that no other binding writes to them meanwhile.
pub(crate) struct Input<'py>(PyReadonlyArray1<'py, u8>);

impl Input<'_> {
    pub(crate) fn bytes(&self) -> PyResult<&[u8]> {
        Ok(self.0.as_slice()?)
    }
}

/// Output column: its bytes, borrowed so that no other binding touches them meanwhile.
pub(crate) struct Output<'py>(PyReadwriteArray1<'py, u8>);

impl Output<'_> {
    pub(crate) fn bytes(&mut self) -> PyResult<&mut [u8]> {
        Ok(self.0.as_slice_mut()?)
    }
}

/// Reads the columns of `rows` rows from a mapping of names to arrays `[rows, *shape]`.
pub(crate) fn inputs<'py>(
    layout: &RowLayout,
    rows: usize,
    given: &Bound<'py, PyAny>,
) -> PyResult<Vec<Input<'py>>> {
    let py = given.py();
    let given = named(layout, "columns", given)?;
    let read = |column: &Column| {
        let array = checked(column, rows, &given.get_item(column.name())?)?;
        let busy = || {
            let message = format!(
                "column {:?} is being written to by another call; give it a copy",
                column.name()
            );
            raise(py, "LayoutError", message)
        };
        Ok(Input(
            flat_bytes(&array)?.try_readonly().map_err(|_| busy())?,
        ))
    };
    layout.columns().iter().map(read).collect()
}

/// Minimum bytes of new arrays that come from the pool: smaller ones cost the allocator no new pages.
const POOLED_BYTES: usize = 64 << 10;

/// Returns the destinations for the columns of `rows` rows: the arrays of `out`, or new ones, as a dict of
/// arrays `[rows, *shape]` and as their bytes. Large new ones are on loan from `pool`.
pub(crate) fn outputs<'py>(
    py: Python<'py>,
    layout: &RowLayout,
    rows: usize,
    out: Option<&Bound<'py, PyAny>>,
    pool: &Arc<BufferPool>,
) -> PyResult<(Bound<'py, PyDict>, Vec<Output<'py>>)> {
    let out = out.map(|out| named(layout, "out", out)).transpose()?;
    let mut loan = match &out {
        None => Loan::lease(py, layout, rows, pool)?,
        Some(_) => None,
    };
    let dict = PyDict::new(py);
    let mut outputs = Vec::with_capacity(layout.columns().len());
    for column in layout.columns() {
        let name = column.name();
        let array = match &out {
            None => match &mut loan {
                Some(loan) => loan.array(column, rows)?,
                None => aligned(py, column, rows)?,
            },
            Some(out) => checked(column, rows, &out.get_item(name)?)?,
        };
        let bytes = flat_bytes(&array)?.try_readwrite().map_err(|_| {
            let message = format!(
                "out[{name:?}] cannot be written to: it is read-only, or shares memory with keys, with another \
                 column, or with a call that is under way; give it an array of its own"
            );
            raise(py, "LayoutError", message)
        })?;
        dict.set_item(name, &array)?;
        outputs.push(Output(bytes));
    }
    Ok((dict, outputs))
}

/// Leased buffer, divided into pieces that start on cache lines.
struct Loan<'py> {
    buffer: Bound<'py, LeasedBuffer>,
    used: usize,
}

impl<'py> Loan<'py> {
    /// Leases room for the columns of `rows` rows; `None` if they are too small to justify it.
    fn lease(
        py: Python<'py>,
        layout: &RowLayout,
        rows: usize,
        pool: &Arc<BufferPool>,
    ) -> PyResult<Option<Self>> {
        let each = |column: &Column| {
            rows.checked_mul(column.bytes())?
                .checked_next_multiple_of(ALIGN)
        };
        let total = layout
            .columns()
            .iter()
            .try_fold(0usize, |sum, column| sum.checked_add(each(column)?));
        let Some(total) = total else {
            let message = format!("{rows} rows of {layout:?} are more than memory can hold");
            return Err(pyo3::exceptions::PyMemoryError::new_err(message));
        };
        if total < POOLED_BYTES {
            return Ok(None);
        }
        let lease = detached(py, || pool.lease(total))?;
        Ok(Some(Self {
            buffer: Bound::new(py, LeasedBuffer::new(lease))?,
            used: 0,
        }))
    }

    /// Returns the next piece as an array `[rows, *shape]`.
    fn array(&mut self, column: &Column, rows: usize) -> PyResult<Bound<'py, PyUntypedArray>> {
        let py = self.buffer.py();
        let shape = PyTuple::new(py, batch_shape(column, rows))?;
        let arguments = (shape, descriptor(py, column)?, &self.buffer, self.used);
        let array = py.import("numpy")?.getattr("ndarray")?.call1(arguments)?;
        self.used += (rows * column.bytes()).next_multiple_of(ALIGN);
        Ok(array.cast_into::<PyUntypedArray>()?)
    }
}

/// Checks that `given` is a mapping with exactly the layout's columns.
fn named<'py>(
    layout: &RowLayout,
    what: &str,
    given: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyMapping>> {
    let py = given.py();
    let expected = || {
        layout
            .columns()
            .iter()
            .map(Column::name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Ok(mapping) = given.cast::<PyMapping>() else {
        let message = format!(
            "{what} must map each of {} to an array; got {}",
            expected(),
            given.get_type().name()?
        );
        return Err(raise(py, "LayoutError", message));
    };
    let mut missing = Vec::new();
    for column in layout.columns() {
        if !mapping.contains(column.name())? {
            missing.push(column.name());
        }
    }
    let known = |name: &str| layout.columns().iter().any(|column| column.name() == name);
    let mut unknown = Vec::new();
    if missing.len() + mapping.len()? != layout.columns().len() {
        for name in mapping.keys()?.iter() {
            let name = name.str()?.to_string();
            if !known(&name) {
                unknown.push(name);
            }
        }
    }
    if missing.is_empty() && unknown.is_empty() {
        return Ok(mapping.clone());
    }
    let message = format!(
        "{what} must have exactly the columns {}; missing: {missing:?}, unknown: {unknown:?}",
        expected()
    );
    Err(raise(py, "LayoutError", message))
}

/// Checks that `given` is a contiguous array `[rows, *shape]` of the column's dtype.
fn checked<'py>(
    column: &Column,
    rows: usize,
    given: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = given.py();
    let refuse = |found: String, fix: &str| {
        let shape = batch_shape(column, rows);
        let message = format!(
            "column {:?} must be a contiguous {} array of shape {shape:?}; got {found}. {fix}",
            column.name(),
            column.dtype().name()
        );
        raise(py, "LayoutError", message)
    };
    let Ok(array) = given.cast::<PyUntypedArray>() else {
        return Err(refuse(
            given.get_type().name()?.to_string(),
            "np.asarray makes one",
        ));
    };
    let dtype = array.dtype();
    // `ml_dtypes` has no type numbers of its own, so its types are recognised by name and size.
    let name = dtype.getattr("name")?.extract::<String>()?;
    let native = dtype.byteorder()
        != if cfg!(target_endian = "little") {
            b'>'
        } else {
            b'<'
        };
    if name != column.dtype().name() || dtype.itemsize() != column.dtype().size() || !native {
        let order = if native { "" } else { " in foreign byte order" };
        return Err(refuse(
            format!("dtype {name}{order}"),
            "array.astype converts it",
        ));
    }
    let shape = array.shape();
    if shape.first() != Some(&rows) || shape[1..] != *column.shape() {
        return Err(refuse(
            format!("shape {shape:?}"),
            "The first axis is the number of keys",
        ));
    }
    if !array.is_c_contiguous() {
        return Err(refuse(
            format!("strides {:?}", array.strides()),
            "np.ascontiguousarray makes it so",
        ));
    }
    Ok(array.clone())
}

/// Returns the bytes of a contiguous array, as a view.
fn flat_bytes<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let bytes = numpy::dtype::<u8>(array.py());
    let view = array
        .call_method1("reshape", (-1,))?
        .call_method1("view", (bytes,))?;
    Ok(view.cast_into::<PyArray1<u8>>()?)
}

/// Makes an array `[rows, *shape]` that starts on a cache line, so that JAX can take it without a copy.
fn aligned<'py>(
    py: Python<'py>,
    column: &Column,
    rows: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let too_large = || {
        let message = format!(
            "{rows} rows of column {:?} are more than memory can hold",
            column.name()
        );
        pyo3::exceptions::PyMemoryError::new_err(message)
    };
    let bytes = rows.checked_mul(column.bytes()).ok_or_else(too_large)?;
    let all = bytes.checked_add(ALIGN).ok_or_else(too_large)?;
    let u8s = numpy::dtype::<u8>(py);
    let whole = py
        .import("numpy")?
        .call_method1("empty", (all, u8s))?
        .cast_into::<PyArray1<u8>>()?;
    let start = whole.data().align_offset(ALIGN) as isize;
    let window = whole.get_item(PySlice::new(py, start, start + bytes as isize, 1))?;
    let shape = PyTuple::new(py, batch_shape(column, rows))?;
    let array = window
        .call_method1("view", (descriptor(py, column)?,))?
        .call_method1("reshape", (shape,))?;
    Ok(array.cast_into::<PyUntypedArray>()?)
}

/// Returns `[rows, *shape]`.
fn batch_shape(column: &Column, rows: usize) -> Vec<usize> {
    std::iter::once(rows)
        .chain(column.shape().iter().copied())
        .collect()
}

/// Returns `NumPy`'s descriptor of the column's dtype.
fn descriptor<'py>(py: Python<'py>, column: &Column) -> PyResult<Bound<'py, PyArrayDescr>> {
    let name = column.dtype().name();
    if name == "bfloat16" {
        let kind = py.import("ml_dtypes")?.getattr(name)?;
        return PyArrayDescr::new(py, kind);
    }
    PyArrayDescr::new(py, name)
}

/// Removes the first axis, of length 1, from every column of `dict`.
pub(crate) fn drop_batch_axis(layout: &RowLayout, dict: &Bound<'_, PyDict>) -> PyResult<()> {
    let py = dict.py();
    for column in layout.columns() {
        let batch = dict
            .get_item(column.name())?
            .expect("the caller filled every column");
        let shape = PyTuple::new(py, column.shape())?;
        dict.set_item(column.name(), batch.call_method1("reshape", (shape,))?)?;
    }
    Ok(())
}

/// Makes the array `[rows, *shape]` with these bytes.
pub(crate) fn from_bytes<'py>(
    py: Python<'py>,
    column: &Column,
    rows: usize,
    bytes: Vec<u8>,
) -> PyResult<Bound<'py, PyAny>> {
    let shape = PyTuple::new(py, batch_shape(column, rows))?;
    PyArray1::from_vec(py, bytes)
        .call_method1("view", (descriptor(py, column)?,))?
        .call_method1("reshape", (shape,))
}
