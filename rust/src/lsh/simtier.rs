//! `SimTier`: for each candidate and channel, how many behaviours fall in each tier of similarity.

use super::Level;
use super::arch::{Count, Kernels, Score};
use super::pack::{Grouped, LANES, Packed, Span};
use crate::error::{Error, Result};

/// The most edges a call may have: 32 tiers.
pub const MAX_EDGES: usize = 31;

/// Scores are counted in steps of this many lanes, whatever their width.
const COUNTED: usize = 64;

/// Candidates that are scored against one piece of the sequence.
const TILE: usize = 8;

/// Bytes of that piece, which has to share the first-level cache with the tile's scores.
const PIECE_BYTES: usize = 16 << 10;

/// What a signature is, and so what the score of a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Packed sign bits, 8, 16, 32 or 64 bytes; the score is the number of equal bits.
    SimHash,
    /// Bytes that are int8, a multiple of 4 up to 1,024; the score is their dot product.
    Int8,
}

impl Kind {
    /// The kind of this name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "simhash" => Ok(Self::SimHash),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::Request(format!(
                "simtier: kind is {name:?}, expected \"simhash\" or \"int8\""
            ))),
        }
    }

    /// The lowest and the highest score that signatures of this width can have.
    fn range(self, width: usize) -> (i32, i32) {
        match self {
            Self::SimHash => (0, 8 * width as i32),
            Self::Int8 => (-128 * 127 * width as i32, 128 * 128 * width as i32),
        }
    }
}

/// One user's sequence, and what to count over it.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// What the signatures are.
    pub kind: Kind,
    /// Bytes of one signature.
    pub width: usize,
    /// Signatures, `[L, width]`.
    pub signatures: &'a [u8],
    /// Channel of each behaviour, `[L]`; outside `0..channels` it is not counted.
    pub channel: &'a [i32],
    /// Number of channels.
    pub channels: usize,
    /// Score thresholds, at most [`MAX_EDGES`], in any order.
    pub edges: &'a [i32],
}

/// A sequence made ready for counting against any number of candidates, by any number of threads.
///
/// Scores are counted in the narrowest integers in which every comparison with an edge comes out the
/// same: they are shifted by `base`, which is chosen so that all edges that any score could miss lie
/// inside the range, and saturated. An empty lane holds the lowest value, which is below every edge.
#[derive(Debug)]
pub struct SimTier {
    kernels: Kernels,
    width: usize,
    spans: Vec<Span>,
    packed: Packed,
    start: Start,
    edges: Edges,
}

/// What a lane's sum starts from.
#[derive(Debug)]
enum Start {
    SimHash(Vec<i16>),
    Int8(Vec<i32>),
}

/// Edges, sorted; the first `all` are reached by every score, the last ones by none.
#[derive(Debug)]
struct Edges {
    count: usize,
    all: usize,
    live: Lanes,
}

/// The edges that scores may or may not reach, less `base`, in the integers that scores are counted in.
#[derive(Debug)]
enum Lanes {
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
}

impl SimTier {
    /// Prepares a sequence for kernels of `level`.
    ///
    /// # Errors
    /// [`Error::Request`] if a size is not as [`Sequence`] says; [`Error::Config`] if the CPU lacks
    /// `level`.
    pub fn new(level: Level, sequence: &Sequence<'_>) -> Result<Self> {
        check(sequence)?;
        let &Sequence {
            kind,
            width,
            signatures,
            ..
        } = sequence;
        let kernels = Kernels::of(level)?;
        let (edges, base) = Edges::new(sequence);
        let grouped = Grouped::new(sequence.channel, sequence.channels);
        let (group, start) = match kind {
            // All bits equal, until differing ones are taken off. An empty lane starts so low that it
            // stays below every edge whatever is taken off, and is far from wrapping.
            Kind::SimHash => {
                let equal = (8 * width as i32 - base) as i16;
                (
                    kernels.simhash_group,
                    Start::SimHash(grouped.map(i16::MIN / 2, |_| equal)),
                )
            }
            Kind::Int8 => {
                let row_start = |row: usize| {
                    let row = &signatures[row * width..][..width];
                    let sum: i32 = row.iter().map(|&byte| i32::from(byte as i8)).sum();
                    -base - kernels.int8_offset * sum
                };
                (
                    kernels.int8_group,
                    Start::Int8(grouped.map(i32::MIN / 2, row_start)),
                )
            }
        };
        let packed = grouped.transpose(signatures, width, group)?;
        Ok(Self {
            kernels,
            width,
            spans: grouped.spans,
            packed,
            start,
            edges,
        })
    }

