//! SIEVE: eviction in the order of arrival, sparing what was read since the last round.
//!
//! Zhang et al., *SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web Caches*,
//! NSDI 2024. New keys enter at the head of a list. A hand walks from the tail towards the head; it
//! passes marked rows, taking their marks, and stops at the first unmarked one, which goes. Unlike in
//! CLOCK, rows that stay do not move, so newcomers that are never read again leave quickly while the
//! popular old ones sink behind the hand.

use super::eviction::Eviction;
use crate::error::{Error, Result};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    /// Towards the head: the next newer row.
    newer: u32,
    /// Towards the tail: the next older row.
    older: u32,
}

/// The list, as links indexed by row number: 8 bytes a row.
pub(super) struct Sieve {
    links: Vec<Link>,
    head: u32,
    tail: u32,
    /// Where the next search starts; `NONE` means at the tail.
    hand: u32,
    len: usize,
}

impl Sieve {
    pub(super) fn new() -> Self {
        Self {
            links: Vec::new(),
            head: NONE,
            tail: NONE,
            hand: NONE,
            len: 0,
        }
    }

    fn link(&mut self, row: u32) -> &mut Link {
        &mut self.links[row as usize]
    }

    /// Makes the neighbours of a place in the list point at `newer_side` and `older_side`.
    fn join(&mut self, Link { newer, older }: Link, newer_side: u32, older_side: u32) {
        match newer {
            NONE => self.head = newer_side,
            _ => self.link(newer).older = newer_side,
        }
        match older {
            NONE => self.tail = older_side,
            _ => self.link(older).newer = older_side,
        }
    }
}

impl Eviction for Sieve {
    fn reserve(&mut self, rows: usize) -> Result<()> {
        let more = rows.saturating_sub(self.links.len());
        self.links
            .try_reserve(more)
            .map_err(|_| Error::OutOfMemory {
                what: "the eviction order".into(),
                bytes: more.saturating_mul(size_of::<Link>()),
            })?;
        self.links.resize(
            self.links.len() + more,
            Link {
                newer: NONE,
                older: NONE,
            },
        );
        Ok(())
    }

    fn inserted(&mut self, row: u32) {
        let old_head = self.head;
        *self.link(row) = Link {
            newer: NONE,
            older: old_head,
        };
        match old_head {
            NONE => self.tail = row,
            _ => self.link(old_head).newer = row,
        }
        self.head = row;
        self.len += 1;
    }

    fn replaced(&mut self, old: u32, new: u32) {
        let link = *self.link(old);
        *self.link(new) = link;
        self.join(link, new, new);
        if self.hand == old {
            self.hand = new;
        }
    }

    fn removed(&mut self, row: u32) {
        let link = *self.link(row);
        self.join(link, link.older, link.newer);
        if self.hand == row {
            self.hand = link.newer;
        }
        self.len -= 1;
    }

    fn victim(&mut self, take_mark: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let mut at = if self.hand == NONE {
            self.tail
        } else {
            self.hand
        };
        // One round takes every mark; a second meets only what was marked meanwhile.
        for _ in 0..2 * self.len {
            if !take_mark(at) {
                break;
            }
            let newer = self.link(at).newer;
            at = if newer == NONE { self.tail } else { newer };
        }
        self.hand = at;
        self.removed(at);
        Some(at)
    }

    fn clear(&mut self) {
        (self.head, self.tail, self.hand, self.len) = (NONE, NONE, NONE, 0);
    }

    fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// The order from head to tail, walked both ways.
    fn order(sieve: &Sieve) -> Vec<u32> {
        let (mut rows, mut at) = (Vec::new(), sieve.head);
        while at != NONE {
            rows.push(at);
            at = sieve.links[at as usize].older;
        }
        let (mut back, mut at) = (Vec::new(), sieve.tail);
        while at != NONE {
            back.push(at);
            at = sieve.links[at as usize].newer;
        }
        back.reverse();
        assert_eq!(rows, back);
        assert_eq!(rows.len(), sieve.len);
        rows
    }

    #[test]
    fn the_papers_example_order() {
        // Rows 0..5 arrive in order; 0 and 2 are read. The hand passes 0, evicts 1; passes 2, evicts 3.
        let mut sieve = Sieve::new();
        sieve.reserve(5).unwrap();
        (0..5).for_each(|row| sieve.inserted(row));
        let mut marks = HashSet::from([0, 2]);
        assert_eq!(sieve.victim(&mut |row| marks.remove(&row)), Some(1));
        assert_eq!(sieve.victim(&mut |row| marks.remove(&row)), Some(3));
        assert_eq!(order(&sieve), [4, 2, 0], "rows that stay keep their places");
        assert_eq!(sieve.victim(&mut |_| false), Some(4));
        assert_eq!(
            sieve.victim(&mut |_| false),
            Some(0),
            "from the head the hand returns to the tail"
        );
    }

    #[test]
    fn a_search_ends_although_everything_is_always_marked() {
        let mut sieve = Sieve::new();
        sieve.reserve(3).unwrap();
        (0..3).for_each(|row| sieve.inserted(row));
        assert!(sieve.victim(&mut |_| true).is_some());
        assert_eq!(order(&sieve).len(), 2);
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_the_list_whole(steps in prop::collection::vec((0..4u8, 0..24u32), 1..200)) {
            let mut sieve = Sieve::new();
            sieve.reserve(24).unwrap();
            let mut expected: Vec<u32> = Vec::new(); // head first
            for (step, row) in steps {
                let known = expected.iter().position(|&other| other == row);
                match (step, known) {
                    (0, None) => {
                        sieve.inserted(row);
                        expected.insert(0, row);
                    }
                    (1, Some(at)) => {
                        sieve.removed(row);
                        expected.remove(at);
                    }
                    (2, None) if !expected.is_empty() => {
                        let at = expected.len() / 2;
                        sieve.replaced(expected[at], row);
                        expected[at] = row;
                    }
                    (3, _) => {
                        let victim = sieve.victim(&mut |other| other % 3 == 0);
                        prop_assert_eq!(victim.is_none(), expected.is_empty());
                        if let Some(victim) = victim {
                            prop_assert!(expected.contains(&victim));
                            prop_assert!(victim % 3 != 0 || expected.iter().all(|other| other % 3 == 0));
                            expected.retain(|&other| other != victim);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(order(&sieve), expected.clone());
                prop_assert!(sieve.hand == NONE || expected.contains(&sieve.hand));
            }
        }
    }
}
