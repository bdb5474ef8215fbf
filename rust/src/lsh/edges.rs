//! The edges of tiers, and how counts of what reaches them become counts of tiers.

use super::simtier::Sequence;

/// Edges, sorted. Some are reached by every score that the kind of signature can have, some by none; the others
/// are live.
#[derive(Debug)]
pub(super) struct Edges {
    sorted: Vec<i32>,
    /// How many are reached by every score.
    all: usize,
    /// The end of the live ones.
    end: usize,
}

impl Edges {
    /// The edges of a sequence.
    pub fn new(sequence: &Sequence<'_>) -> Self {
        let (lowest, highest) = sequence.kind.range(sequence.width);
        let mut sorted = sequence.edges.to_vec();
        sorted.sort_unstable();
        let all = sorted.partition_point(|&edge| edge <= lowest);
        let end = sorted.partition_point(|&edge| edge <= highest);
        Self { sorted, all, end }
    }

    /// Tiers between them.
    pub fn tiers(&self) -> usize {
        self.sorted.len() + 1
    }

    /// The edges that a score may or may not reach.
    pub fn live(&self) -> &[i32] {
        &self.sorted[self.all..self.end]
    }

    /// Turns how many of `behaviours` reach each live edge, the first numbers of `counts`, into how many fall
    /// in each tier.
    pub fn turn_into_tiers(&self, behaviours: usize, counts: &mut [i32]) {
        let behaviours = behaviours as i32;
        // From the last tier on, so that no number is written over before it is read.
        let mut above = 0;
        for tier in (0..counts.len()).rev() {
            let reached = if tier <= self.all {
                behaviours
            } else if tier <= self.end {
                counts[tier - 1 - self.all]
            } else {
                0
            };
            counts[tier] = reached - above;
            above = reached;
        }
    }
}
