//! S3-FIFO eviction: two FIFO queues, of which the small one filters out keys that are not read again.
//!
//! Yang et al., *FIFO queues are all you need for cache eviction*, SOSP 2023. New keys enter a small queue,
//! a tenth of the cache. At its end, a row that was read moves to the main queue; any other is evicted, and
//! the ghost remembers its key until as many others have been evicted as the main queue is long. A key that
//! returns within that time enters the main queue directly. At the end of the main queue, a row is
//! reinserted once for each time it was read, three at most, before it is evicted.
//!
//! In the paper a row must be read twice to move from the small queue to the main one. Once gave more hits
//! on independent requests and on user sessions; `bench/records` has the figures, also for SIEVE.

use crate::error::{Error, Result};

const NONE: u32 = u32::MAX;

/// Maximum use count of a row.
pub(super) const MAX_FREQUENCY: u8 = 3;

/// Access to the rows in the order. Readers never call the eviction policy: a read increments a counter
/// beside the row, and the policy takes it when it looks for a victim.
pub(super) trait Rows {
    /// Returns and resets the number of reads of the row since the last call, up to [`MAX_FREQUENCY`].
    fn take_frequency(&mut self, row: u32) -> u8;

    /// Returns the hash of the row's key, which no other key shares.
    fn hash(&self, row: u32) -> u64;
}

/// Bytes of the order for each row of the cache: links, state, and the row's share of the ghost.
pub(super) const ROW_BYTES: usize =
    size_of::<Link>() + size_of::<State>() + size_of::<Bucket>().div_ceil(BUCKET_LOAD);

#[derive(Clone, Copy)]
struct Link {
    newer: u32,
    older: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small = 0,
    Main = 1,
}

/// Queue of a row, and the uses it has left.
#[derive(Clone, Copy)]
struct State {
    queue: Queue,
    uses: u8,
}

#[derive(Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
    len: usize,
}

const EMPTY: List = List {
    newest: NONE,
    oldest: NONE,
    len: 0,
};

/// Both queues, linked by row number, and the ghost.
pub(super) struct S3Fifo {
    links: Vec<Link>,
    states: Vec<State>,
    queues: [List; 2],
    /// Length from which the small queue evicts before the main one does.
    small_target: usize,
    ghost: Ghost,
}

impl S3Fifo {
    /// Makes the order of a cache of `live_rows` keys.
    pub(super) fn new(live_rows: usize) -> Self {
        let small_target = (live_rows / 10).max(1);
        Self {
            links: Vec::new(),
            states: Vec::new(),
            queues: [EMPTY; 2],
            small_target,
            ghost: Ghost::new((live_rows - small_target).max(1)),
        }
    }

    fn ends(&mut self, queue: Queue) -> &mut List {
        &mut self.queues[queue as usize]
    }

    fn link(&mut self, row: u32) -> &mut Link {
        &mut self.links[row as usize]
    }

    fn push(&mut self, row: u32, queue: Queue, uses: u8) {
        let ends = self.ends(queue);
        let second = std::mem::replace(&mut ends.newest, row);
        ends.len += 1;
        match second {
            NONE => ends.oldest = row,
            _ => self.link(second).newer = row,
        }
        *self.link(row) = Link {
            newer: NONE,
            older: second,
        };
        self.states[row as usize] = State { queue, uses };
    }

    /// Links the neighbours of a row in `queue` to `newer_side` and `older_side`.
    fn join(&mut self, queue: Queue, link: Link, newer_side: u32, older_side: u32) {
        match link.newer {
            NONE => self.ends(queue).newest = older_side,
            newer => self.link(newer).older = older_side,
        }
        match link.older {
            NONE => self.ends(queue).oldest = newer_side,
            older => self.link(older).newer = newer_side,
        }
    }
}

