//! Plain loops over small arrays, which the compiler vectorises for its target.

// Inlined, so that the code is compiled for the instruction set of its caller.
#![allow(clippy::inline_always)]

use super::super::pack::LANES;
use super::planes::{self, Plane, Sliced};
use super::{ByteKernels, Kernels};
use crate::bf16::Bf16;

pub(super) const KERNELS: Kernels = Kernels {
    plane_words: WORDS,
    slice,
    count_bits,
    int8_group: 1,
    int8_offset: 0,
    bytes: ByteKernels::Scores(int8, count::<i16, u16, 65_535>),
    int8_i32: int8,
    count_i32: count::<i32, u32, { usize::MAX }>,
    add_rows,
    add_half_rows,
};

/// Integer type of scores.
trait Lane: Copy + PartialOrd {
    /// Returns the nearest value to `score`.
    fn saturate(score: i32) -> Self;
}

macro_rules! lane {
    ($($lane:ty),*) => {$(
        impl Lane for $lane {
            #[inline]
            fn saturate(score: i32) -> Self {
                score.clamp(<$lane>::MIN.into(), <$lane>::MAX.into()) as $lane
            }
        }
    )*};
}

lane!(i16, i32);

/// Words of a plane: two registers of 128 bits, which every 64-bit CPU has.
const WORDS: usize = 4;

/// Plane in plain words.
#[derive(Clone, Copy)]
struct Words([u64; WORDS]);

impl Plane for Words {
    const WORDS: usize = WORDS;

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        // SAFETY: readable by the contract of the trait.
        Self(unsafe { from.cast::<[u64; WORDS]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        // SAFETY: writable by the contract of the trait.
        unsafe { to.cast::<[u64; WORDS]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn zeros() -> Self {
        Self([0; WORDS])
    }

    #[inline(always)]
    unsafe fn ones() -> Self {
        Self([u64::MAX; WORDS])
    }

    #[inline(always)]
    unsafe fn and(a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i] & b.0[i]))
    }

    #[inline(always)]
    unsafe fn or(a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i] | b.0[i]))
    }

    #[inline(always)]
    unsafe fn xor(a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i] ^ b.0[i]))
    }
}

fn slice(rows: &[u32], signatures: &[u8], width: usize, table: &mut [u64]) {
    planes::slice::<WORDS>(rows, signatures, width, table);
}

fn count_bits(sequence: &Sliced<'_>, candidates: &[u8], per_candidate: usize, out: &mut [i32]) {
    // SAFETY: plain words need no instruction set.
    unsafe { planes::count::<Words>(sequence, candidates, per_candidate, out) };
}

fn int8<T: Lane>(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [T]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let mut dot = *start;
        for (&byte, row) in candidate.iter().zip(block.as_chunks::<LANES>().0) {
            for (dot, &other) in dot.iter_mut().zip(row) {
                *dot += i32::from(i16::from(byte as i8) * i16::from(other as i8));
            }
        }
        for (out, &dot) in out.iter_mut().zip(&dot) {
            *out = T::saturate(dot);
        }
    }
}

/// Counts lane by lane in integers of type `C`, which `LIMIT` steps cannot overflow.
fn count<T, C, const LIMIT: usize>(scores: &[T], edges: &[T], counts: &mut [i32])
where
    T: Lane,
    C: Copy + Default + From<bool> + Into<u32> + std::ops::AddAssign,
{
    for (&edge, count) in edges.iter().zip(counts) {
        for scores in scores.as_chunks::<LANES>().0.chunks(LIMIT) {
            let mut reached = [C::default(); LANES];
            for step in scores {
                for (reached, &score) in reached.iter_mut().zip(step) {
                    *reached += C::from(score >= edge);
                }
            }
            *count += reached.iter().map(|&reached| reached.into()).sum::<u32>() as i32;
        }
    }
}

fn add_rows(table: &[f32], rows: &[usize], out: &mut [f32]) {
    add_rows_in_place(table, rows, out);
}

fn add_half_rows(table: &[Bf16], rows: &[usize], out: &mut [f32]) {
    add_rows_in_place(table, rows, out);
}

/// Sums rows, a piece of the row at a time, so that the running sum stays in registers.
///
/// Inlined into functions of each instruction set, which vectorises it. Rows are added one after the other
/// in every lane, so that all levels round alike.
#[inline(always)]
pub(super) fn add_rows_in_place<T: Copy + Into<f32>>(table: &[T], rows: &[usize], out: &mut [f32]) {
    const PIECE: usize = 64;
    let width = out.len();
    let (pieces, rest) = out.as_chunks_mut::<PIECE>();
    let done = pieces.len() * PIECE;
    for (piece, out) in pieces.iter_mut().enumerate() {
        let mut sum = [0.0f32; PIECE];
        for &row in rows {
            let row = &table[row + piece * PIECE..][..PIECE];
            for (sum, &value) in sum.iter_mut().zip(row) {
                *sum += value.into();
            }
        }
        *out = sum;
    }
    if !rest.is_empty() {
        rest.fill(0.0);
        for &row in rows {
            let row = &table[row + done..row + width];
            for (sum, &value) in rest.iter_mut().zip(row) {
                *sum += value.into();
            }
        }
    }
}
