//! Bit-sliced sign bits: `SimTier` counts over `simhash` signatures.

use super::arch::Kernels;
use super::arch::planes::{Segment, Sliced, VARIANTS, triples};
use super::pack::{LANES, Packed};
use super::simtier::Parts;
use crate::error::Result;

/// Bit-sliced sequence, and the distances to count by.
#[derive(Debug)]
pub(super) struct SlicedBits {
    kernels: Kernels,
    width: usize,
    tables: Packed,
    segments: Vec<Vec<Segment>>,
    /// Lowest distance that does not reach an edge, for each live edge.
    thresholds: Vec<u16>,
    /// Behaviours of each channel.
    behaviours: Vec<i32>,
    tiers: usize,
}

impl SlicedBits {
    /// Packs the behaviours.
    pub fn new(parts: &Parts<'_>) -> Result<Self> {
        let (width, signatures) = (parts.sequence.width, parts.sequence.signatures);
        let (kernels, edges, grouped) = (parts.kernels, parts.edges, parts.grouped);
        let words = kernels.plane_words;
        let block = words * LANES;
        let size = triples(width) * VARIANTS * words;
        let mut tables = Packed::zeroed(grouped.lanes.len().div_ceil(block) * size * 8)?;
        let blocks = tables.words_mut().chunks_exact_mut(size);
        for (rows, table) in grouped.lanes.chunks(block).zip(blocks) {
            // SAFETY: `Kernels::for_level` made sure that the CPU has the level of this kernel.
            unsafe { (kernels.slice)(rows, signatures, width, table) };
        }
        let bits = 8 * width as i32;
        Ok(Self {
            kernels,
            width,
            tables,
            segments: grouped.segments(words, edges.tiers()),
            thresholds: edges
                .live()
                .iter()
                .map(|&edge| (bits - edge + 1) as u16)
                .collect(),
            behaviours: grouped
                .spans
                .iter()
                .map(|span| span.behaviours as i32)
                .collect(),
            tiers: edges.tiers(),
        })
    }

    /// Counts how many behaviours of each channel reach each live edge.
    pub fn count_reached(&self, candidates: &[u8], per_candidate: usize, out: &mut [i32]) {
        let sliced = Sliced {
            width: self.width,
            tables: self.tables.words(),
            segments: &self.segments,
            thresholds: &self.thresholds,
        };
        // SAFETY: `Kernels::for_level` made sure that the CPU has the level of this kernel.
        unsafe { (self.kernels.count_bits)(&sliced, candidates, per_candidate, out) };
        for out in out.chunks_exact_mut(per_candidate) {
            for (&behaviours, out) in self.behaviours.iter().zip(out.chunks_exact_mut(self.tiers)) {
                for count in &mut out[..self.thresholds.len()] {
                    *count = behaviours - *count;
                }
            }
        }
    }
}
