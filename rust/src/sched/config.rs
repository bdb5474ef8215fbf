//! Scheduler configuration.

use crate::error::{Error, Result};
use crate::sync::plain::Arc;
use std::time::Duration;

/// Wrapper around the main loop of a worker thread.
pub type WorkerScope = Arc<dyn Fn(&mut (dyn FnMut() + Send)) + Send + Sync>;

/// Scheduler configuration.
#[derive(Clone)]
pub struct Config {
    /// Threads of the blocking lane, at least 1.
    pub blocking_threads: usize,
    /// Threads of the compute lane, at least 1.
    pub compute_threads: usize,
    /// Maximum number of queued tasks in each lane, at least 1.
    pub queue_bound: usize,
    /// True to refuse a task that is predicted to miss its deadline.
    pub admission: bool,
    /// Run time beyond which a blocking task counts as hanging. `None`: ten times the 99th percentile of
    /// its name and at least 1 s, or 10 s for a name with fewer than eight runs.
    pub hang: Option<Duration>,
    /// Share of the blocking lane's threads, above 0 and at most 1, that hanging tasks of one name may hold
    /// before its circuit opens.
    pub hang_share: f64,
    /// Capacity of the trace in spans; the oldest are overwritten.
    pub trace_capacity: usize,
    /// Wraps the main loop of each worker; must call its argument exactly once. If it panics or does not
    /// call it, its lane has a thread less.
    pub worker_scope: WorkerScope,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            blocking_threads: 8,
            compute_threads: 2,
            queue_bound: 1024,
            admission: true,
            hang: None,
            hang_share: 0.75,
            trace_capacity: 65_536,
            worker_scope: Arc::new(|work: &mut (dyn FnMut() + Send)| work()),
        }
    }
}

/// Upper limit of threads in one lane; a larger number is taken for a mistake.
const MAX_THREADS: usize = 1024;

/// Stack size of a worker. Jobs compile and trace whole models, so it exceeds the stack of the main thread.
/// Untouched pages are reserved address space only.
pub(super) const STACK_BYTES: usize = 16 << 20;

impl Config {
    pub(super) fn check(&self) -> Result<()> {
        for (name, threads) in [
            ("blocking_threads", self.blocking_threads),
            ("compute_threads", self.compute_threads),
        ] {
            if !(1..=MAX_THREADS).contains(&threads) {
                return Err(Error::Config(format!(
                    "{name} is {threads}; give each lane between 1 and {MAX_THREADS} threads"
                )));
            }
        }
        if self.queue_bound == 0 {
            return Err(Error::Config(
                "queue_bound is 0, so no task could ever be queued; give at least 1".into(),
            ));
        }
        if !(self.hang_share > 0.0 && self.hang_share <= 1.0) {
            return Err(Error::Config(format!(
                "hang_share is {}; give the share of the blocking threads, above 0 and at most 1, that hanging \
                 calls of one name may hold",
                self.hang_share
            )));
        }
        if self.hang.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::Config(
                "the hang limit is 0, so that every call would count as hanging; give a longer time, or none for a \
                 limit learnt from the calls"
                    .into(),
            ));
        }
        Ok(())
    }
}
