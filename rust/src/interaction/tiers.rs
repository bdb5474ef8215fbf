//! `SimTier` counts as inputs of the first layer.

use super::model::{TierScale, Tiers};
use super::reader::Blocks;
use crate::error::Result;
use crate::lsh::{Level, SimTier};

/// Packed sequence, and the scaling of its counts into features.
#[derive(Debug)]
pub(super) struct TierFeatures {
    simtier: SimTier,
    tiers: usize,
    /// Factor of the counts of each channel.
    scales: Vec<f32>,
    /// `log(1 + count)` for every possible count, if features are logarithms.
    logarithms: Vec<f32>,
}

impl TierFeatures {
    /// Packs a sequence.
    pub fn new(level: Level, tiers: &Tiers<'_>) -> Result<Self> {
        let sequence = &tiers.sequence;
        let scale = |&length: &f32| {
            let length = match tiers.scale {
                TierScale::Share => length,
                TierScale::Log1p => length.ln_1p(),
            };
            if length > 0.0 {
                1.0 / length.max(0.5)
            } else {
                0.0
            }
        };
        let counts = match tiers.scale {
            TierScale::Share => 0,
            TierScale::Log1p => sequence.channel.len() + 1,
        };
        Ok(Self {
            simtier: SimTier::new(level, sequence)?,
            tiers: sequence.edges.len() + 1,
            scales: tiers.lengths.iter().map(scale).collect(),
            logarithms: (0..counts).map(|count| (count as f32).ln_1p()).collect(),
        })
    }

    /// Writes the features of the first `n` candidates of a block to offset `place` in their rows of
    /// inputs, which are `depth` long: zeros for a candidate without content.
    pub fn write(
        &self,
        rows: &Blocks,
        n: usize,
        counts: &mut Vec<i32>,
        inputs: &mut [f32],
        depth: usize,
        place: usize,
    ) {
        let features = self.simtier.counts_per_candidate();
        counts.resize(n * features, 0);
        self.simtier.count(rows.signatures(n).1, counts);
        let inputs = inputs.chunks_exact_mut(depth);
        for ((counts, &has_content), inputs) in counts
            .chunks_exact(features)
            .zip(rows.has_content(n))
            .zip(inputs)
        {
            let channels = counts.chunks_exact(self.tiers).zip(&self.scales);
            let inputs = inputs[place..][..features].chunks_exact_mut(self.tiers);
            for ((counts, &scale), inputs) in channels.zip(inputs) {
                for (input, &count) in inputs.iter_mut().zip(counts) {
                    let known = if self.logarithms.is_empty() {
                        count as f32
                    } else {
                        self.logarithms[count as usize]
                    };
                    *input = known * scale * has_content;
                }
            }
        }
    }
}
