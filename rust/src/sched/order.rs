//! The queued tasks of a lane in order of urgency, and how much work goes before one of them.
//!
//! A tree and not a heap, because a cancelled task leaves at once and a waiter takes the very task it waits for:
//! both remove by key.

use super::task::Key;
use std::collections::BTreeMap;

/// What costs a known time to run.
pub(super) trait Cost {
    /// Nanoseconds, or 0 if nobody knows.
    fn cost_ns(&self) -> u64;
}

/// How much goes before a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Before {
    pub(super) tasks: usize,
    /// What they cost together.
    pub(super) cost_ns: u64,
}

/// Most tasks that are looked at from either end to find out how much goes before one.
const LOOK_AT: usize = 256;

pub(super) struct Order<T> {
    tasks: BTreeMap<Key, T>,
    /// What all of them cost together.
    cost_ns: u64,
}

impl<T: Cost> Order<T> {
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
        // Wrapping, here and below: what went in comes out, and the sum of what is inside fits by far.
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

    /// Empties it.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.cost_ns = 0;
        std::mem::take(&mut self.tasks).into_values().collect()
    }

    /// How much goes before a task with this key, which is not inside.
    ///
    /// Counted from the nearer end. If that is more than `LOOK_AT` away, the answer is the middle of what is
    /// possible: what was counted in front, and all that was not counted behind.
    pub(super) fn before(&self, key: &Key) -> Before {
        let mut front = self.tasks.range(..key).map(|(_, task)| task.cost_ns());
        let mut back = self.tasks.range(key..).map(|(_, task)| task.cost_ns());
        let mut least = Before::default();
        let mut most = Before {
            tasks: self.tasks.len(),
            cost_ns: self.cost_ns,
        };
        for _ in 0..LOOK_AT {
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
        Before {
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
            let mut order = Order::new();
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
                let want = Before {
                    tasks: ahead.clone().count(),
                    cost_ns: ahead.map(|&(_, cost)| u64::from(cost)).sum(),
                };
                if plain.iter().all(|&(other, _)| other != place) {
                    prop_assert_eq!(order.before(&key(place)), want);
                }
                prop_assert_eq!(order.len(), plain.len());
            }
            plain.sort_unstable();
            prop_assert_eq!(order.take(), plain.iter().map(|&(_, cost)| cost).collect::<Vec<_>>());
            prop_assert_eq!(order.before(&key(u64::MAX)), Before::default());
        }
    }

    #[test]
    fn far_from_both_ends_it_is_within_what_is_possible() {
        let mut order = Order::new();
        for place in 0..3000 {
            order.insert(key(2 * place), 1_u32);
        }
        for (at, least, most) in [(10, 10, 10), (2950, 2950, 2950), (1000, 256, 2744)] {
            let before = order.before(&key(2 * at - 1));
            assert!((least..=most).contains(&before.tasks), "{at}: {before:?}");
            assert_eq!(before.cost_ns, before.tasks as u64);
        }
    }
}
