//! Sharded counters, which many threads increment without contention.

use crate::sync::plain::{AtomicU64, AtomicUsize, Ordering};

/// Lists fields with their names.
macro_rules! fields {
    ($of:ident; $($field:ident)*) => {
        [$((stringify!($field), $of.$field)),*]
    };
}
pub(crate) use fields;

/// Cache lines of a counter.
const SHARDS: usize = 8;

/// Count on a cache line of its own (two, because processors prefetch lines in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(AtomicU64);

/// Monotonic counter. Threads add to different cache lines; reading adds up the lines.
///
/// Relaxed: a sum read while others add may miss their latest additions.
#[derive(Debug, Default)]
pub struct Counter {
    shards: [Shard; SHARDS],
}

impl Counter {
    /// Adds `count`.
    #[inline]
    pub fn add(&self, count: u64) {
        if count > 0 {
            self.shards[shard_of_thread()]
                .0
                .fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Returns the sum of all additions.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.0.load(Ordering::Relaxed))
            .sum()
    }
}

fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_threads() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for thread in 0..12u64 {
                let counter = &counter;
                scope.spawn(move || (0..1000).for_each(|_| counter.add(thread)));
            }
        });
        assert_eq!(counter.sum(), (0..12u64).sum::<u64>() * 1000);
    }
}
