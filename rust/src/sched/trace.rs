//! A bounded record of what ran when, kept only while somebody asked for it.

use super::task::Lane;
use crate::sync::plain::Mutex;
use crate::sync::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::sync::PoisonError;

/// One task that ran. Times are nanoseconds since [`Scheduler::anchor`](super::Scheduler::anchor).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The name given at submission.
    pub name: Box<str>,
    /// The lane it ran in.
    pub lane: Lane,
    /// The number of its thread within the lane.
    pub thread: usize,
    /// Whether it ran on its caller's thread, in that thread's seat.
    pub guest: bool,
    /// When it was submitted.
    pub queued_ns: u64,
    /// When it began.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
}

/// What a trace held when it was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// In the order in which the tasks ended.
    pub spans: Vec<Span>,
    /// Older ones that were overwritten.
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
