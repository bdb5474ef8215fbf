//! The inner loops, one file for each instruction set, and the table that chooses among them.
//!
//! A score kernel takes the blocks of one channel, what each lane's sum starts from, one candidate,
//! and writes one saturated score a lane; lanes may change places within a block. A count kernel takes
//! scores, a multiple of 64, and writes how many are at least each edge. All are safe but for this:
//!
//! # Safety
//! The CPU must have the instruction set that a kernel is written for; [`Kernels::of`] sees to it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Level;
use crate::error::Result;

/// Scores the blocks of one channel: blocks, starts, candidate, scores.
pub(super) type Score<Start, Lane> = unsafe fn(&[u8], &[Start], &[u8], &mut [Lane]);
/// Counts the scores that are at least each edge: scores, edges, counts.
pub(super) type Count<Lane> = unsafe fn(&[Lane], &[Lane], &mut [u32]);

/// The kernels of one level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Bytes that lie together in one lane, for `simhash_*`.
    pub simhash_group: usize,
    /// Bytes that lie together in one lane, for `int8_*`.
    pub int8_group: usize,
    /// What `int8_*` adds to every candidate byte; the start of a lane takes it off again.
    pub int8_offset: i32,
    pub simhash_i8: Score<i16, i8>,
    pub simhash_i16: Score<i16, i16>,
    pub int8_i16: Score<i32, i16>,
    pub int8_i32: Score<i32, i32>,
    pub count_i8: Count<i8>,
    pub count_i16: Count<i16>,
    pub count_i32: Count<i32>,
    /// Adds up the table rows (each as long as the output) that start at the given offsets, in order.
    pub add_rows: unsafe fn(&[f32], &[usize], &mut [f32]),
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
            Level::Avx512 => Ok(avx512::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => unreachable!("`from_name` refuses them here"),
        }
    }
}
