//! Queued tasks of a lane in order of urgency, with the amount of work ahead of a task.
//!
//! A tree instead of a heap, because cancelling and waiting both remove a task by key.

use super::task::Key;
use std::collections::BTreeMap;

/// Task with a known cost.
pub(super) trait Cost {
    /// Returns the usual run time in nanoseconds, or 0 if unknown.
    fn cost_ns(&self) -> u64;
}

/// Amount of work ahead of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct WorkAhead {
    pub(super) tasks: usize,
    /// Their total cost.
    pub(super) cost_ns: u64,
}

/// Maximum number of tasks scanned from either end to find the work ahead of one.
const MAX_SCANNED: usize = 256;

pub(super) struct TaskOrder<T> {
    tasks: BTreeMap<Key, T>,
    /// Total cost of the tasks.
    cost_ns: u64,
}

impl<T: Cost> TaskOrder<T> {
    pub(super) fn new() -> Self {
        Self {
            tasks: BTreeMap::new(),
            cost_ns: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn first(&self) -> Option<&Key> {
        self.tasks.first_key_value().map(|(key, _)| key)
    }

    pub(super) fn insert(&mut self, key: Key, task: T) {
        // Wrapping, here and below: every cost added is subtracted again, and the sum of the queued ones
        // fits.
        self.cost_ns = self.cost_ns.wrapping_add(task.cost_ns());
        self.tasks.insert(key, task);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<T> {
        let task = self.tasks.remove(key)?;
        self.cost_ns = self.cost_ns.wrapping_sub(task.cost_ns());
        Some(task)
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let (_, task) = self.tasks.pop_first()?;
        self.cost_ns = self.cost_ns.wrapping_sub(task.cost_ns());
        Some(task)
    }

    /// Removes and returns all tasks.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.cost_ns = 0;
        std::mem::take(&mut self.tasks).into_values().collect()
    }

    /// Returns the work ahead of a task with this key, which is not queued.
    ///
    /// Counted from the nearer end. If that is more than `MAX_SCANNED` away, the result is the midpoint of
    /// the bounds: the tasks counted at the front, and all but those counted at the back.
    pub(super) fn work_ahead(&self, key: &Key) -> WorkAhead {
        let mut front = self.tasks.range(..key).map(|(_, task)| task.cost_ns());
        let mut back = self.tasks.range(key..).map(|(_, task)| task.cost_ns());
        let mut least = WorkAhead::default();
        let mut most = WorkAhead {
            tasks: self.tasks.len(),
            cost_ns: self.cost_ns,
        };
        for _ in 0..MAX_SCANNED {
            let Some(cost_ns) = front.next() else {
                return least;
            };
            least.tasks += 1;
            least.cost_ns += cost_ns;
            let Some(cost_ns) = back.next() else {
                return most;
            };
            most.tasks -= 1;
            most.cost_ns -= cost_ns;
        }
        WorkAhead {
            tasks: usize::midpoint(least.tasks, most.tasks),
            cost_ns: u64::midpoint(least.cost_ns, most.cost_ns),
        }
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Cost for u32 {
        fn cost_ns(&self) -> u64 {
            u64::from(*self)
        }
    }

    fn key(place: u64) -> Key {
        Key {
            deadline_ns: place / 2,
            sequence: place % 2,
        }
    }

    proptest! {
        #[test]
        fn what_goes_before_is_what_a_scan_finds(
            steps in prop::collection::vec((0..4_u8, 0..200_u64, 1..1000_u32), 1..300)
        ) {
            let mut order = TaskOrder::new();
            let mut plain: Vec<(u64, u32)> = Vec::new();
            for (step, place, cost) in steps {
                match step {
                    0 => {
                        let want = plain.iter().position(|&(other, _)| other == place);
                        let want = want.map(|at| plain.remove(at).1);
                        prop_assert_eq!(order.remove(&key(place)), want);
                    }
                    1 => {
                        plain.sort_unstable();
                        let want = (!plain.is_empty()).then(|| plain.remove(0).1);
                        prop_assert_eq!(order.pop(), want);
                    }
                    _ if plain.iter().all(|&(other, _)| other != place) => {
                        order.insert(key(place), cost);
                        plain.push((place, cost));
                    }
                    _ => {}
                }
                let ahead = plain.iter().filter(|&&(other, _)| other < place);
                let want = WorkAhead {
                    tasks: ahead.clone().count(),
                    cost_ns: ahead.map(|&(_, cost)| u64::from(cost)).sum(),
                };
                if plain.iter().all(|&(other, _)| other != place) {
                    prop_assert_eq!(order.work_ahead(&key(place)), want);
                }
                prop_assert_eq!(order.len(), plain.len());
            }
            plain.sort_unstable();
            prop_assert_eq!(order.take(), plain.iter().map(|&(_, cost)| cost).collect::<Vec<_>>());
            prop_assert_eq!(order.work_ahead(&key(u64::MAX)), WorkAhead::default());
        }
    }

    #[test]
    fn far_from_both_ends_it_is_within_what_is_possible() {
        let mut order = TaskOrder::new();
        for place in 0..3000 {
            order.insert(key(2 * place), 1_u32);
        }
        for (at, least, most) in [(10, 10, 10), (2950, 2950, 2950), (1000, 256, 2744)] {
            let before = order.work_ahead(&key(2 * at - 1));
            assert!((least..=most).contains(&before.tasks), "{at}: {before:?}");
            assert_eq!(before.cost_ns, before.tasks as u64);
        }
    }
}
