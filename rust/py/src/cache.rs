//! `RowLayout` and `EmbeddingCache` for Python: argument checks and conversion.

mod columns;
mod lease;

use crate::errors::{detached, raise, to_py};
use crate::keys::borrow_keys;
use aif_core::cache::{self, CacheConfig, DType, registry};
use aif_core::error::Error;
use aif_core::pool::BufferPool;
use aif_core::process::Process;
use columns::{Input, Output};
use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Named columns of a row, each with a dtype and a shape, at fixed offsets.
#[pyclass(frozen, eq, hash, module = "aif_jax._native")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct RowLayout(cache::RowLayout);

#[pymethods]
impl RowLayout {
    #[new]
    fn new(py: Python<'_>, columns: Vec<(String, String, Vec<usize>)>) -> PyResult<Self> {
        let columns: Result<Vec<_>, Error> = columns
            .into_iter()
            .map(|(name, dtype, shape)| Ok((name, DType::from_name(&dtype)?, shape)))
            .collect();
        columns
            .and_then(cache::RowLayout::new)
            .map(Self)
            .map_err(|error| to_py(py, &error))
    }

    #[getter]
    fn columns<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Vec<(&str, &'static str, Bound<'py, PyTuple>)>> {
        let column = |column: &'_ cache::Column| PyTuple::new(py, column.shape());
        self.0
            .columns()
            .iter()
            .map(|c| Ok((c.name(), c.dtype().name(), column(c)?)))
            .collect()
    }

    #[getter]
    fn row_bytes(&self) -> usize {
        self.0.row_bytes()
    }

    #[getter]
    fn payload_bytes(&self) -> usize {
        self.0.payload_bytes()
    }

    #[getter]
    fn offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let offsets = PyDict::new(py);
        for column in self.0.columns() {
            offsets.set_item(column.name(), column.offset())?;
        }
        Ok(offsets)
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }

    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let columns = slf.get().columns(slf.py())?;
        Ok((
            slf.get_type().into_any(),
            PyTuple::new(slf.py(), [columns])?,
        ))
    }
}

/// Keys, columns and ages.
type SnapshotArrays<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyDict>,
    Bound<'py, PyArray1<f32>>,
);

/// Concurrent store of fixed-size rows under 64-bit keys.
#[pyclass(frozen, module = "aif_jax._native")]
pub(crate) struct EmbeddingCache {
    /// Invariant: taken by `drop` alone. Use `cache()`, which refuses in the child of a fork.
    inner: ManuallyDrop<Arc<cache::EmbeddingCache>>,
    process: Process,
    handle: u64,
    /// Source of new arrays for gathered rows.
    pool: Arc<BufferPool>,
}

/// Minimum size of caches that are freed by a thread of their own: unmapping takes time, and an object is
/// dropped with the GIL held. The GIL cannot be released there, since the dropping thread may hold a lock
/// that another thread waits for with the GIL.
const LARGE_BYTES: u64 = 16 << 20;

impl Drop for EmbeddingCache {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // The locks may be held by threads of the parent. Its memory is shared until written to.
            return;
        }
        // SAFETY: the only place that takes it, and `self` is not used afterwards.
        let cache = unsafe { ManuallyDrop::take(&mut self.inner) };
        // Here, so that its handle is dead from now on, whenever the memory is freed.
        let Some(cache) = Arc::into_inner(cache) else {
            return;
        };
        if cache.memory_usage().total_bytes >= LARGE_BYTES {
            // If no thread can be started, the closure is dropped here, and the cache with it.
            drop(
                std::thread::Builder::new()
                    .name("aif-cache-drop".into())
                    .spawn(move || drop(cache)),
            );
        }
    }
}

