//! The inner loops, one file for each instruction set, and the table that chooses among them.
//!
//! Over sign bits, one kernel lays a sequence out in bit planes and one counts; [`planes`] says how. Over bytes,
//! a score kernel takes the blocks of one channel, what each lane's sum starts from, one candidate, and writes
//! one saturated score a lane; lanes may change places within a block. A count kernel takes scores, a multiple of
//! 64, and adds how many are at least each edge. All are safe but for this:
//!
//! # Safety
//! The CPU must have the instruction set that a kernel is written for; [`Kernels::of`] sees to it.

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

/// Scores the blocks of one channel: blocks, starts, candidate, scores.
pub(super) type Score<Lane> = unsafe fn(&[u8], &[i32], &[u8], &mut [Lane]);
/// Adds how many scores are at least each edge: scores, edges, counts.
pub(super) type Count<Lane> = unsafe fn(&[Lane], &[Lane], &mut [i32]);

/// What counts near pairs of bytes in 16 bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum NearKernels {
    /// By way of scores in memory.
    Scores(Score<i16>, Count<i16>),
    /// In one go: sequence, candidates, counts for each candidate, counts.
    #[cfg(target_arch = "x86_64")]
    Fused(unsafe fn(&Near<'_>, &[u8], usize, &mut [i32])),
}

/// What is counted in one go: a sequence of bytes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Near<'a> {
    /// Bytes of a signature.
    pub width: usize,
    /// Rows, `[blocks][width / 4][LANES][4]`.
    pub rows: &'a [u8],
    /// What each lane's sum starts from.
    pub start: &'a [i32],
    /// The segments of every 8 blocks.
    pub segments: &'a [Vec<Segment>],
    /// Scores in order, above the lowest of their type.
    pub edges: &'a [i16],
}

/// The kernels of one level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Words of 64 bits in a bit plane.
    pub plane_words: usize,
    /// Writes the table of one block of bit planes: rows, signatures, width, table.
    pub slice: unsafe fn(&[u32], &[u8], usize, &mut [u64]),
    /// Counts far pairs of bits: sequence, candidates, counts for each candidate, counts.
    pub count_far: unsafe fn(&Sliced<'_>, &[u8], usize, &mut [i32]),
    /// Bytes that lie together in one lane, for `int8_*`.
    pub int8_group: usize,
    /// What `int8_*` adds to every candidate byte; the start of a lane takes it off again.
    pub int8_offset: i32,
    /// Scores bytes and counts near pairs, where 16 bits tell scores and edges apart.
    pub near: NearKernels,
    pub int8_i32: Score<i32>,
    pub count_i32: Count<i32>,
    /// Adds up the table rows (each as long as the output) that start at the given offsets, in order.
    pub add_rows: unsafe fn(&[f32], &[usize], &mut [f32]),
    /// The same over rows of 16 bits, added up in 32.
    pub add_half_rows: unsafe fn(&[Bf16], &[usize], &mut [f32]),
}

impl Kernels {
    /// The kernels of `level`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if the CPU lacks it.
    pub fn of(level: Level) -> Result<Self> {
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
