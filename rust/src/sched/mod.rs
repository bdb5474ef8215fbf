//! A thread pool for request graphs: two lanes, earliest deadline first.
//!
//! A [`Job`] goes to the [`Lane`] that fits it: `blocking` if it waits for something else, `compute` if it
//! uses the cores. Each lane has its own threads and its own bounded queue, so that waiting never
//! starves computing. What has expired or was cancelled is dropped before it starts, and its
//! job is told why. A worker that must wait for another task uses [`wait()`] and helps meanwhile.
//!
//! # Consistency
//!
//! - What a thread wrote before [`Scheduler::submit`] is visible to the job; what the job wrote is visible
//!   to whoever has seen its [`Ticket`] ended.
//! - Within a lane tasks *start* in order of (deadline, submission) among those in the queue when a thread
//!   becomes free. Nothing is promised about the order in which they end.
//! - Deadlines act before the start only; a task that ends late is counted as overrun.
//! - A task that expires in the queue is told so when a thread reaches it, or when a full queue makes room:
//!   on time it is not, since nobody watches the clock for it.
//!
//! # Trade-offs
//!
//! A lane is a tree under one lock. Tasks of 100 µs and more do not feel it; millions of tasks of one
//! microsecond would, and should be one task. Every task costs a job box, a record, and two histogram
//! entries.
//!
//! # Stopping
//!
//! [`Scheduler::stop`] refuses new tasks and either empties the queues or lets them run out;
//! [`Scheduler::join`] waits for the threads. Dropping the scheduler does both, and joins unless the
//! drop itself happens on a worker.

mod admit;
mod circuit;
mod config;
mod dropped;
mod guest;
mod order;
mod predict;
mod profile;
mod queue;
mod stats;
mod submit;
mod task;
mod trace;
mod waits;
mod worker;

#[cfg(all(test, aif_loom))]
mod loom;
#[cfg(all(test, not(aif_loom)))]
mod tests;

pub use admit::Outlook;
pub use circuit::CircuitState;
pub use config::{Config, Surround};
pub use dropped::Dropped;
pub use guest::Seated;
pub use stats::{LaneStats, NameStats, Times};
pub use task::{End, Job, Lane, Signal, Ticket, Turn};
pub use trace::{Span, Spans};
pub use worker::{Running, Target, current_lane, wait};

use crate::error::{Error, Result};
use crate::sync::plain::{Arc, AtomicU64, Mutex as PlainMutex, Ordering};
use crate::sync::{Condvar, Mutex};
use config::STACK_BYTES;
use dropped::Reason;
use predict::Clock;
use profile::{Profile, Profiles};
use queue::{Queue, lock, sleep};
use stats::Meter;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use task::{Key, Task};
use trace::Trace;
use waits::Waits;

/// What the threads, the tickets and the scheduler share.
pub(crate) struct Shared {
    queues: [Arc<Queue<Task>>; 2],
    meters: [Meter; 2],
    profiles: [Profiles; 2],
    clocks: [Box<[Clock]>; 2],
    /// Whether tasks that would end too late are refused.
    admission: bool,
    /// A limit for all names, if one was given.
    hang: Option<Duration>,
    /// How many threads of the blocking lane may be held by hanging tasks of one name before its circuit opens.
    hang_limit: usize,
    pid: u32,
    waits: Waits,
    trace: Trace,
    anchor: Instant,
    sequence: AtomicU64,
    /// Threads that have not come to their end.
    live: Mutex<usize>,
    all_gone: Condvar,
}

impl Shared {
    fn queue(&self, lane: Lane) -> &Arc<Queue<Task>> {
        &self.queues[lane as usize]
    }

    fn meter(&self, lane: Lane) -> &Meter {
        &self.meters[lane as usize]
    }

    fn profiles(&self, lane: Lane) -> &Profiles {
        &self.profiles[lane as usize]
    }

    /// What each thread of a lane runs.
    fn clocks(&self, lane: Lane) -> &[Clock] {
        &self.clocks[lane as usize]
    }

    /// The number of a worker or guest among all.
    fn number(&self, lane: Lane, place: usize) -> usize {
        match lane {
            Lane::Blocking => place,
            Lane::Compute => 2 * self.queues[0].threads() + place,
        }
    }

    /// Nanoseconds from the anchor, for about 584 years.
    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.anchor).as_nanos() as u64
    }

    /// The deadline of a key.
    fn deadline_ns(&self, deadline: Option<Instant>) -> u64 {
        deadline.map_or(u64::MAX, |at| self.nanos(at).min(u64::MAX - 1))
    }

    /// The place in the order of a task that comes now.
    fn key(&self, deadline: Option<Instant>) -> Key {
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

    /// Whether this process is a fork of the one that made the scheduler.
    fn is_forked(&self) -> bool {
        std::process::id() != self.pid
    }
}

