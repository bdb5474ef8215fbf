//! How a scheduler is built.

use crate::error::{Error, Result};
use crate::sync::plain::Arc;
use std::time::Duration;

/// Runs the life of a worker thread inside something that must surround it.
pub type Surround = Arc<dyn Fn(&mut (dyn FnMut() + Send)) + Send + Sync>;

/// How a scheduler is built.
#[derive(Clone)]
pub struct Config {
    /// Threads of the blocking lane, at least 1.
    pub blocking_threads: usize,
    /// Threads of the compute lane, at least 1.
    pub compute_threads: usize,
    /// Tasks that may stand in the queue of each lane, at least 1.
    pub queue_bound: usize,
    /// Whether a task with a deadline is refused when it would probably end after it.
    pub admission: bool,
    /// Run time beyond which a blocking task counts as hanging; without it, ten times the 99th percentile of
    /// its name and at least 1 s, or 10 s for a name of which fewer than eight have run.
    pub hang: Option<Duration>,
    /// Share of the blocking lane's threads, above 0 and at most 1, that may be held by hanging tasks of one
    /// name before its circuit opens.
    pub hang_share: f64,
    /// Spans that a trace holds before it overwrites the oldest.
    pub trace_capacity: usize,
    /// What surrounds the life of each worker; it must call its argument once.
    pub surround: Surround,
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
            surround: Arc::new(|work: &mut (dyn FnMut() + Send)| work()),
        }
    }
}

/// More threads than this in one lane is a mistake and not a plan.
const MAX_THREADS: usize = 1024;

/// Jobs compile and trace whole models, so a worker gets more stack than the system's main thread.
/// It is reserved and not used: pages that nobody touches cost nothing.
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
                "hang_ms is 0, so that every call would count as hanging; give milliseconds above 0, or none \
                 for a limit learnt from the calls"
                    .into(),
            ));
        }
        Ok(())
    }
}
