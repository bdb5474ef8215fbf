//! When a task would end, from what usually takes how long.
//!
//! A task's thread is free at the latest when all that runs has ended and all that goes before it has been
//! worked off, by whichever threads are free for it: the level to which the work ahead fills the threads, each
//! of which is free from the end of what it runs. With exact times this is an upper bound, whatever the order
//! in which the threads take the tasks. Then its own run time comes on top.
//!
//! Nothing is known of what is still to come: a task submitted later with an earlier deadline goes first all
//! the same. And what has never been measured counts as nothing.

use crate::sync::plain::{AtomicU64, AtomicUsize, Ordering};

/// What a thread runs, or its guest. It writes, others read; a reader in between sees a task too many or too
/// few, which is a guess that is off by one task.
pub(super) struct Clock {
    /// When its task began, in nanoseconds since the scheduler's start; `u64::MAX` while there is none.
    start_ns: AtomicU64,
    /// What the task usually takes, in nanoseconds; 0 if unknown.
    mean_ns: AtomicU64,
    /// Whose task it is: the address of its profile.
    profile: AtomicUsize,
}

/// What a clock shows.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub(super) start_ns: u64,
    pub(super) mean_ns: u64,
    pub(super) profile: usize,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            start_ns: AtomicU64::new(u64::MAX),
            mean_ns: AtomicU64::new(0),
            profile: AtomicUsize::new(0),
        }
    }

    // Relaxed, here and below: see the type.
    pub(super) fn read(&self) -> Shown {
        Shown {
            start_ns: self.start_ns.load(Ordering::Relaxed),
            mean_ns: self.mean_ns.load(Ordering::Relaxed),
            profile: self.profile.load(Ordering::Relaxed),
        }
    }

    /// Shows this instead; returns what was shown.
    pub(super) fn show(&self, new: Shown) -> Shown {
        let old = self.read();
        self.mean_ns.store(new.mean_ns, Ordering::Relaxed);
        self.profile.store(new.profile, Ordering::Relaxed);
        self.start_ns.store(new.start_ns, Ordering::Relaxed);
        old
    }

    /// In how many nanoseconds the thread is free. What takes longer than usual is expected to take as much
    /// longer again: it may be about to end, or hang.
    fn remaining_ns(&self, now_ns: u64) -> u64 {
        let shown = self.read();
        if shown.start_ns == u64::MAX || shown.mean_ns == 0 {
            return 0;
        }
        now_ns
            .saturating_sub(shown.start_ns)
            .abs_diff(shown.mean_ns)
    }
}

/// In how many nanoseconds a thread is free for a task with `work_ns` in front of it.
pub(super) fn wait_ns(clocks: &[Clock], work_ns: u64, now_ns: u64) -> u64 {
    fill(work_ns, || {
        clocks.iter().map(|clock| clock.remaining_ns(now_ns))
    })
}

/// The level to which `work` fills vessels of the same width whose bottoms are at these heights.
///
/// Begins with the level that would be if all vessels were reached, and leaves out those that are not, until
/// there are none; a few rounds, each of which gives an upper bound.
fn fill<I: Iterator<Item = u64>>(work: u64, bottoms: impl Fn() -> I) -> u64 {
    const ROUNDS: usize = 32;
    let mut level = u64::MAX;
    for _ in 0..ROUNDS {
        let (mut sum, mut reached) = (u128::from(work), 0_u128);
        for bottom in bottoms().filter(|&bottom| bottom <= level) {
            sum += u128::from(bottom);
            reached += 1;
        }
        if reached == 0 {
            break;
        }
        let next = u64::try_from(sum / reached).unwrap_or(u64::MAX);
        if next >= level {
            break;
        }
        level = next;
    }
    level
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    #[test]
    fn an_idle_thread_means_no_wait_and_work_is_shared() {
        let level = |work, bottoms: &[u64]| fill(work, || bottoms.iter().copied());
        assert_eq!(level(0, &[7, 3, 9]), 3);
        assert_eq!(level(0, &[0, 100]), 0);
        assert_eq!(level(4, &[0, 100]), 4);
        assert_eq!(level(10, &[0, 2]), 6);
        assert_eq!(level(12, &[5]), 17);
        assert_eq!(level(u64::MAX, &[u64::MAX, u64::MAX]), u64::MAX);
    }

    #[test]
    fn a_task_that_takes_longer_than_usual_is_expected_to_go_on() {
        let clock = Clock::new();
        let remaining = |now| clock.remaining_ns(now);
        assert_eq!(remaining(50), 0, "nothing runs");
        let before = clock.show(Shown {
            start_ns: 100,
            mean_ns: 10,
            profile: 1,
        });
        assert_eq!(before.start_ns, u64::MAX);
        assert_eq!([100, 104, 110, 130].map(remaining), [10, 6, 0, 20]);
        clock.show(Shown {
            start_ns: 100,
            mean_ns: 0,
            profile: 1,
        });
        assert_eq!(remaining(1000), 0, "nothing is known");
    }

    proptest! {
        /// Against the plain thing: threads that take the tasks one after the other as they become free.
        #[test]
        fn with_exact_times_the_wait_is_a_close_upper_bound(
            running in prop::collection::vec(0..1000_u64, 1..20),
            ahead in prop::collection::vec(1..1000_u64, 0..50),
        ) {
            let mut free: BinaryHeap<_> = running.iter().copied().map(Reverse).collect();
            for task in &ahead {
                let Reverse(at) = free.pop().unwrap();
                free.push(Reverse(at + task));
            }
            let Reverse(start) = free.pop().unwrap();
            let said = fill(ahead.iter().sum(), || running.iter().copied());
            let longest = ahead.iter().copied().max().unwrap_or(0);
            // Rounded down, so short by less than one.
            prop_assert!(start <= said + 1, "started at {start}, said {said}");
            prop_assert!(said <= start + longest, "started at {start}, said {said}");
        }
    }
}