/// Makes an array with one element per key, which `fill` sets with the GIL released.
fn per_key<'py, T: Element + Copy + Send>(
    py: Python<'py>,
    keys: &Bound<'py, PyAny>,
    initial: T,
    fill: impl FnOnce(&[u64], &mut [T]) + Send,
) -> PyResult<Bound<'py, PyArray1<T>>> {
    let keys = borrow_keys(keys)?;
    let keys = keys.as_slice()?;
    let values = detached(py, || {
        let mut values = vec![initial; keys.len()];
        fill(keys, &mut values);
        Ok(values)
    })?;
    Ok(PyArray1::from_vec(py, values))
}

/// Maximum bytes of returned arrays that a cache keeps for the next batches.
const POOL_BYTES: usize = 64 << 20;

impl EmbeddingCache {
    fn wrap(cache: cache::EmbeddingCache) -> Self {
        let cache = Arc::new(cache);
        let handle = registry::register(&cache);
        Self {
            inner: ManuallyDrop::new(cache),
            process: Process::current(),
            handle,
            pool: BufferPool::new(POOL_BYTES),
        }
    }

    /// Returns the core, or an error if this process is a fork of the one that made it: a lock may be held
    /// there by a thread that does not exist here.
    fn cache(&self, py: Python<'_>) -> PyResult<&cache::EmbeddingCache> {
        if self.process.is_current() {
            return Ok(&self.inner);
        }
        let message = format!(
            "EmbeddingCache: was made in process {}, and its locks and readers did not follow when process {} \
             was forked; make a new cache here, or start processes by multiprocessing.get_context('spawn')",
            self.process.id(),
            std::process::id()
        );
        Err(raise(py, "ProcessError", message))
    }
}

#[pymethods]
impl EmbeddingCache {
    #[new]
    #[pyo3(signature = (layout, *, capacity_bytes=None, ttl_s=None, initial_keys=0, huge_pages=true, prefault=false))]
    fn new(
        py: Python<'_>,
        layout: &Bound<'_, RowLayout>,
        capacity_bytes: Option<usize>,
        ttl_s: Option<f64>,
        initial_keys: usize,
        huge_pages: bool,
        prefault: bool,
    ) -> PyResult<Self> {
        let ttl = ttl_s
            .map(|seconds| {
                Duration::try_from_secs_f64(seconds).map_err(|_| {
                    let message =
                        format!("ttl_s is {seconds}; give a positive number of seconds, or None");
                    raise(py, "ConfigError", message)
                })
            })
            .transpose()?;
        let config = CacheConfig {
            capacity_bytes,
            ttl,
            initial_keys,
            huge_pages,
            prefault,
            ..CacheConfig::default()
        };
        let layout = layout.get().0.clone();
        let cache = detached(py, || cache::EmbeddingCache::new(layout, config))?;
        Ok(Self::wrap(cache))
    }

    #[staticmethod]
    #[pyo3(signature = (layout, path, offset, keys, *, prefault=false))]
    fn over_file(
        py: Python<'_>,
        layout: &Bound<'_, RowLayout>,
        path: PathBuf,
        offset: u64,
        keys: &Bound<'_, PyAny>,
        prefault: bool,
    ) -> PyResult<Self> {
        let keys = borrow_keys(keys)?;
        let keys = keys.as_slice()?;
        let layout = layout.get().0.clone();
        let config = CacheConfig {
            prefault,
            ..CacheConfig::default()
        };
        // Without the GIL: a file system that hangs must not stop the interpreter.
        let file = py.detach(|| File::open(path))?;
        let cache = detached(py, || {
            // SAFETY: nobody writes to the file. It is opened for reading only here, and the contract of this
            // method is that it does not change: `aif_jax` writes such a file once, under a temporary name,
            // renames it into place, and replaces it by renaming another over it.
            unsafe { cache::EmbeddingCache::over_file(layout, config, &file, offset, keys) }
        })?;
        Ok(Self::wrap(cache))
    }

    fn upsert(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        columns: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let cache = self.cache(py)?;
        let keys = borrow_keys(keys)?;
        let keys = keys.as_slice()?;
        let inputs = columns::inputs(cache.layout(), keys.len(), columns)?;
        let slices = inputs
            .iter()
            .map(Input::bytes)
            .collect::<PyResult<Vec<&[u8]>>>()?;
        detached(py, || cache.upsert(keys, &slices))
    }