/// The thread pool. See the module's documentation.
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
            meters: [Meter::new(), Meter::new()],
            profiles: [Profiles::new(), Profiles::new()],
            clocks: [config.blocking_threads, config.compute_threads]
                .map(|threads| (0..threads).map(|_| Clock::new()).collect()),
            admission: config.admission,
            hang: config.hang,
            hang_limit: ((config.blocking_threads as f64 * config.hang_share).ceil() as usize)
                .clamp(1, config.blocking_threads),
            pid: std::process::id(),
            // One for each thread and one for its guest.
            waits: Waits::new(2 * (config.blocking_threads + config.compute_threads)),
            trace: Trace::new(config.trace_capacity.max(1)),
            anchor: Instant::now(),
            sequence: AtomicU64::new(0),
            live: Mutex::new(0),
            all_gone: Condvar::new(),
        });
        // Made before the threads: if one cannot be had, dropping it sends the others home.
        let scheduler = Self {
            shared,
            handles: PlainMutex::default(),
        };
        for lane in Lane::ALL {
            for seat in 0..scheduler.shared.queue(lane).threads() {
                scheduler.spawn(lane, seat, config.surround.clone())?;
            }
        }
        Ok(scheduler)
    }

    fn spawn(&self, lane: Lane, seat: usize, surround: Surround) -> Result<()> {
        let shared = self.shared.clone();
        *lock(&shared.live) += 1;
        let spawned = std::thread::Builder::new()
            .name(thread_name(lane, seat))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                surround(&mut || worker::work(&shared, lane, seat));
                // After the surroundings are gone too: who sees no thread alive may take away what they need.
                *lock(&shared.live) -= 1;
                shared.all_gone.notify_all();
            });
        match spawned {
            Ok(handle) => {
                self.handles().push(handle);
                Ok(())
            }
            Err(error) => {
                *lock(&self.shared.live) -= 1;
                Err(Error::Scheduler(format!(
                    "the system refused thread {seat} of the {} lane ({error}); ask for fewer threads",
                    lane.name()
                )))
            }
        }
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses tasks from now on. With `drop_queued` the queued ones are dropped on this thread, otherwise
    /// they still run. Returns at once; calling it again is allowed.
    pub fn stop(&self, drop_queued: bool) {
        for queue in &self.shared.queues {
            for task in queue.stop(drop_queued) {
                self.shared.drop_task(task, Reason::Stopped);
            }
        }
    }

    /// Waits until all threads have ended, which they do only after [`stop`](Self::stop); false if `timeout`
    /// came first.
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
            live = sleep(&self.shared.all_gone, live, left);
        }
        drop(live);
        let handles = std::mem::take(&mut *self.handles());
        for handle in handles {
            // Jobs' panics are caught inside; one of the surroundings' was reported by the panic hook.
            drop(handle.join());
        }
        Ok(true)
    }

    /// Whether the calling thread is one of this scheduler's.
    #[must_use]
    pub fn is_own_worker(&self) -> bool {
        worker::me().is_some_and(|me| Arc::ptr_eq(&me.shared, &self.shared))
    }

    /// Whether [`stop`](Self::stop) was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        Lane::ALL
            .iter()
            .any(|&lane| self.shared.queue(lane).is_stopped())
    }

    /// What `lane` has done so far.
    #[must_use]
    pub fn stats(&self, lane: Lane) -> LaneStats {
        let queue = self.shared.queue(lane);
        self.shared.meter(lane).read(queue.threads(), queue.len())
    }

    /// What is known of each name that `lane` has seen, by name; of the first 1,024.
    #[must_use]
    pub fn names(&self, lane: Lane) -> Vec<NameStats> {
        let micros = |nanos: u64| (nanos > 0).then_some(nanos as f64 / 1e3);
        let profiles = self.shared.profiles(lane).all();
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

    /// The moment from which spans count their nanoseconds.
    #[must_use]
    pub fn anchor(&self) -> Instant {
        self.shared.anchor
    }

    /// Starts or stops keeping a [`Span`] of every task that runs.
    pub fn trace(&self, enabled: bool) {
        self.shared.trace.enable(enabled);
    }

    /// Whether spans are being kept.
    #[must_use]
    pub fn is_tracing(&self) -> bool {
        self.shared.trace.is_enabled()
    }

    /// Takes the spans kept so far.
    #[must_use]
    pub fn take_trace(&self) -> Spans {
        self.shared.trace.take()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop(true);
        // On a worker nobody can wait for it; it ends by itself after this task.
        drop(self.join(None));
    }
}

/// The name of a worker thread; at most the 15 characters that Linux keeps, up to 100 threads a lane.
#[must_use]
pub fn thread_name(lane: Lane, thread: usize) -> String {
    format!("aif-{}-{thread}", lane.name())
}
