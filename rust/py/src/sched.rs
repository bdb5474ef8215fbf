//! `Scheduler` for Python: argument checks, conversion, and futures.
//!
//! `submit`, `stats` and the like hold the GIL, since they hold a lock for no longer than a push; every method
//! that waits releases it. No thread takes the GIL while it holds a lock of the core, so the two cannot
//! deadlock. A worker keeps one thread state for life, so `threading.local` keeps its values from task to task,
//! and attaches only to run a task and to exit.

mod job;
mod request;
mod stats;

use crate::errors::{detached, raise, to_py};
use aif_core::process::Process;
use aif_core::sched::{
    self, Config, Lane, LaneStats, Signal, Target, Ticket, current_lane, thread_name,
};
use pyo3::exceptions::{PyRuntimeWarning, PyTimeoutError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList, PyString, PyTuple};
use request::{TaskRequest, future_class};
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which a thread that waits for the workers checks for Ctrl-C.
const SIGNAL_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Spans converted into dicts before the GIL is offered to other threads.
const SPANS_PER_TURN: usize = 512;

/// Returns `time.perf_counter()` at `anchor` in microseconds, measured since the two clocks may differ.
fn perf_counter_us(py: Python<'_>, anchor: Instant) -> PyResult<f64> {
    let clock = py.import("time")?.getattr("perf_counter")?;
    let mut best = (Duration::MAX, 0.0);
    for _ in 0..5 {
        let before = Instant::now();
        let seconds: f64 = clock.call0()?.extract()?;
        let width = before.elapsed();
        if width < best.0 {
            let middle = before + width / 2;
            best = (width, (seconds - (middle - anchor).as_secs_f64()) * 1e6);
        }
    }
    Ok(best.1)
}

/// Converts milliseconds into a duration; `None` if they are `None` or exceed the range of a clock.
fn duration(py: Python<'_>, name: &str, ms: Option<f64>) -> PyResult<Option<Duration>> {
    match ms {
        Some(ms) if ms.is_nan() => Err(raise(
            py,
            "RequestError",
            format!("{name} is not a number; give milliseconds, or None for no limit"),
        )),
        Some(ms) if ms <= 0.0 => Ok(Some(Duration::ZERO)),
        Some(ms) => Ok(Duration::try_from_secs_f64(ms / 1e3).ok()),
        None => Ok(None),
    }
}

/// Canceller of a future's task, called when the future is cancelled, so that the task leaves the queue at once.
#[pyclass(frozen, module = "aif_jax._native")]
struct Task(Ticket);

#[pymethods]
impl Task {
    fn __call__(&self) {
        self.0.cancel();
    }
}

/// Core scheduler, owned by the Python object and by its exit hook.
struct Pool {
    /// `None` only while it is being dropped.
    core: Option<sched::Scheduler>,
    process: Process,
}

impl Pool {
    fn is_forked(&self) -> bool {
        !self.process.is_current()
    }

    fn core(&self) -> &sched::Scheduler {
        self.core.as_ref().expect("taken by drop alone")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let core = self.core.take();
        if self.is_forked() {
            // The threads belong to the parent, and locks may be held by them.
            std::mem::forget(core);
            return;
        }
        let mut core = Some(core);
        Python::try_attach(|py| {
            let core = core.take();
            py.detach(move || drop(core));
        });
        // Without an interpreter the workers cannot be joined: they would wait for it.
        std::mem::forget(core);
    }
}

/// Exit hook of the interpreter: drops the queued tasks and joins the workers.
#[pyclass(frozen, module = "aif_jax._native")]
struct ExitHook(Arc<Pool>);

#[pymethods]
impl ExitHook {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        if self.0.is_forked() {
            return Ok(());
        }
        self.0.core().stop(true);
        // Not interruptible: a worker left alive would be killed in the middle of finalisation.
        detached(py, || self.0.core().join(None))?;
        Ok(())
    }
}

