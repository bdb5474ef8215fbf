//! Edges of tiers, and the conversion of edge counts into tier counts.

use super::simtier::Sequence;

/// Sorted edges. Some are reached by every possible score, some by none; the others are live.
#[derive(Debug)]
pub(super) struct Edges {
    sorted: Vec<i32>,
    /// Number of edges reached by every score.
    all: usize,
    /// One past the last live edge.
    end: usize,
}

impl Edges {
    /// Sorts the edges of a sequence.
    pub fn new(sequence: &Sequence<'_>) -> Self {
        let (lowest, highest) = sequence.kind.range(sequence.width);
        let mut sorted = sequence.edges.to_vec();
        sorted.sort_unstable();
        let all = sorted.partition_point(|&edge| edge <= lowest);
        let end = sorted.partition_point(|&edge| edge <= highest);
        Self { sorted, all, end }
    }

    /// Returns the number of tiers between them.
    pub fn tiers(&self) -> usize {
        self.sorted.len() + 1
    }

    /// Returns the edges that a score may or may not reach.
    pub fn live(&self) -> &[i32] {
        &self.sorted[self.all..self.end]
    }

    /// Converts the number of `behaviours` that reach each live edge, the first elements of `counts`, into
    /// the number in each tier.
    pub fn to_tier_counts(&self, behaviours: usize, counts: &mut [i32]) {
        let behaviours = behaviours as i32;
        // From the last tier on, so that no number is overwritten before it is read.
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
