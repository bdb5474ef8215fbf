//! Who waits for whom, so that a circle is an error and not a standstill.
//!
//! A worker that waits may have tasks of others on its stack: those it began, waited in, and buried
//! under the tasks it helped with meanwhile. None of them goes on before the top one ends. So a
//! circle needs no fault of the caller: `A` waits for `B`, `B` for nothing of `A`'s, and still, if
//! `A` is buried under a task that waits for what lies above `B`, nobody moves. What a worker waits
//! for is therefore noted here before it sleeps, and the last to close a circle is refused.
//!
//! Every worker notes first and looks afterwards, under one lock, so the last one sees the others.

use super::task::Record;
use crate::sync::plain::{Arc, Mutex};
use std::sync::PoisonError;

/// For each worker, the task that the top of its stack waits for.
pub(super) struct Waits(Mutex<Vec<Option<Arc<Record>>>>);

impl Waits {
    pub(super) fn new(workers: usize) -> Self {
        Self(Mutex::new(vec![None; workers]))
    }

    /// Notes that `worker` waits for `target`; false, and no note, if that would close a circle.
    pub(super) fn enter(&self, worker: usize, target: &Arc<Record>) -> bool {
        let mut tops = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut task = target;
        // Ends at a task that nobody runs, that has ended, or whose runner waits for nothing.
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

    /// Takes the note of `worker` back.
    pub(super) fn leave(&self, worker: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[worker] = None;
    }
}
