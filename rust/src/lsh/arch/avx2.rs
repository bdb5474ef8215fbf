//! AVX2: products of int8 by pairs of int16.

use super::super::pack::LANES;
use super::{ByteKernels, Kernels, avx2_planes, portable};
use crate::bf16::Bf16;
use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cmpgt_epi16, _mm256_cmpgt_epi32,
    _mm256_cvtepi8_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_packs_epi32,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
    _mm256_sub_epi16, _mm256_sub_epi32,
};

pub(super) const KERNELS: Kernels = Kernels {
    plane_words: 4,
    slice: avx2_planes::slice,
    count_bits: avx2_planes::count,
    int8_group: 2,
    int8_offset: 0,
    bytes: ByteKernels::Scores(int8_i16, count_i16),
    int8_i32,
    count_i32,
    add_rows,
    add_half_rows,
};

/// Counts of 16-bit lanes move to 32 bits before they can overflow.
const I16_STEPS: usize = i16::MAX as usize;

/// Types that fill a register: plain integers, 32 bytes in all.
macro_rules! memory {
    ($load:ident, $store:ident, $lane:ty, $lanes:literal) => {
        #[inline]
        #[target_feature(enable = "avx2")]
        pub(super) fn $load(from: &[$lane; $lanes]) -> __m256i {
            // SAFETY: the reference covers 32 bytes, and the load needs no alignment.
            unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        pub(super) fn $store(to: &mut [$lane; $lanes], value: __m256i) {
            // SAFETY: the reference covers 32 bytes, and the store needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
        }
    };
}

memory!(load_i16, store_i16, i16, 16);
memory!(load_i32, store_i32, i32, 8);

/// Returns the scores of half a block, 8 lanes a register.
#[inline]
#[target_feature(enable = "avx2")]
fn int8(block: &[u8], start: &[i32; LANES], candidate: &[u8], half: usize) -> [__m256i; 4] {
    let mut dots = [_mm256_setzero_si256(); 4];
    for (dot, start) in dots.iter_mut().zip(&start.as_chunks::<8>().0[4 * half..]) {
        *dot = load_i32(start);
    }
    let pairs = candidate.as_chunks::<2>().0;
    let rows = block.as_chunks::<{ 2 * LANES }>().0;
    for (&[first, second], row) in pairs.iter().zip(rows) {
        let (first, second) = (i16::from(first as i8), i16::from(second as i8));
        let pair = _mm256_set1_epi32(i32::from(second) << 16 | i32::from(first as u16));
        let lanes = &row.as_chunks::<16>().0[4 * half..];
        for (dot, lanes) in dots.iter_mut().zip(lanes) {
            // SAFETY: the reference covers 16 bytes, and the load needs no alignment.
            let lanes = unsafe { _mm_loadu_si128(lanes.as_ptr().cast()) };
            // Two products of int8 stay below 2^16, so the sum of a pair is exact.
            *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pair, _mm256_cvtepi8_epi16(lanes)));
        }
    }
    dots
}

#[target_feature(enable = "avx2")]
fn int8_i16(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [i16]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let [low, high] = [0, 1].map(|half| int8(block, start, candidate, half));
        store_dots_i16(
            [
                low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3],
            ],
            out,
        );
    }
}

/// Stores the scores of a block, saturated.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_dots_i16(dots: [__m256i; 8], out: &mut [i16; LANES]) {
    for (dots, out) in dots.as_chunks::<2>().0.iter().zip(out.as_chunks_mut().0) {
        store_i16(out, _mm256_packs_epi32(dots[0], dots[1]));
    }
}

#[target_feature(enable = "avx2")]
fn int8_i32(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [i32]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let dots = [0, 1].map(|half| int8(block, start, candidate, half));
        for (&dot, out) in dots.as_flattened().iter().zip(out.as_chunks_mut::<8>().0) {
            store_i32(out, dot);
        }
    }
}

/// Adds up the eight 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_i32(value: __m256i) -> i32 {
    let mut lanes = [0i32; 8];
    store_i32(&mut lanes, value);
    lanes.iter().sum()
}

// Edges are above the lowest value of their type, so `edge - 1` exists and `>` can stand for `>=`.

#[target_feature(enable = "avx2")]
pub(super) fn count_i16(scores: &[i16], edges: &[i16], counts: &mut [i32]) {
    for (&edge, count) in edges.iter().zip(counts) {
        let below = _mm256_set1_epi16(edge - 1);
        let mut total = _mm256_setzero_si256();
        for steps in scores.as_chunks::<16>().0.chunks(I16_STEPS) {
            let mut reached = _mm256_setzero_si256();
            for step in steps {
                reached = _mm256_sub_epi16(reached, _mm256_cmpgt_epi16(load_i16(step), below));
            }
            total = _mm256_add_epi32(total, _mm256_madd_epi16(reached, _mm256_set1_epi16(1)));
        }
        *count += sum_i32(total);
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn count_i32(scores: &[i32], edges: &[i32], counts: &mut [i32]) {
    for (&edge, count) in edges.iter().zip(counts) {
        let below = _mm256_set1_epi32(edge - 1);
        let mut reached = _mm256_setzero_si256();
        for step in scores.as_chunks::<8>().0 {
            reached = _mm256_sub_epi32(reached, _mm256_cmpgt_epi32(load_i32(step), below));
        }
        *count += sum_i32(reached);
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn add_rows(table: &[f32], rows: &[usize], out: &mut [f32]) {
    portable::add_rows_in_place(table, rows, out);
}

#[target_feature(enable = "avx2")]
pub(super) fn add_half_rows(table: &[Bf16], rows: &[usize], out: &mut [f32]) {
    portable::add_rows_in_place(table, rows, out);
}
