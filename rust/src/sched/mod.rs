//! A thread pool for request graphs: two lanes, earliest deadline first.
//!
//! A [`Job`] is submitted to one of two [`Lane`]s: `blocking` for calls that wait, `compute` for calls that
//! use the cores. Each lane has its own threads and its own bounded queue, so that waiting never starves
//! computing. An expired or cancelled task is dropped before it starts, and its job is called with the
//! reason. A worker that must wait for another task calls [`wait()`], which runs other tasks meanwhile.
//!
//! # Consistency
//!
//! - Writes of a thread before [`Scheduler::submit`] are visible to the job; writes of the job are visible
//!   to every thread that has seen its [`Ticket`] end.
//! - Within a lane, queued tasks *start* in the order of (deadline, submission). The order in which they
//!   end is not specified.
//! - Deadlines act before the start only. A task that ends late is counted as an overrun.
//! - No timer watches the queue: an expired task is reported when a thread reaches it or when a full queue
//!   makes room, which may be later than its deadline.
//!
//! # Trade-offs
//!
//! A lane is a tree under one lock. The lock is negligible for tasks of 100 µs and more, but not for
//! millions of tasks of one microsecond; merge those into one task. Every task costs a boxed job, a record
//! and two histogram entries.
//!
//! # Stopping
//!
//! [`Scheduler::stop`] refuses new tasks and either drops the queued ones or lets them run;
//! [`Scheduler::join`] waits for the threads. Dropping the scheduler does both, except that it does not
//! join on one of its own workers.

mod admit;
mod circuit;
mod config;
mod dropped;
mod inline;
mod order;
mod predict;
mod profile;
mod queue;
mod stats;
mod submit;
mod task;
mod trace;
mod wait_graph;
mod worker;

#[cfg(all(test, aif_loom))]
mod loom;
#[cfg(all(test, not(aif_loom)))]
mod tests;

pub use admit::Prediction;
pub use circuit::CircuitState;
pub use config::{Config, WorkerScope};
pub use dropped::Dropped;
pub use inline::RunInline;
pub use stats::{LaneStats, NameStats, Times};
pub use task::{Deadline, Job, JobCall, JobOutcome, Lane, Signal, Ticket};
pub use trace::{Span, Spans};
pub use worker::{Running, Target, current_lane, wait};

use crate::error::{Error, Result};
use crate::process::Process;
use crate::sync::plain::{Arc, AtomicU64, Mutex as PlainMutex, Ordering};
use crate::sync::{Condvar, Mutex};
use config::STACK_BYTES;
use dropped::Reason;
use predict::WorkerStatus;
use profile::{Profile, Profiles};
use queue::{Queue, lock, sleep};
use stats::LaneCounters;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use task::{Key, Task};
use trace::Trace;
use wait_graph::WaitGraph;

/// State shared by the threads, the tickets and the scheduler.
pub(crate) struct Shared {
    queues: [Arc<Queue<Task>>; 2],
    counters: [LaneCounters; 2],
    profiles: [Profiles; 2],
    statuses: [Box<[WorkerStatus]>; 2],
    /// True if tasks that are predicted to miss their deadline are refused.
    admission: bool,
    /// Hang limit of all names, if one was configured.
    hang: Option<Duration>,
    /// Threads of the blocking lane that hanging tasks of one name may hold before its circuit opens.
    hang_limit: usize,
    process: Process,
    wait_graph: WaitGraph,
    trace: Trace,
    anchor: Instant,
    sequence: AtomicU64,
    /// Threads that have not exited.
    live: Mutex<usize>,
    all_exited: Condvar,
}

impl Shared {
    fn queue(&self, lane: Lane) -> &Arc<Queue<Task>> {
        &self.queues[lane as usize]
    }

    fn counters(&self, lane: Lane) -> &LaneCounters {
        &self.counters[lane as usize]
    }

    fn profiles(&self, lane: Lane) -> &Profiles {
        &self.profiles[lane as usize]
    }

    /// Status of each thread of a lane.
    fn statuses(&self, lane: Lane) -> &[WorkerStatus] {
        &self.statuses[lane as usize]
    }