impl S3Fifo {
    /// Allocates for row numbers below `rows`; nothing else allocates, so that nothing else can fail.
    pub(super) fn reserve(&mut self, rows: usize) -> Result<()> {
        let rows = rows.max(self.links.len());
        let more = rows - self.links.len();
        let no_memory = |_| Error::OutOfMemory {
            what: "the eviction order".into(),
            bytes: more.saturating_mul(size_of::<Link>() + size_of::<State>()),
        };
        self.links.try_reserve_exact(more).map_err(no_memory)?;
        self.states.try_reserve_exact(more).map_err(no_memory)?;
        self.ghost.reserve()?;
        self.links.resize(
            rows,
            Link {
                newer: NONE,
                older: NONE,
            },
        );
        self.states.resize(
            rows,
            State {
                queue: Queue::Small,
                uses: 0,
            },
        );
        Ok(())
    }

    /// Adds `row`, whose key is new and has this hash.
    pub(super) fn inserted(&mut self, row: u32, hash: u64) {
        let queue = if self.ghost.take(hash) {
            Queue::Main
        } else {
            Queue::Small
        };
        self.push(row, queue, 0);
    }

    /// Gives the place of row `old` in the order to row `new` of the same key.
    pub(super) fn replaced(&mut self, old: u32, new: u32) {
        let (link, state) = (*self.link(old), self.states[old as usize]);
        *self.link(new) = link;
        self.states[new as usize] = state;
        self.join(state.queue, link, new, new);
    }

    /// Removes `row`, whose key was deleted.
    pub(super) fn removed(&mut self, row: u32) {
        let (link, queue) = (*self.link(row), self.states[row as usize].queue);
        self.join(queue, link, link.newer, link.older);
        self.ends(queue).len -= 1;
    }

    /// Removes and returns the row to evict; `None` only if there is none. The number of steps is
    /// bounded by the number of rows, although readers may touch rows as fast as it takes their
    /// frequencies.
    pub(super) fn victim(&mut self, rows: &mut impl Rows) -> Option<u32> {
        // Without readers a row is visited once in the small queue and four times in the main one;
        // concurrent readers do not extend that.
        let mut steps = 5 * (self.queues[0].len + self.queues[1].len);
        loop {
            let main_is_empty = self.ends(Queue::Main).len == 0;
            let from = if main_is_empty || self.ends(Queue::Small).len >= self.small_target {
                Queue::Small
            } else {
                Queue::Main
            };
            let row = match self.ends(from).oldest {
                NONE => return None,
                row => row,
            };
            let kept = self.states[row as usize].uses;
            let uses = match steps {
                0 => 0,
                _ => (kept + rows.take_frequency(row)).min(MAX_FREQUENCY),
            };
            steps = steps.saturating_sub(1);
            self.removed(row);
            match (from, uses) {
                (Queue::Small, 0) => {
                    self.ghost.insert(rows.hash(row));
                    return Some(row);
                }
                (Queue::Small, _) => self.push(row, Queue::Main, 0),
                (Queue::Main, 0) => return Some(row),
                (Queue::Main, _) => self.push(row, Queue::Main, uses - 1),
            }
        }
    }

    /// Removes all rows.
    pub(super) fn clear(&mut self) {
        self.queues = [EMPTY; 2];
        self.ghost.clear();
    }

    /// Returns the bytes allocated for the order.
    pub(super) fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
            + self.states.capacity() * size_of::<State>()
            + self.ghost.bytes()
    }
}

/// Ghost: the last keys evicted from the small queue, as tags in buckets of one cache line.
///
/// A key is present if its tag is in its bucket and at most `reach` keys were inserted since. A key
/// inserted into a full bucket overwrites the oldest, and one in some 2^29 is mistaken for another: either
/// puts one row into the wrong queue, no more.
#[derive(Clone)]
struct Ghost {
    buckets: Vec<Bucket>,
    /// Number of insertions, modulo 2^32.
    entered: u32,
    reach: u32,
}

type Bucket = [GhostEntry; 8];

/// Average keys per bucket: about one in twenty finds its bucket full too early.
const BUCKET_LOAD: usize = 6;

#[derive(Clone, Copy, Default)]
struct GhostEntry {
    /// Tag of the key's hash; 0 if there is none.
    tag: u32,
    /// `entered` at its insertion.
    at: u32,
}

impl Ghost {
    fn new(reach: usize) -> Self {
        Self {
            buckets: Vec::new(),
            entered: 0,
            reach: reach as u32,
        }
    }

