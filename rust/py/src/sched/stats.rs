//! Conversion of statistics into dicts.

use aif_core::sched::{CircuitState, LaneStats, NameStats, Times};
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub(super) fn lane_stats<'py>(
    py: Python<'py>,
    stats: &LaneStats,
    names: &[NameStats],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("threads", stats.threads)?;
    dict.set_item("queued", stats.queued)?;
    for (name, value) in stats.counts() {
        dict.set_item(name, value)?;
    }
    for (name, times) in stats.times() {
        let Times {
            count,
            p50_us,
            p99_us,
            max_us,
        } = times;
        let inner = PyDict::new(py);
        inner.set_item("count", count)?;
        inner.set_item("p50_us", p50_us)?;
        inner.set_item("p99_us", p99_us)?;
        inner.set_item("max_us", max_us)?;
        dict.set_item(name, inner)?;
    }
    let by_name = PyDict::new(py);
    for name in names {
        by_name.set_item(&*name.name, name_stats(py, name)?)?;
    }
    dict.set_item("names", by_name)?;
    Ok(dict)
}

fn name_stats<'py>(py: Python<'py>, stats: &NameStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("runs", stats.runs)?;
    dict.set_item("running", stats.running)?;
    dict.set_item("mean_us", stats.mean_us)?;
    dict.set_item("likely_us", stats.likely_us)?;
    dict.set_item("p99_us", stats.p99_us)?;
    dict.set_item("hang_us", stats.hang_us)?;
    dict.set_item("refused_late", stats.refused_late)?;
    dict.set_item("refused_open", stats.refused_open)?;
    let circuit = match stats.circuit {
        CircuitState::Closed => "closed",
        CircuitState::Open => "open",
        CircuitState::HalfOpen => "half-open",
    };
    dict.set_item("circuit", circuit)?;
    Ok(dict)
}