    fn delete(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let cache = self.cache(py)?;
        let keys = borrow_keys(keys)?;
        let keys = keys.as_slice()?;
        detached(py, || cache.delete(keys))
    }

    fn contains<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let cache = self.cache(py)?;
        per_key(py, keys, false, |keys, found| {
            cache.contains(keys, |i, is_there| found[i] = is_there);
        })
    }

    #[pyo3(signature = (keys, out=None))]
    fn gather<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyArray1<bool>>)> {
        let cache = self.cache(py)?;
        let keys = borrow_keys(keys)?;
        let keys = keys.as_slice()?;
        let (dict, mut outputs) =
            columns::outputs(py, cache.layout(), keys.len(), out, &self.pool)?;
        let mut slices = outputs
            .iter_mut()
            .map(Output::bytes)
            .collect::<PyResult<Vec<&mut [u8]>>>()?;
        let found = detached(py, || {
            let mut found = vec![0u8; keys.len()];
            cache.gather_into(keys, &mut slices, &mut found)?;
            Ok(found.into_iter().map(|found| found != 0).collect())
        })?;
        Ok((dict, PyArray1::from_vec(py, found)))
    }

    fn gather_column<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        name: &str,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<bool>>)> {
        let cache = self.cache(py)?;
        let keys = borrow_keys(keys)?;
        let keys = keys.as_slice()?;
        let layout = cache.layout();
        let Some(column) = layout.columns().iter().find(|c| c.name() == name) else {
            let message =
                format!("there is no column {name:?} in {layout:?}; name one of its columns");
            return Err(raise(py, "LayoutError", message));
        };
        let (bytes, found) = detached(py, || {
            let mut bytes = vec![0; keys.len() * column.bytes()];
            let mut found = vec![false; keys.len()];
            let mut places = bytes.chunks_exact_mut(column.bytes());
            cache.read_rows(keys, |i, row| {
                // Rows are visited in the order of the keys, so each takes the next range.
                let place = places.next();
                if let (Some(place), Some(row)) = (place, row) {
                    place.copy_from_slice(&row[column.offset()..][..column.bytes()]);
                    found[i] = true;
                }
            });
            Ok((bytes, found))
        })?;
        let column = columns::from_bytes(py, column, keys.len(), bytes)?;
        Ok((column, PyArray1::from_vec(py, found)))
    }

    fn get<'py>(&self, py: Python<'py>, key: u64) -> PyResult<Option<Bound<'py, PyDict>>> {
        let cache = self.cache(py)?;
        let (dict, mut outputs) = columns::outputs(py, cache.layout(), 1, None, &self.pool)?;
        let mut slices = outputs
            .iter_mut()
            .map(Output::bytes)
            .collect::<PyResult<Vec<&mut [u8]>>>()?;
        let hits = detached(py, || cache.gather_into(&[key], &mut slices, &mut [0]))?;
        drop(outputs);
        if hits == 0 {
            return Ok(None);
        }
        columns::drop_batch_axis(cache.layout(), &dict)?;
        Ok(Some(dict))
    }

    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<SnapshotArrays<'py>> {
        let cache = self.cache(py)?;
        let layout = cache.layout();
        let (keys, columns, ages) = detached(py, || {
            let snapshot = cache.snapshot()?;
            let no_memory = |column: &cache::Column| Error::OutOfMemory {
                what: format!("column {:?} of a snapshot", column.name()),
                bytes: snapshot.len() * column.bytes(),
            };
            let mut columns = Vec::new();
            for column in layout.columns() {
                let mut bytes = Vec::new();
                bytes
                    .try_reserve_exact(snapshot.len() * column.bytes())
                    .map_err(|_| no_memory(column))?;
                columns.push(bytes);
            }
            let (mut keys, mut ages) = (Vec::new(), Vec::new());
            for row in snapshot.rows() {
                keys.push(row.key);
                ages.push(row.age.as_secs_f32());
                for (column, bytes) in layout.columns().iter().zip(&mut columns) {
                    bytes.extend_from_slice(&row.bytes[column.offset()..][..column.bytes()]);
                }
            }
            Ok((keys, columns, ages))
        })?;
        let rows = keys.len();
        let dict = PyDict::new(py);
        for (column, bytes) in layout.columns().iter().zip(columns) {
            dict.set_item(column.name(), columns::from_bytes(py, column, rows, bytes)?)?;
        }
        Ok((
            PyArray1::from_vec(py, keys),
            dict,
            PyArray1::from_vec(py, ages),
        ))
    }

    fn write_rows<'py>(
        &self,
        py: Python<'py>,
        path: PathBuf,
        taken: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let cache = self.cache(py)?;
        let mut file = py.detach(|| File::options().append(true).open(path))?;
        let taken = taken.clone().unbind();
        let written = detached(py, || {
            let mut snapshot = cache.snapshot()?;
            snapshot.sort_by_key();
            let keys = snapshot.rows().map(|row| row.key).collect();
            // An exception of the callee is passed on, and nothing is written.
            if let Err(error) =
                Python::attach(|py| taken.call1(py, (PyArray1::from_vec(py, keys),)).map(drop))
            {
                return Ok(Err(error));
            }
            Ok(snapshot.write(&mut file).map_err(PyErr::from))
        })?;
        Ok(PyArray1::from_vec(py, written?))
    }

    fn ages_s<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let cache = self.cache(py)?;
        per_key(py, keys, f32::NAN, |keys, ages| {
            cache.ages(keys, |i, age| {
                if let Some(age) = age {
                    ages[i] = age.as_secs_f32();
                }
            });
        })
    }

    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let cache = self.cache(py)?;
        Ok(PyArray1::from_vec(py, detached(py, || cache.keys())?))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let cache = self.cache(py)?;
        numbers(py, cache.stats().entries())
    }

    fn memory_usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let cache = self.cache(py)?;
        let dict = numbers(py, cache.memory_usage().entries())?;
        dict.set_item("pooled_bytes", self.pool.free_bytes())?;
        Ok(dict)
    }

    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let cache = self.cache(py)?;
        detached(py, || cache.clear())
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.cache(py)?.len())
    }

    #[getter]
    fn handle(&self, py: Python<'_>) -> PyResult<u64> {
        self.cache(py)?;
        Ok(self.handle)
    }

    #[getter]
    fn layout(&self) -> RowLayout {
        RowLayout(self.inner.layout().clone())
    }

    fn __repr__(&self) -> String {
        if !self.process.is_current() {
            return format!(
                "<EmbeddingCache of process {}, unusable after a fork>",
                self.process.id()
            );
        }
        format!("{:?}", self.inner)
    }
}

/// Return the checksum of each block of bytes.
#[pyfunction]
fn block_checksums<'py>(
    py: Python<'py>,
    bytes: &Bound<'py, PyArray1<u8>>,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let bytes = bytes.try_readonly().map_err(|_| {
        raise(
            py,
            "RequestError",
            "bytes: another call is writing to this array".into(),
        )
    })?;
    let bytes = bytes.as_slice()?;
    let found = detached(py, || Ok(cache::block_checksums(bytes)))?;
    Ok(PyArray1::from_vec(py, found))
}

fn numbers<'py, const N: usize>(
    py: Python<'py>,
    entries: [(&'static str, u64); N],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, number) in entries {
        dict.set_item(name, number)?;
    }
    Ok(dict)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<RowLayout>()?;
    module.add("BLOCK_BYTES", cache::BLOCK_BYTES)?;
    module.add_function(wrap_pyfunction!(block_checksums, module)?)?;
    module.add_class::<EmbeddingCache>()
}