    fn reserve(&mut self) -> Result<()> {
        if self.buckets.is_empty() {
            let buckets = (self.reach as usize).div_ceil(BUCKET_LOAD);
            self.buckets
                .try_reserve_exact(buckets)
                .map_err(|_| Error::OutOfMemory {
                    what: "the keys that were evicted last".into(),
                    bytes: buckets * size_of::<Bucket>(),
                })?;
            self.buckets.resize(buckets, Bucket::default());
        }
        Ok(())
    }

    fn bucket(&mut self, hash: u64) -> (&mut Bucket, u32) {
        let at = ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize;
        (&mut self.buckets[at], (hash as u32).max(1))
    }

    fn insert(&mut self, hash: u64) {
        let now = self.entered;
        self.entered = now.wrapping_add(1);
        let (bucket, tag) = self.bucket(hash);
        let age = |entry: &GhostEntry| match entry.tag {
            0 => u32::MAX,
            _ => now.wrapping_sub(entry.at),
        };
        let place = match bucket.iter().position(|entry| entry.tag == tag) {
            Some(place) => place,
            None => (0..8)
                .max_by_key(|&place| age(&bucket[place]))
                .expect("eight places"),
        };
        bucket[place] = GhostEntry { tag, at: now };
    }

    /// Returns whether the key is present, and removes it.
    fn take(&mut self, hash: u64) -> bool {
        let (now, reach) = (self.entered, self.reach);
        if self.buckets.is_empty() {
            return false;
        }
        let (bucket, tag) = self.bucket(hash);
        let Some(entry) = bucket.iter_mut().find(|entry| entry.tag == tag) else {
            return false;
        };
        let known = now.wrapping_sub(entry.at) <= reach;
        *entry = GhostEntry::default();
        known
    }

    fn clear(&mut self) {
        self.buckets.fill(Bucket::default());
    }

    fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::super::hash::mix64;
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, VecDeque};

    /// Frequencies by row; each row's key is its number.
    #[derive(Default)]
    struct Frequencies(HashMap<u32, u8>);

    impl Frequencies {
        fn read(&mut self, row: u32, times: u8) {
            let frequency = self.0.entry(row).or_default();
            *frequency = (*frequency + times).min(MAX_FREQUENCY);
        }
    }

    impl Rows for Frequencies {
        fn take_frequency(&mut self, row: u32) -> u8 {
            self.0.remove(&row).unwrap_or(0)
        }

        fn hash(&self, row: u32) -> u64 {
            mix64(row.into())
        }
    }

    /// Returns a queue from newest to oldest, walked both ways.
    fn order(s3: &S3Fifo, queue: Queue) -> Vec<u32> {
        let ends = s3.queues[queue as usize];
        let (mut rows, mut at) = (Vec::new(), ends.newest);
        while at != NONE {
            assert!(s3.states[at as usize].queue == queue);
            assert!(rows.len() < ends.len, "the links go in a circle");
            rows.push(at);
            at = s3.links[at as usize].older;
        }
        let (mut back, mut at) = (Vec::new(), ends.oldest);
        while at != NONE {
            back.push(at);
            at = s3.links[at as usize].newer;
        }
        back.reverse();
        assert_eq!(rows, back);
        assert_eq!(rows.len(), ends.len);
        rows
    }

    fn filled(rows: u32) -> S3Fifo {
        let mut s3 = S3Fifo::new(rows as usize);
        s3.reserve(2 * rows as usize).unwrap();
        (0..rows).for_each(|row| s3.inserted(row, mix64(row.into())));
        s3
    }

    #[test]
    fn what_is_read_stays_and_what_comes_back_is_known() {
        let mut s3 = filled(10);
        let mut marks = Frequencies::default();
        marks.read(0, 1);
        assert_eq!(s3.victim(&mut marks), Some(1), "0 was read and moves");
        assert_eq!(order(&s3, Queue::Main), [0]);
        s3.inserted(11, mix64(1));
        assert_eq!(order(&s3, Queue::Main), [11, 0], "1 comes back");
        assert_eq!(s3.victim(&mut marks), Some(2));
        s3.inserted(12, mix64(77));
        assert_eq!(order(&s3, Queue::Main), [11, 0]);
    }

    #[test]
    fn a_search_ends_although_everything_is_always_marked() {
        struct Busy;
        impl Rows for Busy {
            fn take_frequency(&mut self, _: u32) -> u8 {
                MAX_FREQUENCY
            }
            fn hash(&self, row: u32) -> u64 {
                mix64(row.into())
            }
        }
        let mut s3 = filled(10);
        for left in (0..10).rev() {
            assert!(s3.victim(&mut Busy).is_some());
            assert_eq!(
                order(&s3, Queue::Small).len() + order(&s3, Queue::Main).len(),
                left
            );
        }
        assert_eq!(s3.victim(&mut Busy), None);
    }

    #[test]
    fn the_ghost_remembers_as_many_as_it_says() {
        let mut ghost = Ghost::new(1000);
        ghost.reserve().unwrap();
        (0..5000).for_each(|key| ghost.insert(mix64(key)));
        assert_eq!((0..3999).filter(|&key| ghost.take(mix64(key))).count(), 0);
        let known = (4000..5000).filter(|&key| ghost.take(mix64(key))).count();
        assert!(known > 900, "{known}");
        assert!(!ghost.take(mix64(4999)), "taken once");
    }

    /// Reference with plain queues.
    #[derive(Default)]
    struct Expected {
        small: VecDeque<u32>,
        main: VecDeque<(u32, u8)>,
    }

    impl Expected {
        fn rows(&self) -> Vec<u32> {
            self.small
                .iter()
                .copied()
                .chain(self.main.iter().map(|&(row, _)| row))
                .collect()
        }

        fn rename(&mut self, old: u32, new: u32) {
            self.small
                .iter_mut()
                .filter(|row| **row == old)
                .for_each(|row| *row = new);
            self.main
                .iter_mut()
                .filter(|(row, _)| *row == old)
                .for_each(|(row, _)| *row = new);
        }

        fn forget(&mut self, gone: u32) {
            self.small.retain(|&row| row != gone);
            self.main.retain(|&(row, _)| row != gone);
        }

        fn victim(&mut self, small_target: usize, uses_of: impl Fn(u32) -> u8) -> Option<u32> {
            let mut seen = std::collections::HashSet::new();
            let mut uses_of = |row| if seen.insert(row) { uses_of(row) } else { 0 };
            loop {
                if self.small.len() >= small_target || self.main.is_empty() {
                    let row = self.small.pop_back()?;
                    if uses_of(row) == 0 {
                        return Some(row);
                    }
                    self.main.push_front((row, 0));
                } else {
                    let (row, kept) = self.main.pop_back()?;
                    match (kept + uses_of(row)).min(MAX_FREQUENCY) {
                        0 => return Some(row),
                        uses => self.main.push_front((row, uses - 1)),
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_the_queues_whole(steps in prop::collection::vec((0..5u8, 0..40u32), 1..300)) {
            let mut s3 = S3Fifo::new(30);
            s3.reserve(40).unwrap();
            let mut expected = Expected::default();
            for (step, row) in steps {
                let rows = expected.rows();
                match (step, rows.contains(&row)) {
                    // Keys of the same number share a row number, so that some return.
                    (0 | 1, false) => {
                        let known = s3.ghost.clone().take(mix64(row.into()));
                        s3.inserted(row, mix64(row.into()));
                        if known { expected.main.push_front((row, 0)) } else { expected.small.push_front(row) }
                    }
                    (2, true) => {
                        s3.removed(row);
                        expected.forget(row);
                    }
                    (3, false) if !rows.is_empty() => {
                        let old = rows[rows.len() / 2];
                        s3.replaced(old, row);
                        expected.rename(old, row);
                    }
                    (4, _) => {
                        let uses_of = |other: u32| (other % 4) as u8;
                        let mut marks = Frequencies::default();
                        (0..40).for_each(|other| marks.read(other, uses_of(other)));
                        prop_assert_eq!(s3.victim(&mut marks), expected.victim(3, uses_of));
                    }
                    _ => {}
                }
                prop_assert_eq!(order(&s3, Queue::Small), expected.small.iter().copied().collect::<Vec<_>>());
                let main: Vec<u32> = expected.main.iter().map(|&(row, _)| row).collect();
                prop_assert_eq!(order(&s3, Queue::Main), main);
            }
        }
    }
}
