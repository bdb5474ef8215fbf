//! `SimTier`: for each candidate and channel, the number of behaviours in each tier of similarity.

use super::Level;
use super::arch::Kernels;
use super::bits::SlicedBits;
use super::dots::Dots;
use super::edges::Edges;
use super::pack::Grouped;
use crate::error::{Error, Result};

/// Maximum number of edges: 32 tiers.
pub const MAX_EDGES: usize = 31;

/// Kind of signature, which defines the score of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Packed sign bits, 8, 16, 32 or 64 bytes; the score is the number of equal bits.
    SimHash,
    /// int8 vectors of 4 to 1,024 bytes, a multiple of 4; the score is their dot product.
    Int8,
}

impl Kind {
    /// Score of a pair by its definition.
    #[cfg(all(test, not(aif_loom)))]
    pub(crate) fn score(self, candidate: &[u8], behaviour: &[u8]) -> i32 {
        let pairs = candidate.iter().zip(behaviour);
        match self {
            Self::SimHash => pairs.map(|(a, b)| (a ^ b).count_zeros() as i32).sum(),
            Self::Int8 => pairs
                .map(|(&a, &b)| i32::from(a as i8) * i32::from(b as i8))
                .sum(),
        }
    }

    /// Parses the name of a kind.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "simhash" => Ok(Self::SimHash),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::Request(format!(
                "simtier: kind is {name:?}, expected \"simhash\" or \"int8\""
            ))),
        }
    }

    /// Returns the lowest and the highest score of signatures of this width.
    pub(super) fn range(self, width: usize) -> (i32, i32) {
        match self {
            Self::SimHash => (0, 8 * width as i32),
            Self::Int8 => (-128 * 127 * width as i32, 128 * 128 * width as i32),
        }
    }
}

/// Behaviour sequence of one user, and the tiers to count over it.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Kind of the signatures.
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

/// Arguments for packing the pairs of a sequence.
pub(super) struct Parts<'a> {
    pub(super) kernels: Kernels,
    pub(super) sequence: &'a Sequence<'a>,
    pub(super) edges: &'a Edges,
    pub(super) grouped: &'a Grouped,
}

/// Packed sequence, to be counted against any number of candidates by any number of threads.
#[derive(Debug)]
pub struct SimTier {
    width: usize,
    /// Behaviours of each channel.
    behaviours: Vec<usize>,
    edges: Edges,
    pairs: Pairs,
}

/// Kernel data for the kind of signature.
#[derive(Debug)]
enum Pairs {
    SimHash(SlicedBits),
    Int8(Dots),
}

impl SimTier {
    /// Packs a sequence for kernels of `level`.
    ///
    /// # Errors
    /// [`Error::Request`] if a size is not as [`Sequence`] requires; [`Error::Config`] if the CPU lacks
    /// `level`; [`Error::OutOfMemory`] if the system refuses memory.
    pub fn new(level: Level, sequence: &Sequence<'_>) -> Result<Self> {
        check(sequence)?;
        let kernels = Kernels::for_level(level)?;
        let edges = Edges::new(sequence);
        let grouped = Grouped::new(sequence.channel, sequence.channels);
        let parts = Parts {
            kernels,
            sequence,
            edges: &edges,
            grouped: &grouped,
        };
        let pairs = match sequence.kind {
            Kind::SimHash => Pairs::SimHash(SlicedBits::new(&parts)?),
            Kind::Int8 => Pairs::Int8(Dots::new(&parts)?),
        };
        Ok(Self {
            width: sequence.width,
            behaviours: grouped.spans.iter().map(|span| span.behaviours).collect(),
            edges,
            pairs,
        })
    }

    /// Returns the integers in the result of one candidate: channels times tiers.
    #[must_use]
    pub fn counts_per_candidate(&self) -> usize {
        self.behaviours.len() * self.edges.tiers()
    }

    /// Writes the counts of candidates `[n, width]` to `out`, `[n, channels, tiers]`. Allocates nothing.
    ///
    /// # Panics
    /// If the lengths of `candidates` and `out` do not match.
    pub fn count(&self, candidates: &[u8], out: &mut [i32]) {
        assert_eq!(
            (
                candidates.len() % self.width,
                candidates.len() / self.width * self.counts_per_candidate()
            ),
            (0, out.len()),
            "candidates and counts do not belong together"
        );
        // First the number that reach each live edge, at the positions of the first tiers of each channel.
        let per_candidate = self.counts_per_candidate();
        match &self.pairs {
            Pairs::SimHash(bits) => bits.count_reached(candidates, per_candidate, out),
            Pairs::Int8(dots) => dots.count_reached(candidates, per_candidate, out),
        }
        for out in out.chunks_exact_mut(per_candidate) {
            let channels = out.chunks_exact_mut(self.edges.tiers());
            for (&behaviours, out) in self.behaviours.iter().zip(channels) {
                self.edges.to_tier_counts(behaviours, out);
            }
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

#[cfg(all(test, not(aif_loom)))]
mod tests;
