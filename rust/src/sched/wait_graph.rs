//! Wait-for graph: turns a cycle of waits into an error instead of a deadlock.
//!
//! A waiting worker may have several tasks on its stack: those it started, waited in, and suspended under
//! the tasks it ran meanwhile. None of them continues before the topmost ends. So a cycle can arise without
//! a fault of the caller: `A` waits for `B`, `B` does not depend on `A`, but if `A` is suspended under a
//! task that waits for something above `B`, neither continues. Every worker therefore records its wait
//! before it sleeps, and the wait that would close a cycle is refused.
//!
//! Every worker records first and searches afterwards, under one lock, so the last one sees the others.

use super::task::Record;
use crate::sync::plain::{Arc, Mutex};
use std::sync::PoisonError;

/// For each worker, the task that the topmost task of its stack waits for.
pub(super) struct WaitGraph(Mutex<Vec<Option<Arc<Record>>>>);

impl WaitGraph {
    pub(super) fn new(workers: usize) -> Self {
        Self(Mutex::new(vec![None; workers]))
    }

    /// Records that `worker` waits for `target`. Returns false, without a record, if that would close a
    /// cycle.
    pub(super) fn try_add(&self, worker: usize, target: &Arc<Record>) -> bool {
        let mut tops = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut task = target;
        // Ends at a task that has not started, that has ended, or whose worker does not wait.
        while !task.ended.is_fired()
            && let Some(runner) = task.runner()
        {
            if runner == worker {
                return false;
            }
            match &tops[runner] {
                Some(awaited) => task = awaited,
                None => break,
            }
        }
        tops[worker] = Some(target.clone());
        true
    }

    /// Removes the record of `worker`.
    pub(super) fn remove(&self, worker: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[worker] = None;
    }
}
