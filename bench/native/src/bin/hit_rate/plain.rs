//! Eviction policies in their plainest form: what the published ones say, written to be read.
//!
//! They hold keys only. The cache's own policy is held against its plain form; the other forms stand for
//! policies that the cache does not have.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// A cache of at most so many keys, asked for one key after the other.
pub trait Policy {
    /// Asks for `key`, which enters if it is absent; says whether it was there.
    fn request(&mut self, key: u64) -> bool;
}

/// SIEVE: Zhang et al., *SIEVE is Simpler than LRU*, NSDI 2024, algorithm 1.
pub struct Sieve {
    capacity: usize,
    place_of: HashMap<u64, u64>,
    /// By order of arrival: the key, and whether it was asked for since the hand last passed.
    queue: BTreeMap<u64, (u64, bool)>,
    arrivals: u64,
    hand: Option<u64>,
}

impl Sieve {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            place_of: HashMap::new(),
            queue: BTreeMap::new(),
            arrivals: 0,
            hand: None,
        }
    }

    fn evict(&mut self) {
        let mut at = self.hand.unwrap_or(0);
        loop {
            let Some((&place, (key, visited))) = self.queue.range_mut(at..).next() else {
                at = 0;
                continue;
            };
            if std::mem::take(visited) {
                at = place + 1;
                continue;
            }
            self.place_of.remove(key);
            self.queue.remove(&place);
            self.hand = self.queue.range(place..).next().map(|(&place, _)| place);
            return;
        }
    }
}

impl Policy for Sieve {
    fn request(&mut self, key: u64) -> bool {
        if let Some(place) = self.place_of.get(&key) {
            self.queue.get_mut(place).expect("a known key").1 = true;
            return true;
        }
        if self.queue.len() == self.capacity {
            self.evict();
        }
        self.queue.insert(self.arrivals, (key, false));
        self.place_of.insert(key, self.arrivals);
        self.arrivals += 1;
        false
    }
}

/// What is left open by S3-FIFO.
#[derive(Clone, Copy)]
pub struct S3FifoRule {
    /// The small queue has one in so many keys.
    pub small: usize,
    /// Uses with which a key moves from the small queue to the main one.
    pub promote_at: u8,
    /// Uses are counted up to this.
    pub most_uses: u8,
}

impl S3FifoRule {
    pub const PUBLISHED: Self = Self {
        small: 10,
        promote_at: 2,
        most_uses: 3,
    };

    pub const EMBEDDING_CACHE: Self = Self {
        promote_at: 1,
        ..Self::PUBLISHED
    };
}

/// S3-FIFO: Yang et al., *FIFO queues are all you need for cache eviction*, SOSP 2023, algorithm 1.
pub struct S3Fifo {
    capacity: usize,
    /// Keys in the small queue at which it gives up before the main one does.
    small_target: usize,
    rule: S3FifoRule,
    /// The keys with their uses.
    uses: HashMap<u64, u8>,
    /// Newest in front.
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    ghost: Ghost,
}

/// The last keys that the small queue gave up.
struct Ghost {
    capacity: usize,
    entered: HashMap<u64, u64>,
    queue: VecDeque<(u64, u64)>,
    entries: u64,
}

impl Ghost {
    fn enter(&mut self, key: u64) {
        if self.queue.len() == self.capacity
            && let Some((old, entry)) = self.queue.pop_back()
            && self.entered.get(&old) == Some(&entry)
        {
            self.entered.remove(&old);
        }
        self.entered.insert(key, self.entries);
        self.queue.push_front((key, self.entries));
        self.entries += 1;
    }

    fn take(&mut self, key: u64) -> bool {
        self.entered.remove(&key).is_some()
    }
}

impl S3Fifo {
    pub fn new(capacity: usize, rule: S3FifoRule) -> Self {
        let small_target = (capacity / rule.small).max(1);
        Self {
            capacity,
            small_target,
            rule,
            uses: HashMap::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: Ghost {
                capacity: (capacity - small_target).max(1),
                entered: HashMap::new(),
                queue: VecDeque::new(),
                entries: 0,
            },
        }
    }

    fn evict(&mut self) {
        loop {
            if self.small.len() >= self.small_target || self.main.is_empty() {
                let key = self.small.pop_back().expect("a full cache");
                if self.uses[&key] >= self.rule.promote_at {
                    self.uses.insert(key, 0);
                    self.main.push_front(key);
                } else {
                    self.uses.remove(&key);
                    self.ghost.enter(key);
                    return;
                }
            } else {
                let key = self.main.pop_back().expect("not empty");
                let uses = self.uses.get_mut(&key).expect("a known key");
                if *uses == 0 {
                    self.uses.remove(&key);
                    return;
                }
                *uses -= 1;
                self.main.push_front(key);
            }
        }
    }
}

