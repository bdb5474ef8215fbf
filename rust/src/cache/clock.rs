//! Coarse clock for the age of rows.

use crate::sync::plain::{Arc, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Resolution of ages in milliseconds: a time stamp takes 4 bytes and lasts 795 days. After that the
/// clock stands still: rows no longer age, and those written from then on never expire.
pub const TICK_MS: u64 = 16;

/// Source of the time for a cache.
#[derive(Clone, Debug)]
pub enum Clock {
    /// Monotonic clock of the system, starting at this instant.
    System(Instant),
    /// Manually advanced clock, for tests and replays.
    Manual(ManualClock),
}

impl Default for Clock {
    fn default() -> Self {
        Self::System(Instant::now())
    }
}

impl Clock {
    /// Returns whole ticks since the clock's start.
    #[inline]
    pub(super) fn ticks(&self) -> u32 {
        let millis = match self {
            Self::System(start) => start.elapsed().as_millis() as u64,
            Self::Manual(clock) => clock.0.load(Ordering::Relaxed),
        };
        u32::try_from(millis / TICK_MS).unwrap_or(u32::MAX)
    }
}

/// Clock that moves only by [`advance`](Self::advance); clones share it.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

/// Converts `time` into ticks, rounded up so that nothing expires early.
pub(super) fn ticks_of(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(u128::from(TICK_MS) * 1_000_000)).unwrap_or(u32::MAX)
}