    /// Integers in the result of one candidate: channels times tiers.
    #[must_use]
    pub fn counts_per_candidate(&self) -> usize {
        self.spans.len() * (self.edges.count + 1)
    }

    /// Counts for candidates `[n, width]` into `out`, `[n, channels, tiers]`.
    ///
    /// # Panics
    /// If the lengths of `candidates` and `out` do not belong together.
    pub fn count(&self, candidates: &[u8], out: &mut [i32]) {
        assert_eq!(
            (
                candidates.len() % self.width,
                candidates.len() / self.width * self.counts_per_candidate()
            ),
            (0, out.len()),
            "candidates and counts do not belong together"
        );
        let k = &self.kernels;
        match (&self.start, &self.edges.live) {
            (Start::SimHash(start), Lanes::I8(edges)) => {
                self.run(
                    candidates,
                    out,
                    start,
                    edges,
                    k.simhash_i8,
                    k.count_i8,
                    i8::MIN,
                );
            }
            (Start::SimHash(start), Lanes::I16(edges)) => {
                self.run(
                    candidates,
                    out,
                    start,
                    edges,
                    k.simhash_i16,
                    k.count_i16,
                    i16::MIN,
                );
            }
            (Start::Int8(start), Lanes::I16(edges)) => {
                self.run(
                    candidates,
                    out,
                    start,
                    edges,
                    k.int8_i16,
                    k.count_i16,
                    i16::MIN,
                );
            }
            (Start::Int8(start), Lanes::I32(edges)) => {
                self.run(
                    candidates,
                    out,
                    start,
                    edges,
                    k.int8_i32,
                    k.count_i32,
                    i32::MIN,
                );
            }
            (Start::SimHash(_), Lanes::I32(_)) | (Start::Int8(_), Lanes::I8(_)) => {
                unreachable!("Edges::new gives no such edges")
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // the two types of integers are what it is generic over
    fn run<S, T: Copy>(
        &self,
        candidates: &[u8],
        out: &mut [i32],
        start: &[S],
        edges: &[T],
        score: Score<S, T>,
        count: Count<T>,
        lowest: T,
    ) {
        if self.counts_per_candidate() == 0 {
            return;
        }
        // Tiled, because a long sequence is larger than the first-level cache: a piece of it stays there
        // while all candidates of a tile are scored against it.
        let piece = (PIECE_BYTES / (LANES * self.width)).max(1) * LANES;
        let longest = self
            .spans
            .iter()
            .map(|span| span.blocks * LANES)
            .max()
            .unwrap_or(0);
        let mut scores = vec![lowest; TILE * longest.next_multiple_of(COUNTED)];
        let mut reached = [0u32; MAX_EDGES];
        let reached = &mut reached[..edges.len()];
        let tiers = self.edges.count + 1;
        let per_candidate = self.counts_per_candidate();
        let outs = out.chunks_mut(TILE * per_candidate);
        for (tile, out) in candidates.chunks(TILE * self.width).zip(outs) {
            for (channel, span) in self.spans.iter().enumerate() {
                let filled = span.blocks * LANES;
                let counted = filled.next_multiple_of(COUNTED);
                for from in (0..filled).step_by(piece) {
                    let to = (from + piece).min(filled);
                    let (first, last) = (span.first * LANES + from, span.first * LANES + to);
                    let packed = &self.packed.bytes()[first * self.width..last * self.width];
                    for (n, candidate) in tile.chunks_exact(self.width).enumerate() {
                        let scores = &mut scores[n * counted + from..n * counted + to];
                        // SAFETY: `Kernels::of` made sure that the CPU has the level of this kernel.
                        unsafe { score(packed, &start[first..last], candidate, scores) };
                    }
                }
                for (n, out) in out.chunks_exact_mut(per_candidate).enumerate() {
                    let scores = &mut scores[n * counted..(n + 1) * counted];
                    scores[filled..].fill(lowest);
                    // SAFETY: as above.
                    unsafe { count(scores, edges, reached) };
                    self.edges.tiers(
                        span.behaviours,
                        reached,
                        &mut out[channel * tiers..][..tiers],
                    );
                }
            }
        }
    }
}

impl Edges {
    /// The edges of a sequence, and the `base` to take off the scores.
    fn new(sequence: &Sequence<'_>) -> (Self, i32) {
        let (lowest, highest) = sequence.kind.range(sequence.width);
        let mut sorted = sequence.edges.to_vec();
        sorted.sort_unstable();
        let all = sorted.partition_point(|&edge| edge <= lowest);
        let end = sorted.partition_point(|&edge| edge <= highest);
        let live = &sorted[all..end];
        let (low, high) = (
            live.first().copied().unwrap_or(0),
            live.last().copied().unwrap_or(0),
        );
        let span = high - low;
        // With `base` in the middle, edges keep away from the lowest value, that of empty lanes, and
        // a saturated score compares with each edge as the score itself does.
        let (live, base) = match sequence.kind {
            Kind::SimHash if span <= 254 => {
                let base = low + 127;
                (
                    Lanes::I8(live.iter().map(|&edge| (edge - base) as i8).collect()),
                    base,
                )
            }
            Kind::SimHash => (
                Lanes::I16(live.iter().map(|&edge| edge as i16).collect()),
                0,
            ),
            Kind::Int8 if span <= 65_534 => {
                let base = low + 32_767;
                (
                    Lanes::I16(live.iter().map(|&edge| (edge - base) as i16).collect()),
                    base,
                )
            }
            Kind::Int8 => (Lanes::I32(live.to_vec()), 0),
        };
        (
            Self {
                count: sorted.len(),
                all,
                live,
            },
            base,
        )
    }

    /// Turns how many of `behaviours` reached each live edge into how many fall in each tier.
    fn tiers(&self, behaviours: usize, reached: &[u32], out: &mut [i32]) {
        let at_least = |edge: usize| {
            if edge < self.all {
                behaviours as i32
            } else {
                reached
                    .get(edge - self.all)
                    .map_or(0, |&count| count as i32)
            }
        };
        let mut above = behaviours as i32;
        for (tier, out) in out.iter_mut().enumerate() {
            let next = if tier < self.count { at_least(tier) } else { 0 };
            *out = above - next;
            above = next;
        }
    }
}

fn check(sequence: &Sequence<'_>) -> Result<()> {
    let &Sequence {
        kind,
        width,
        signatures,
        channel,
        channels,
        edges,
    } = sequence;
    let width_fits = match kind {
        Kind::SimHash => matches!(width, 8 | 16 | 32 | 64),
        Kind::Int8 => width.is_multiple_of(4) && (4..=1024).contains(&width),
    };
    if !width_fits {
        return Err(Error::Request(format!(
            "simtier: {kind:?} signatures of {width} bytes; expected 8, 16, 32 or 64 for SimHash, a multiple \
             of 4 from 4 to 1024 for Int8"
        )));
    }
    if Some(signatures.len()) != channel.len().checked_mul(width) {
        return Err(Error::Request(format!(
            "simtier: {} bytes of signatures and {} channels; expected {width} bytes for each behaviour",
            signatures.len(),
            channel.len()
        )));
    }
    if u32::try_from(channel.len()).is_err() || i32::try_from(channel.len()).is_err() {
        return Err(Error::Request(format!(
            "simtier: a sequence of {} behaviours; counts are int32",
            channel.len()
        )));
    }
    if edges.len() > MAX_EDGES {
        return Err(Error::Request(format!(
            "simtier: {} edges, expected at most {MAX_EDGES}",
            edges.len()
        )));
    }
    if channels == 0 {
        return Err(Error::Request(
            "simtier: no channels; expected at least 1".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// The definition, pair by pair.
    fn naive(sequence: &Sequence<'_>, candidates: &[u8]) -> Vec<i32> {
        let tiers = sequence.edges.len() + 1;
        let mut counts = Vec::new();
        for candidate in candidates.chunks_exact(sequence.width) {
            let mut one = vec![0; sequence.channels * tiers];
            for (row, &channel) in sequence
                .signatures
                .chunks_exact(sequence.width)
                .zip(sequence.channel)
            {
                let pairs = candidate.iter().zip(row);
                let score: i32 = match sequence.kind {
                    Kind::SimHash => pairs.map(|(a, b)| (a ^ b).count_zeros() as i32).sum(),
                    Kind::Int8 => pairs
                        .map(|(&a, &b)| i32::from(a as i8) * i32::from(b as i8))
                        .sum(),
                };
                let tier = sequence.edges.iter().filter(|&&edge| score >= edge).count();
                if (0..sequence.channels as i32).contains(&channel) {
                    one[channel as usize * tiers + tier] += 1;
                }
            }
            counts.extend(one);
        }
        counts
    }

    fn byte() -> impl Strategy<Value = u8> {
        prop_oneof![any::<u8>(), prop::sample::select(vec![0, 127, 128, 255])]
    }

    fn check_all(
        kind: Kind,
        width: usize,
        rows: &[u8],
        candidates: &[u8],
        channel: &[i32],
        edges: &[i32],
    ) {
        let length = rows.len() / width;
        let sequence = Sequence {
            kind,
            width,
            signatures: &rows[..length * width],
            channel: &channel[..length],
            channels: 3,
            edges,
        };
        let candidates = &candidates[..candidates.len() / width * width];
        let expected = naive(&sequence, candidates);
        for level in Level::ALL.into_iter().filter(|level| level.runs_here()) {
            let mut counts = vec![-1; expected.len()];
            SimTier::new(level, &sequence)
                .unwrap()
                .count(candidates, &mut counts);
            assert_eq!(counts, expected, "{level:?} {kind:?} {width} {edges:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_level_counts_what_the_definition_counts(
            (rows, candidates) in (vec(byte(), 0..6000), vec(byte(), 0..1300)),
            channel in vec(-2..4i32, 6000),
            (near, far) in (vec(-9..530i32, 0..=MAX_EDGES), vec(any::<i32>(), 0..=MAX_EDGES)),
            large in vec(-40_000..40_000i32, 0..=MAX_EDGES),
        ) {
            for width in [8, 16, 32, 64] {
                check_all(Kind::SimHash, width, &rows, &candidates, &channel, &near);
                check_all(Kind::SimHash, width, &rows, &candidates, &channel, &far);
            }
            for width in [4, 20, 64, 256] {
                for edges in [&near, &large, &far] {
                    check_all(Kind::Int8, width, &rows, &candidates, &channel, edges);
                }
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let good = Sequence {
            kind: Kind::SimHash,
            width: 8,
            signatures: &[0; 16],
            channel: &[0, 0],
            channels: 1,
            edges: &[1],
        };
        let refused = |sequence: Sequence<'_>| {
            let error = SimTier::new(Level::Scalar, &sequence).unwrap_err();
            assert!(matches!(error, Error::Request(_)), "{error:?}");
        };
        assert!(SimTier::new(Level::Scalar, &good).is_ok());
        refused(Sequence {
            width: 24,
            signatures: &[0; 48],
            ..good
        });
        refused(Sequence {
            kind: Kind::Int8,
            width: 6,
            signatures: &[0; 12],
            ..good
        });
        refused(Sequence {
            kind: Kind::Int8,
            width: 2048,
            signatures: &[0; 4096],
            ..good
        });
        refused(Sequence {
            signatures: &[0; 17],
            ..good
        });
        refused(Sequence {
            edges: &[0; MAX_EDGES + 1],
            ..good
        });
        refused(Sequence {
            channels: 0,
            ..good
        });
    }
}
