//! Prediction of queueing time from usual run times.
//!
//! A thread is free for a task at the latest when all running tasks have ended and all work ahead has been
//! done by whichever threads are free. That is the level of water-filling: the work ahead fills the
//! threads, each of which becomes free when its current task ends. With exact run times this is an upper
//! bound for any order in which the threads take the tasks. The task's own run time is added to it.
//!
//! Future submissions are not considered: a task submitted later with an earlier deadline still goes first.
//! A name without measurements counts as zero run time.

use crate::sync::plain::{AtomicU64, AtomicUsize, Ordering};

/// Current task of a thread or of its inline worker. One thread writes, others read; a read during a change
/// finds the thread idle, which is acceptable for an estimate.
pub(super) struct WorkerStatus {
    /// Start of the task in nanoseconds since the scheduler's anchor; `u64::MAX` while idle.
    start_ns: AtomicU64,
    /// Usual run time of the task in nanoseconds; 0 if unknown.
    mean_ns: AtomicU64,
    /// Address of the task's profile.
    profile: AtomicUsize,
}

/// Values of a [`WorkerStatus`].
#[derive(Clone, Copy)]
pub(super) struct CurrentTask {
    pub(super) start_ns: u64,
    pub(super) mean_ns: u64,
    pub(super) profile: usize,
}

impl WorkerStatus {
    pub(super) fn new() -> Self {
        Self {
            start_ns: AtomicU64::new(u64::MAX),
            mean_ns: AtomicU64::new(0),
            profile: AtomicUsize::new(0),
        }
    }

    pub(super) fn read(&self) -> CurrentTask {
        // Acquire: a reader that sees a value of the next task sees below that the start has changed.
        let start_ns = self.start_ns.load(Ordering::Acquire);
        let mean_ns = self.mean_ns.load(Ordering::Acquire);
        let profile = self.profile.load(Ordering::Acquire);
        let changed = self.start_ns.load(Ordering::Relaxed) != start_ns;
        CurrentTask {
            start_ns: if changed { u64::MAX } else { start_ns },
            mean_ns,
            profile,
        }
    }

    /// Stores new values and returns the old ones.
    pub(super) fn replace(&self, new: CurrentTask) -> CurrentTask {
        let old = self.read();
        // Idle in between: otherwise a reader could pair the new name with the old start, and take a task
        // that has just begun for one that hangs.
        self.start_ns.store(u64::MAX, Ordering::Relaxed);
        // Release: the change of the start precedes both.
        self.mean_ns.store(new.mean_ns, Ordering::Release);
        self.profile.store(new.profile, Ordering::Release);
        self.start_ns.store(new.start_ns, Ordering::Release);
        old
    }

    /// Returns the nanoseconds until the thread is free. A task that exceeds its usual time is expected to
    /// take as much longer again: it may be about to end, or hang.
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

/// Returns the nanoseconds until a thread is free for a task with `work_ns` ahead of it.
pub(super) fn wait_ns(statuses: &[WorkerStatus], work_ns: u64, now_ns: u64) -> u64 {
    fill(work_ns, || {
        statuses.iter().map(|status| status.remaining_ns(now_ns))
    })
}

/// Returns the water level when `work` is poured into vessels of equal width with bottoms at these heights.
///
/// Starts from the level with all vessels filled and leaves out those above it until none is; each round
/// gives an upper bound, and a few rounds suffice.
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
        let status = WorkerStatus::new();
        let remaining = |now| status.remaining_ns(now);
        assert_eq!(remaining(50), 0, "nothing runs");
        let before = status.replace(CurrentTask {
            start_ns: 100,
            mean_ns: 10,
            profile: 1,
        });
        assert_eq!(before.start_ns, u64::MAX);
        assert_eq!([100, 104, 110, 130].map(remaining), [10, 6, 0, 20]);
        status.replace(CurrentTask {
            start_ns: 100,
            mean_ns: 0,
            profile: 1,
        });
        assert_eq!(remaining(1000), 0, "nothing is known");
    }

    #[test]
    fn a_reader_never_pairs_a_task_with_the_start_of_another() {
        const TASKS: u64 = 200_000;
        let status = WorkerStatus::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for task in 1..=TASKS {
                    status.replace(CurrentTask {
                        start_ns: task,
                        mean_ns: task,
                        profile: task as usize,
                    });
                }
            });
            loop {
                let seen = status.read();
                if seen.start_ns != u64::MAX {
                    assert_eq!(
                        (seen.mean_ns, seen.profile as u64),
                        (seen.start_ns, seen.start_ns)
                    );
                    if seen.start_ns == TASKS {
                        break;
                    }
                }
            }
        });
    }

    proptest! {
        /// Reference: threads take the tasks one after the other as they become free.
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
            let level = fill(ahead.iter().sum(), || running.iter().copied());
            let longest = ahead.iter().copied().max().unwrap_or(0);
            // Rounded down, so less than 1 too low.
            prop_assert!(start <= level + 1, "started at {start}, level {level}");
            prop_assert!(level <= start + longest, "started at {start}, level {level}");
        }
    }
}