    /// Returns the index of a worker or inline worker among all.
    fn number(&self, lane: Lane, slot: usize) -> usize {
        match lane {
            Lane::Blocking => slot,
            Lane::Compute => 2 * self.queues[0].threads() + slot,
        }
    }

    /// Returns nanoseconds since the anchor; saturates after about 584 years.
    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.anchor).as_nanos() as u64
    }

    /// Returns the deadline as stored in a key.
    fn deadline_ns(&self, deadline: Deadline) -> u64 {
        deadline.map_or(u64::MAX, |at| self.nanos(at).min(u64::MAX - 1))
    }

    /// Makes the ordering key of a task that is submitted now.
    fn key(&self, deadline: Deadline) -> Key {
        Key {
            deadline_ns: self.deadline_ns(deadline),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn expired(&self, name: &str, lane: Lane, key: Key, queued: Instant, now: Instant) -> Error {
        let late_ns = self.nanos(now).saturating_sub(key.deadline_ns);
        Error::DeadlineExceeded(format!(
            "task {name:?} stood in the {} lane for {:.3} ms and was dropped before it started, {:.3} ms after \
             its deadline; give it more time, or the lane more threads or less work",
            lane.name(),
            (now - queued).as_secs_f64() * 1e3,
            late_ns as f64 / 1e6,
        ))
    }

    /// Returns whether this process is a fork of the one that made the scheduler.
    fn is_forked(&self) -> bool {
        !self.process.is_current()
    }
}

/// Thread pool with two lanes; see the [module](self).
pub struct Scheduler {
    shared: Arc<Shared>,
    handles: PlainMutex<Vec<JoinHandle<()>>>,
}

impl Scheduler {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Config`] for values out of range, [`Error::Scheduler`] when the system refuses a thread.
    pub fn new(config: &Config) -> Result<Self> {
        config.check()?;
        let lane =
            |threads, always_help| Arc::new(Queue::new(threads, config.queue_bound, always_help));
        let shared = Arc::new(Shared {
            queues: [
                lane(config.blocking_threads, false),
                lane(config.compute_threads, true),
            ],
            counters: [LaneCounters::new(), LaneCounters::new()],
            profiles: [Profiles::new(), Profiles::new()],
            statuses: [config.blocking_threads, config.compute_threads]
                .map(|threads| (0..threads).map(|_| WorkerStatus::new()).collect()),
            admission: config.admission,
            hang: config.hang,
            hang_limit: ((config.blocking_threads as f64 * config.hang_share).ceil() as usize)
                .clamp(1, config.blocking_threads),
            process: Process::current(),
            // One for each thread and one for the inline worker that borrows its slot.
            wait_graph: WaitGraph::new(2 * (config.blocking_threads + config.compute_threads)),
            trace: Trace::new(config.trace_capacity.max(1)),
            anchor: Instant::now(),
            sequence: AtomicU64::new(0),
            live: Mutex::new(0),
            all_exited: Condvar::new(),
        });
        // Made before the threads: if one cannot be started, dropping it stops the others.
        let scheduler = Self {
            shared,
            handles: PlainMutex::default(),
        };
        for lane in Lane::ALL {
            for slot in 0..scheduler.shared.queue(lane).threads() {
                scheduler.spawn(lane, slot, config.worker_scope.clone())?;
            }
        }
        Ok(scheduler)
    }

    fn spawn(&self, lane: Lane, slot: usize, worker_scope: WorkerScope) -> Result<()> {
        let shared = self.shared.clone();
        *lock(&shared.live) += 1;
        let spawned = std::thread::Builder::new()
            .name(thread_name(lane, slot))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Dropped after the worker scope has ended, by unwinding or not: when no thread is live, the
                // caller may release what the scope needs.
                let mut thread = LiveThread {
                    shared,
                    lane,
                    finished: false,
                };
                worker_scope(&mut || {
                    worker::work(&thread.shared, lane, slot);
                    thread.finished = true;
                });
            });
        match spawned {
            Ok(handle) => {
                self.handles().push(handle);
                Ok(())
            }
            Err(error) => {
                *lock(&self.shared.live) -= 1;
                Err(Error::Scheduler(format!(
                    "the system refused thread {slot} of the {} lane ({error}); ask for fewer threads",
                    lane.name()
                )))
            }
        }
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses tasks from now on. With `drop_queued` the queued ones are dropped on this thread, otherwise
    /// they still run. Returns at once and may be called again.
    pub fn stop(&self, drop_queued: bool) {
        for queue in &self.shared.queues {
            for task in queue.stop(drop_queued) {
                self.shared.drop_task(task, Reason::Stopped);
            }
        }
    }

    /// Waits until all threads have exited, which they do only after [`stop`](Self::stop). Returns false if
    /// `timeout` passed first.
    ///
    /// # Errors
    /// [`Error::Scheduler`] on a worker of this scheduler, which would wait for itself.
    pub fn join(&self, timeout: Option<Duration>) -> Result<bool> {
        if self.is_own_worker() {
            return Err(Error::Scheduler(
                "a task cannot wait for the threads of the scheduler that runs it; shut it down from \
                 the thread that made it"
                    .into(),
            ));
        }
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut live = lock(&self.shared.live);
        while *live > 0 {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            live = sleep(&self.shared.all_exited, live, left);
        }
        drop(live);
        let handles = std::mem::take(&mut *self.handles());
        for handle in handles {
            // Panics of jobs are caught inside; the panic hook has reported one of the worker scope.
            drop(handle.join());
        }
        Ok(true)
    }

    /// Returns whether the calling thread is one of this scheduler's workers.
    #[must_use]
    pub fn is_own_worker(&self) -> bool {
        worker::current_worker().is_some_and(|me| Arc::ptr_eq(&me.shared, &self.shared))
    }

    /// Returns whether [`stop`](Self::stop) was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        Lane::ALL
            .iter()
            .any(|&lane| self.shared.queue(lane).is_stopped())
    }

    /// Returns the statistics of `lane`.
    #[must_use]
    pub fn stats(&self, lane: Lane) -> LaneStats {
        let queue = self.shared.queue(lane);
        self.shared
            .counters(lane)
            .read(queue.threads(), queue.len())
    }

    /// Returns the statistics of the first 1,024 names of `lane`, sorted by name.
    #[must_use]
    pub fn names(&self, lane: Lane) -> Vec<NameStats> {
        let micros = |nanos: u64| (nanos > 0).then_some(nanos as f64 / 1e3);
        let profiles = self.shared.profiles(lane).sorted();
        let of = |profile: &Profile| NameStats {
            name: profile.name.clone(),
            runs: profile.runs(),
            running: profile.running.load(Ordering::Relaxed),
            mean_us: micros(profile.mean_ns()),
            likely_us: micros(profile.likely_ns()),
            p99_us: micros(profile.p99_ns()),
            hang_us: self.shared.hang_ns(profile) as f64 / 1e3,
            refused_late: profile.refused_late.get(),
            refused_open: profile.refused_open.get(),
            circuit: profile.circuit.state(),
        };
        profiles.iter().map(|profile| of(profile)).collect()
    }

    /// Returns the instant at which the clock of the spans is 0.
    #[must_use]
    pub fn anchor(&self) -> Instant {
        self.shared.anchor
    }

    /// Starts or stops recording a [`Span`] of every task that runs.
    pub fn trace(&self, enabled: bool) {
        self.shared.trace.enable(enabled);
    }

    /// Removes and returns the recorded spans.
    #[must_use]
    pub fn take_trace(&self) -> Spans {
        self.shared.trace.take()
    }
}

/// Worker thread that counts as live until this is dropped.
struct LiveThread {
    shared: Arc<Shared>,
    lane: Lane,
    /// True after its main loop has ended because the scheduler was stopped.
    finished: bool,
}

impl Drop for LiveThread {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.queue(self.lane).lose_worker();
        }
        *lock(&self.shared.live) -= 1;
        self.shared.all_exited.notify_all();
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop(true);
        // On a worker nobody can join it; it exits by itself after this task.
        drop(self.join(None));
    }
}

/// Returns the name of a worker thread; at most the 15 characters that Linux keeps, up to 100 threads a
/// lane.
#[must_use]
pub fn thread_name(lane: Lane, thread: usize) -> String {
    format!("aif-{}-{thread}", lane.name())
}
