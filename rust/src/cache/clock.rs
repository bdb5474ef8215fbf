//! The coarse clock by which rows age.

use crate::sync::plain::{Arc, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Ages are counted in ticks of this many milliseconds: a row's time stamp then takes 4 bytes and
/// lasts 795 days, after which all rows look equally old.
pub const TICK_MS: u64 = 16;

/// Where a cache takes the time from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's monotonic clock, from the given moment on.
    System(Instant),
    /// A clock that moves when told to, for tests and replays.
    Manual(ManualClock),
}

impl Default for Clock {
    fn default() -> Self {
        Self::System(Instant::now())
    }
}

impl Clock {
    /// Whole ticks since the clock started.
    #[inline]
    pub(super) fn ticks(&self) -> u32 {
        let millis = match self {
            Self::System(start) => start.elapsed().as_millis() as u64,
            Self::Manual(clock) => clock.0.load(Ordering::Relaxed),
        };
        u32::try_from(millis / TICK_MS).unwrap_or(u32::MAX)
    }
}

/// Time that stands still until [`advance`](Self::advance); clones share it.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

/// The number of ticks in `time`, rounded up so that nothing expires early.
pub(super) fn ticks_of(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(u128::from(TICK_MS) * 1_000_000)).unwrap_or(u32::MAX)
}
