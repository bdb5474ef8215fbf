//! Inner loops, one file for each instruction set, and their dispatch table.
//!
//! Over sign bits, one kernel packs a sequence into bit planes and one counts; [`planes`] documents them.
//! Over bytes, a score kernel takes the blocks of one channel, the initial sum of each lane and one
//! candidate, and writes one saturated score a lane; lanes may be permuted within a block. A count kernel
//! takes scores, a multiple of 64, and adds the number that reach each edge. All are safe except for one
//! requirement:
//!
//! # Safety
//! The CPU must have the instruction set for which a kernel is compiled, which [`Kernels::for_level`]
//! checks.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_planes;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_planes;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
pub(super) mod planes;
mod portable;

#[cfg(target_arch = "x86_64")]
use planes::Segment;
use planes::Sliced;

use super::Level;
use crate::bf16::Bf16;
use crate::error::Result;

/// Scores the blocks of one channel: blocks, initial sums, candidate, scores.
pub(super) type Score<Lane> = unsafe fn(&[u8], &[i32], &[u8], &mut [Lane]);
/// Adds the number of scores that reach each edge: scores, edges, counts.
pub(super) type Count<Lane> = unsafe fn(&[Lane], &[Lane], &mut [i32]);

/// Kernel for pairs of bytes whose scores fit 16 bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum ByteKernels {
    /// Two passes, with scores in memory.
    Scores(Score<i16>, Count<i16>),
    /// One pass: sequence, candidates, counts for each candidate, counts.
    #[cfg(target_arch = "x86_64")]
    Fused(unsafe fn(&ByteSequence<'_>, &[u8], usize, &mut [i32])),
}

/// Argument of a one-pass kernel: a sequence of bytes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct ByteSequence<'a> {
    /// Bytes of a signature.
    pub width: usize,
    /// Rows, `[blocks][width / 4][LANES][4]`.
    pub rows: &'a [u8],
    /// Initial sum of each lane.
    pub start: &'a [i32],
    /// The segments of every 8 blocks.
    pub segments: &'a [Vec<Segment>],
    /// Scores in order, above the lowest value of their type.
    pub edges: &'a [i16],
}

/// Kernels of one level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Words of 64 bits in a bit plane.
    pub plane_words: usize,
    /// Writes the table of one block of bit planes: rows, signatures, width, table.
    pub slice: unsafe fn(&[u32], &[u8], usize, &mut [u64]),
    /// Counts pairs of sign bits by distance: sequence, candidates, counts for each candidate, counts.
    pub count_bits: unsafe fn(&Sliced<'_>, &[u8], usize, &mut [i32]),
    /// Bytes that are adjacent in one lane, for `int8_*`.
    pub int8_group: usize,
    /// Bias that `int8_*` adds to every candidate byte; the initial sum of a lane compensates it.
    pub int8_offset: i32,
    /// Scores bytes and counts pairs, where 16 bits suffice for scores and edges.
    pub bytes: ByteKernels,
    pub int8_i32: Score<i32>,
    pub count_i32: Count<i32>,
    /// Adds up the table rows (each as long as the output) that start at the given offsets, in order.
    pub add_rows: unsafe fn(&[f32], &[usize], &mut [f32]),
    /// The same over rows of 16 bits, added up in 32.
    pub add_half_rows: unsafe fn(&[Bf16], &[usize], &mut [f32]),
}

impl Kernels {
    /// Selects the kernels of `level`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if the CPU lacks it.
    pub fn for_level(level: Level) -> Result<Self> {
        match Level::from_name(level.name())? {
            Level::Scalar => Ok(portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Ok(avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => Ok(avx_vnni::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Ok(avx512::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::AvxVnni | Level::Avx512 => {
                unreachable!("`from_name` refuses them here")
            }
        }
    }
}
