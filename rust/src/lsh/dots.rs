//! Dot products of bytes: `SimTier` counts over `int8` signatures.
//!
//! Scores are counted in the narrowest integers that preserve every comparison with an edge: they are
//! shifted by `base`, chosen so that all live edges lie inside the range, and saturated. An empty lane
//! holds the lowest value, which is below every edge.

#[cfg(target_arch = "x86_64")]
use super::arch::ByteSequence;
use super::arch::planes::Segment;
use super::arch::{ByteKernels, Count, Kernels, Score};
use super::pack::{LANES, Packed, Span};
use super::simtier::Parts;
use crate::error::Result;

/// Candidates scored against one piece of the sequence.
const TILE: usize = 8;

/// Scores of each candidate that wait to be counted.
const WAITING: usize = 1024;

/// Bytes of the piece of the sequence, which shares the L1 cache with those scores.
const PIECE_BYTES: usize = 16 << 10;

/// Blocks described by one segment list.
const BLOCKS: usize = 8;

/// Sequence packed by blocks, and the thresholds of its scores.
#[derive(Debug)]
pub(super) struct Dots {
    kernels: Kernels,
    width: usize,
    spans: Vec<Span>,
    rows: Packed,
    start: Vec<i32>,
    /// For fused kernels, which not every CPU has.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    segments: Vec<Vec<Segment>>,
    live: Live,
    tiers: usize,
}

/// Live edges, less `base`, in the integers that scores are counted in.
#[derive(Debug)]
enum Live {
    I16(Vec<i16>),
    I32(Vec<i32>),
}

impl Dots {
    /// Packs the behaviours.
    pub fn new(parts: &Parts<'_>) -> Result<Self> {
        let (width, signatures) = (parts.sequence.width, parts.sequence.signatures);
        let (kernels, edges, grouped) = (parts.kernels, parts.edges, parts.grouped);
        let live = edges.live();
        let (low, high) = (
            live.first().copied().unwrap_or(0),
            live.last().copied().unwrap_or(0),
        );
        // With `base` in the middle, edges keep away from the lowest value, that of empty lanes, and a
        // saturated score compares with each edge as the score itself does.
        let (live, base) = if high - low <= 65_534 {
            let base = low + 32_767;
            let live = live.iter().map(|&edge| (edge - base) as i16).collect();
            (Live::I16(live), base)
        } else {
            (Live::I32(live.to_vec()), 0)
        };
        let row_start = |row: usize| {
            let row = &signatures[row * width..][..width];
            let sum: i32 = row.iter().map(|&byte| i32::from(byte as i8)).sum();
            -base - kernels.int8_offset * sum
        };
        Ok(Self {
            kernels,
            width,
            spans: grouped.spans.clone(),
            rows: grouped.transpose(signatures, width, kernels.int8_group)?,
            start: grouped.map(i32::MIN / 2, row_start),
            segments: grouped.segments(BLOCKS, edges.tiers()),
            live,
            tiers: edges.tiers(),
        })
    }

    /// Counts how many behaviours of each channel reach each live edge.
    pub fn count_reached(&self, candidates: &[u8], per_candidate: usize, out: &mut [i32]) {
        match (&self.live, self.kernels.bytes) {
            #[cfg(target_arch = "x86_64")]
            (Live::I16(edges), ByteKernels::Fused(count)) => {
                let bytes = ByteSequence {
                    width: self.width,
                    rows: self.rows.bytes(),
                    start: &self.start,
                    segments: &self.segments,
                    edges,
                };
                // SAFETY: `Kernels::for_level` made sure that the CPU has the level of this kernel.
                unsafe { count(&bytes, candidates, per_candidate, out) };
            }
            (Live::I16(edges), ByteKernels::Scores(score, count)) => {
                self.by_scores(candidates, per_candidate, out, edges, score, count);
            }
            (Live::I32(edges), _) => {
                let (score, count) = (self.kernels.int8_i32, self.kernels.count_i32);
                self.by_scores(candidates, per_candidate, out, edges, score, count);
            }
        }
    }

    fn by_scores<T: Copy + Default>(
        &self,
        candidates: &[u8],
        per_candidate: usize,
        out: &mut [i32],
        edges: &[T],
        score: Score<T>,
        count: Count<T>,
    ) {
        // Tiled, because a long sequence exceeds the L1 cache: a piece of it stays there while all
        // candidates of a tile are scored against it.
        let piece = (PIECE_BYTES / (LANES * self.width)).max(1) * LANES;
        let mut scores = [[T::default(); WAITING]; TILE];
        let outs = out.chunks_mut(TILE * per_candidate);
        for (tile, out) in candidates.chunks(TILE * self.width).zip(outs) {
            out.fill(0);
            for (channel, span) in self.spans.iter().enumerate() {
                let lanes = span.first * LANES..(span.first + span.blocks) * LANES;
                for from in lanes.clone().step_by(WAITING) {
                    let end = (from + WAITING).min(lanes.end);
                    for first in (from..end).step_by(piece) {
                        let last = (first + piece).min(end);
                        let rows = &self.rows.bytes()[first * self.width..last * self.width];
                        let candidates = tile.chunks_exact(self.width);
                        for (candidate, scores) in candidates.zip(&mut scores) {
                            let scores = &mut scores[first - from..last - from];
                            // SAFETY: `Kernels::for_level` made sure that the CPU has the level of this
                            // kernel.
                            unsafe { score(rows, &self.start[first..last], candidate, scores) };
                        }
                    }
                    for (scores, out) in scores.iter().zip(out.chunks_exact_mut(per_candidate)) {
                        let reached = &mut out[channel * self.tiers..][..edges.len()];
                        // SAFETY: as above.
                        unsafe { count(&scores[..end - from], edges, reached) };
                    }
                }
            }
        }
    }
}