impl Policy for S3Fifo {
    fn request(&mut self, key: u64) -> bool {
        if let Some(uses) = self.uses.get_mut(&key) {
            *uses = (*uses + 1).min(self.rule.most_uses);
            return true;
        }
        if self.uses.len() == self.capacity {
            self.evict();
        }
        self.uses.insert(key, 0);
        if self.ghost.take(key) {
            self.main.push_front(key);
        } else {
            self.small.push_front(key);
        }
        false
    }
}

/// What no policy can beat: gives up the key that is asked for again last (Belády, *A study of replacement
/// algorithms for a virtual-storage computer*, IBM Systems Journal, 1966). Knows the whole trace.
pub struct Optimum {
    capacity: usize,
    /// For each request, when its key is asked for next.
    next: Vec<usize>,
    now: usize,
    next_of: HashMap<u64, usize>,
    by_next: BTreeSet<(usize, u64)>,
}

impl Optimum {
    pub fn new(capacity: usize, trace: &[u64]) -> Self {
        let mut next = vec![0; trace.len()];
        let mut coming = HashMap::new();
        for (i, &key) in trace.iter().enumerate().rev() {
            // Keys that never come again are told apart by their own time.
            next[i] = coming.insert(key, i).unwrap_or(trace.len() + i);
        }
        Self {
            capacity,
            next,
            now: 0,
            next_of: HashMap::new(),
            by_next: BTreeSet::new(),
        }
    }
}

impl Policy for Optimum {
    fn request(&mut self, key: u64) -> bool {
        let next = self.next[self.now];
        self.now += 1;
        let known = self.next_of.insert(key, next);
        if let Some(known) = known {
            self.by_next.remove(&(known, key));
        } else if self.by_next.len() == self.capacity {
            let (_, last) = self.by_next.pop_last().expect("a full cache");
            self.next_of.remove(&last);
        }
        self.by_next.insert((next, key));
        known.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(policy: &mut dyn Policy, trace: &[u64]) -> Vec<bool> {
        trace.iter().map(|&key| policy.request(key)).collect()
    }

    #[test]
    fn sieve_spares_what_was_read_and_moves_nothing() {
        // As in the paper: what stays keeps its place, so 5 goes next although it came last.
        let trace = [0, 1, 2, 0, 2, 3, 4, 0, 2];
        let mut sieve = Sieve::new(3);
        assert_eq!(
            hits(&mut sieve, &trace),
            [false, false, false, true, true, false, false, true, true]
        );
    }

    #[test]
    fn s3_fifo_filters_what_is_asked_once_and_knows_what_comes_back() {
        let mut s3 = S3Fifo::new(10, S3FifoRule::PUBLISHED);
        hits(&mut s3, &(0..10).collect::<Vec<_>>());
        // 10 pushes out 0, which is in the ghost and comes back to the main queue, where a scan leaves it.
        assert_eq!(hits(&mut s3, &[10, 0]), [false, false]);
        hits(&mut s3, &(20..60).collect::<Vec<_>>());
        assert!(s3.request(0));
        assert_eq!(s3.uses.len(), 10);
    }

    #[test]
    fn the_optimum_is_that_of_every_choice() {
        // All ways to evict, for a short trace.
        fn best(trace: &[u64], held: &BTreeSet<u64>, capacity: usize) -> usize {
            let Some((key, rest)) = trace.split_first() else {
                return 0;
            };
            if held.contains(key) {
                return 1 + best(rest, held, capacity);
            }
            let mut with = held.clone();
            with.insert(*key);
            if with.len() <= capacity {
                return best(rest, &with, capacity);
            }
            let without = |gone| with.iter().copied().filter(|key| *key != gone).collect();
            held.iter()
                .map(|&gone| best(rest, &without(gone), capacity))
                .max()
                .expect("a full cache")
        }
        for seed in 1..40u64 {
            let trace: Vec<u64> = (0..11).map(|i| (seed * 7919 + i * i * seed) % 5).collect();
            let mut optimum = Optimum::new(3, &trace);
            let found = hits(&mut optimum, &trace)
                .iter()
                .filter(|&&hit| hit)
                .count();
            assert_eq!(found, best(&trace, &BTreeSet::new(), 3), "{trace:?}");
        }
    }
}
