//! Bounded trace of the tasks that ran, recorded only while enabled.

use super::task::Lane;
use crate::sync::plain::Mutex;
use crate::sync::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::sync::PoisonError;

/// One task that ran. Times are nanoseconds since [`Scheduler::anchor`](super::Scheduler::anchor).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Name given at submission.
    pub name: Box<str>,
    /// Lane in which it ran.
    pub lane: Lane,
    /// Index of its thread within the lane.
    pub thread: usize,
    /// True if it ran on its caller's thread, in the slot of that worker.
    pub inline: bool,
    /// Time of submission.
    pub queued_ns: u64,
    /// Start time.
    pub start_ns: u64,
    /// End time.
    pub end_ns: u64,
}

/// Contents of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Spans in the order in which the tasks ended.
    pub spans: Vec<Span>,
    /// Older spans that were overwritten.
    pub lost: u64,
}

pub(super) struct Trace {
    enabled: AtomicBool,
    ring: Mutex<(VecDeque<Span>, u64)>,
    capacity: usize,
}

impl Trace {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            enabled: AtomicBool::new(false),
            ring: Mutex::default(),
            capacity,
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    pub(super) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    pub(super) fn push(&self, span: Span) {
        let mut guard = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let (spans, lost) = &mut *guard;
        if spans.len() >= self.capacity {
            spans.pop_front();
            *lost += 1;
        }
        spans.push_back(span);
    }

    pub(super) fn take(&self) -> Spans {
        let mut guard = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let (spans, lost) = std::mem::take(&mut *guard);
        Spans {
            spans: spans.into(),
            lost,
        }
    }
}
