//! Check that the history of one key is that of an atomic register.
//!
//! Gibbons and Korach, *Testing Shared Memories*, SIAM Journal on Computing 26(4), 1997, section 4: if
//! every write writes a distinct value, the intervals of the operations decide it. All operations on one
//! value form a cluster, whose zone lies between the earliest end and the latest start in it. If the
//! earliest end comes first, the register held the value at least for that long (a forward zone); else all
//! operations of the cluster share a moment in the zone, and the value may have been held for that moment
//! only (a backward zone). The history is that of an atomic register exactly if no read ends before its
//! write starts, no two forward zones overlap, and no backward zone lies within a forward one.

use std::collections::HashMap;

/// Read or write of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub value: u64,
    pub writes: bool,
    /// Moments before and after it, all distinct.
    pub start: u64,
    pub end: u64,
}

/// Returns the first violation in a history of one register, if any. Its first write must be included.
pub fn fault(history: &[Event]) -> Option<String> {
    // Of each value: the start of its write, the earliest end and the latest start.
    let mut clusters: HashMap<u64, (Option<u64>, u64, u64)> = HashMap::new();
    for event in history {
        let (write, end, start) = clusters.entry(event.value).or_insert((None, u64::MAX, 0));
        if event.writes {
            assert!(write.is_none(), "value {} is written twice", event.value);
            *write = Some(event.start);
        }
        *end = (*end).min(event.end);
        *start = (*start).max(event.start);
    }
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (&value, &(write, end, start)) in &clusters {
        match write {
            None => return Some(format!("{value} was read and never written")),
            Some(write) if end < write => {
                return Some(format!("{value} was read before it was written"));
            }
            _ if end < start => forward.push((end, start, value)),
            _ => backward.push((start, end, value)),
        }
    }
    forward.sort_unstable();
    for pair in forward.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Some(format!(
                "{} and {} take turns: one was seen again after the other",
                pair[0].2, pair[1].2
            ));
        }
    }
    for (start, end, value) in backward {
        // Forward zones do not overlap, so only the last that starts before can contain this one.
        let before = forward.partition_point(|zone| zone.0 < start);
        if let Some(zone) = before.checked_sub(1).map(|at| forward[at])
            && end < zone.1
        {
            return Some(format!("{value} was there while {} was", zone.2));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns whether any order of the operations that respects time is that of a register, by trying all.
    fn explained(held: Option<u64>, left: &[Event]) -> bool {
        left.is_empty()
            || left.iter().enumerate().any(|(i, event)| {
                let first = left.iter().all(|other| event.start < other.end);
                let shown = event.writes || held == Some(event.value);
                let rest: Vec<Event> = left
                    .iter()
                    .enumerate()
                    .filter(|&(j, _)| j != i)
                    .map(|(_, &e)| e)
                    .collect();
                first && shown && explained(Some(event.value), &rest)
            })
    }

    proptest! {
        #[test]
        fn the_zones_say_what_trying_every_order_says(
            order in Just((0..14u64).collect::<Vec<_>>()).prop_shuffle(),
            reads in prop::collection::vec(0..3u64, 4),
        ) {
            // Three writes and four reads, at random moments.
            let values = (0..3).chain(reads);
            let history: Vec<Event> = values.zip(order.chunks(2)).enumerate().map(|(i, (value, moments))| Event {
                value,
                writes: i < 3,
                start: moments[0].min(moments[1]),
                end: moments[0].max(moments[1]),
            }).collect();
            prop_assert_eq!(fault(&history).is_none(), explained(None, &history), "{:?}", fault(&history));
        }
    }
}