/// Thread pool for request graphs; the stub documents each method.
#[pyclass(frozen, weakref, module = "aif_jax._native")]
struct Scheduler {
    pool: Arc<Pool>,
    hook: Mutex<Option<Py<ExitHook>>>,
    /// `time.perf_counter()` in microseconds when the spans' clock was at 0.
    clock_us: f64,
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // Queued tasks still run, as with the executors of the standard library; the exit hook joins.
        if !self.pool.is_forked() {
            self.pool.core().stop(false);
        }
    }
}

impl Scheduler {
    /// Returns the core, or an error if this process is a fork.
    fn core(&self, py: Python<'_>) -> PyResult<&sched::Scheduler> {
        if self.pool.is_forked() {
            return Err(raise(
                py,
                "SchedulerError",
                format!(
                    "this scheduler was made in process {}, and its threads did not follow when process {} was \
                     forked; make a new Scheduler here, or start processes with the \"spawn\" method",
                    self.pool.process.id(),
                    std::process::id()
                ),
            ));
        }
        Ok(self.pool.core())
    }

    /// Checks the arguments of `submit` and `run`.
    #[allow(clippy::too_many_arguments)] // those of the Python methods
    fn request<'a, 'py>(
        &'a self,
        py: Python<'py>,
        method: &str,
        lane: &str,
        r#fn: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        deadline_ms: Option<f64>,
        name: &'a str,
        continuation: bool,
    ) -> PyResult<TaskRequest<'a, 'py>> {
        let core = self.core(py)?;
        let lane = Lane::from_name(lane).map_err(|error| to_py(py, &error))?;
        if !r#fn.is_callable() {
            return Err(PyTypeError::new_err(format!(
                "{method}() takes a lane, a callable and its arguments; {} is not callable",
                r#fn.repr()?
            )));
        }
        let deadline = deadline(py, deadline_ms)?;
        Ok(TaskRequest {
            core,
            lane,
            deadline,
            continuation,
            name: if name.is_empty() {
                default_name(r#fn)?.to_str()?.to_owned().into()
            } else {
                name.into()
            },
            bound: bound(r#fn, args)?,
        })
    }

    fn finish(&self, py: Python<'_>, wait: bool, cancel_futures: bool) -> PyResult<()> {
        let core = self.core(py)?;
        if wait && core.is_own_worker() {
            return Err(raise(
                py,
                "SchedulerError",
                "a task cannot wait for the scheduler that runs it; call shutdown(wait=False) here, or \
                 shut down from the thread that made the scheduler"
                    .into(),
            ));
        }
        core.stop(cancel_futures);
        if !wait {
            return Ok(());
        }
        while !detached(py, || core.join(Some(SIGNAL_CHECK_INTERVAL)))? {
            py.check_signals()?;
        }
        let hook = self
            .hook
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(hook) = hook {
            py.import("atexit")?.call_method1("unregister", (hook,))?;
        }
        Ok(())
    }
}

/// Converts the hang limit; one beyond the range of a clock is never reached.
fn hang_limit(py: Python<'_>, hang_ms: Option<f64>) -> PyResult<Option<Duration>> {
    match (hang_ms, duration(py, "hang_ms", hang_ms)?) {
        (Some(ms), Some(Duration::ZERO)) => Err(raise(
            py,
            "ConfigError",
            format!(
                "hang_ms is 0 or less ({ms}), so that every call would count as hanging; give milliseconds above \
                 0, or None for a limit learnt from the calls"
            ),
        )),
        (Some(_), None) => Ok(Some(Duration::MAX)),
        (_, limit) => Ok(limit),
    }
}

/// Returns the instant `deadline_ms` from now.
fn deadline(py: Python<'_>, deadline_ms: Option<f64>) -> PyResult<Option<Instant>> {
    let given = duration(py, "deadline_ms", deadline_ms)?;
    Ok(given.and_then(|given| Instant::now().checked_add(given)))
}

/// Joins the function and its arguments into the arguments of `Context.run`.
fn bound<'py>(
    r#fn: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyTuple>> {
    let mut bound = Vec::with_capacity(1 + args.len());
    bound.push(r#fn.clone());
    bound.extend(args.iter());
    PyTuple::new(r#fn.py(), bound)
}

/// Returns the name of a task that was given none.
fn default_name<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
    match function.getattr_opt(intern!(function.py(), "__qualname__"))? {
        Some(name) if name.is_instance_of::<PyString>() => Ok(name.cast_into()?),
        _ => function.get_type().name(),
    }
}

#[pymethods]
impl Scheduler {
    #[new]
    #[pyo3(signature = (
        *, blocking_threads = 8, compute_threads = 2, queue_bound = 1024, admission = true, hang_ms = None,
        hang_share = 0.75
    ))]
    fn new(
        py: Python<'_>,
        blocking_threads: usize,
        compute_threads: usize,
        queue_bound: usize,
        admission: bool,
        hang_ms: Option<f64>,
        hang_share: f64,
    ) -> PyResult<Self> {
        let config = Config {
            blocking_threads,
            compute_threads,
            queue_bound,
            admission,
            hang: hang_limit(py, hang_ms)?,
            hang_share,
            // One thread state for the life of the worker, detached while it sleeps.
            worker_scope: Arc::new(|work: &mut (dyn FnMut() + Send)| {
                Python::try_attach(|py| py.detach(work));
            }),
            ..Config::default()
        };
        let core = detached(py, || sched::Scheduler::new(&config))?;
        let clock_us = perf_counter_us(py, core.anchor())?;
        let pool = Arc::new(Pool {
            core: Some(core),
            process: Process::current(),
        });
        let hook = Py::new(py, ExitHook(pool.clone()))?;
        py.import("atexit")?
            .call_method1("register", (hook.clone_ref(py),))?;
        Ok(Self {
            pool,
            hook: Mutex::new(Some(hook)),
            clock_us,
        })
    }

    #[pyo3(signature = (lane, r#fn, /, *args, deadline_ms = None, name = "", goes_on = false))]
    #[allow(clippy::too_many_arguments)] // the shape of a Python method
    fn submit<'py>(
        &self,
        py: Python<'py>,
        lane: &str,
        r#fn: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        deadline_ms: Option<f64>,
        name: &str,
        goes_on: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = self.request(py, "submit", lane, r#fn, args, deadline_ms, name, goes_on)?;
        let (future, task) = request.submit(py)?;
        // Before any other thread has the future, which might cancel it.
        future.setattr(intern!(py, "_aif_task"), Bound::new(py, task)?)?;
        Ok(future)
    }

    #[pyo3(signature = (lane, r#fn, /, *args, deadline_ms = None, name = "", goes_on = false))]
    #[allow(clippy::too_many_arguments)] // the shape of a Python method
    fn run<'py>(
        &self,
        py: Python<'py>,
        lane: &str,
        r#fn: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        deadline_ms: Option<f64>,
        name: &str,
        goes_on: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.request(py, "run", lane, r#fn, args, deadline_ms, name, goes_on)?
            .run(py, || self.pool.is_forked())
    }

    #[pyo3(signature = (lane, name, deadline_ms = None))]
    fn predict_ms(
        &self,
        py: Python<'_>,
        lane: &str,
        name: &str,
        deadline_ms: Option<f64>,
    ) -> PyResult<f64> {
        let core = self.core(py)?;
        let lane = Lane::from_name(lane).map_err(|error| to_py(py, &error))?;
        let deadline = deadline(py, deadline_ms)?;
        let prediction = core.predict(lane, name, deadline);
        Ok((prediction.queue + prediction.run.unwrap_or_default()).as_secs_f64() * 1e3)
    }

    fn idle_threads(&self, py: Python<'_>, lane: &str) -> PyResult<usize> {
        let lane = Lane::from_name(lane).map_err(|error| to_py(py, &error))?;
        Ok(self.core(py)?.idle_threads(lane))
    }

    #[pyo3(signature = (future, timeout_ms = None))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        future: &Bound<'py, PyAny>,
        timeout_ms: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.core(py)?;
        if !future.is_instance(future_class(py)?)? {
            return Err(PyTypeError::new_err(format!(
                "wait() takes a concurrent.futures.Future, got {}; await an asyncio future instead",
                future.get_type().name()?
            )));
        }
        let timeout = duration(py, "timeout_ms", timeout_ms)?;
        let done = || -> PyResult<bool> { future.call_method0(intern!(py, "done"))?.extract() };
        let result = intern!(py, "result");
        if current_lane().is_none() {
            let seconds = timeout.map(|timeout| timeout.as_secs_f64());
            return match future.call_method1(result, (seconds,)) {
                // The timeout of this wait, unless the task itself raised one.
                Err(error) if error.is_instance_of::<PyTimeoutError>(py) && !done()? => Err(raise(
                    py,
                    "DeadlineExceededError",
                    format!(
                        "the wait of {} ms was over before the task ended; the task continues: cancel it if \
                         nobody needs it, or wait longer",
                        timeout_ms.unwrap_or_default()
                    ),
                )),
                other => other,
            };
        }
        if !done()? {
            let task = future.getattr_opt(intern!(py, "_aif_task"))?;
            if let Some(task) = task.as_ref().and_then(|task| task.cast::<Task>().ok()) {
                let ticket = &task.get().0;
                detached(py, || sched::wait(Target::Task(ticket), timeout))?;
            } else {
                let signal = Arc::new(Signal::new());
                let firing = signal.clone();
                let fire = PyCFunction::new_closure(py, None, None, move |_, _| firing.fire())?;
                future.call_method1(intern!(py, "add_done_callback"), (fire,))?;
                detached(py, || sched::wait(Target::Signal(&signal), timeout))?;
            }
        }
        future.call_method1(result, (0,))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let core = self.core(py)?;
        let lanes = PyDict::new(py);
        for lane in Lane::ALL {
            // Quantiles scan histograms of some thousand entries.
            let (stats, names) = detached(py, || Ok((core.stats(lane), core.names(lane))))?;
            let dict = stats::lane_stats(py, &stats, &names)?;
            lanes.set_item(lane.name(), dict)?;
        }
        Ok(lanes)
    }

    fn trace(&self, py: Python<'_>, enabled: bool) -> PyResult<()> {
        self.core(py)?.trace(enabled);
        Ok(())
    }

    fn take_trace<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let trace = self.core(py)?.take_trace();
        if trace.lost > 0 {
            let text = format!(
                "{} older spans were overwritten before the trace was taken; take it more often",
                trace.lost
            );
            PyErr::warn(
                py,
                &py.get_type::<PyRuntimeWarning>(),
                &CString::new(text)?,
                1,
            )?;
        }
        let list = PyList::empty(py);
        let at = |nanos: u64| self.clock_us + nanos as f64 / 1e3;
        for (n, span) in trace.spans.into_iter().enumerate() {
            if n > 0 && n % SPANS_PER_TURN == 0 {
                py.detach(std::thread::yield_now);
            }
            let dict = PyDict::new(py);
            dict.set_item("name", &*span.name)?;
            dict.set_item("lane", span.lane.name())?;
            let mut thread = thread_name(span.lane, span.thread);
            if span.inline {
                thread.push_str("-guest");
            }
            dict.set_item("thread", thread)?;
            dict.set_item("queued_us", at(span.queued_ns))?;
            dict.set_item("start_us", at(span.start_ns))?;
            dict.set_item("end_us", at(span.end_ns))?;
            list.append(dict)?;
        }
        Ok(list)
    }

    #[pyo3(signature = (wait = true, *, cancel_futures = false))]
    fn shutdown(&self, py: Python<'_>, wait: bool, cancel_futures: bool) -> PyResult<()> {
        self.finish(py, wait, cancel_futures)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.finish(py, true, false)
    }

    fn __repr__(&self) -> String {
        if self.pool.is_forked() {
            return format!(
                "<Scheduler of process {}, unusable after a fork>",
                self.pool.process.id()
            );
        }
        let core = self.pool.core();
        let lanes = Lane::ALL.map(|lane| {
            let LaneStats {
                threads,
                queued,
                running,
                ..
            } = core.stats(lane);
            format!(
                "{threads} {} threads ({queued} queued, {running} running)",
                lane.name()
            )
        });
        let state = if core.is_stopped() { ", shut down" } else { "" };
        format!("<Scheduler: {}{state}>", lanes.join(", "))
    }
}

/// Adds the class to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Scheduler>()
}
