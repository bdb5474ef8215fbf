//! AVX2: bit counts by table look-up in bytes, products of int8 by pairs of int16.

use super::super::pack::LANES;
use super::{Kernels, portable};
use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi8, _mm256_add_epi32, _mm256_add_epi64,
    _mm256_and_si256, _mm256_castsi256_si128, _mm256_cmpgt_epi8, _mm256_cmpgt_epi16,
    _mm256_cmpgt_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_extracti128_si256,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_sad_epu8,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi8, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_storeu_si256, _mm256_sub_epi8, _mm256_sub_epi16,
    _mm256_sub_epi32, _mm256_xor_si256,
};

pub(super) const KERNELS: Kernels = Kernels {
    simhash_group: 1,
    int8_group: 2,
    int8_offset: 0,
    simhash_i8,
    simhash_i16,
    int8_i16,
    int8_i32,
    count_i8,
    count_i16,
    count_i32,
    add_rows,
};

/// Counts of 16-bit lanes move to 32 bits before they can overflow.
const I16_STEPS: usize = i16::MAX as usize;

/// Types that a register can be filled with: plain integers of 32 bytes together.
macro_rules! memory {
    ($load:ident, $store:ident, $lane:ty, $lanes:literal) => {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn $load(from: &[$lane; $lanes]) -> __m256i {
            // SAFETY: the reference covers 32 bytes, and the load needs no alignment.
            unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn $store(to: &mut [$lane; $lanes], value: __m256i) {
            // SAFETY: the reference covers 32 bytes, and the store needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
        }
    };
}

memory!(load_i8, store_i8, i8, 32);
memory!(load_i16, store_i16, i16, 16);
memory!(load_i32, store_i32, i32, 8);

#[inline]
#[target_feature(enable = "avx2")]
fn load_u8(from: &[u8; 32]) -> __m256i {
    // SAFETY: the reference covers 32 bytes, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// Scores of one block: lanes 0 to 15 and 16 to 31.
#[inline]
#[target_feature(enable = "avx2")]
fn simhash(block: &[u8], start: &[i16; LANES], candidate: &[u8]) -> (__m256i, __m256i) {
    let ones = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3,
        3, 4,
    );
    let low_half = _mm256_set1_epi8(0x0f);
    let starts = start.as_chunks::<16>().0;
    let (mut low, mut high) = (load_i16(&starts[0]), load_i16(&starts[1]));
    // 16 bytes differ in at most 128 bits, which a byte can count.
    for (bytes, rows) in candidate.chunks(16).zip(block.chunks(16 * LANES)) {
        let mut differ = _mm256_setzero_si256();
        for (&byte, row) in bytes.iter().zip(rows.as_chunks::<LANES>().0) {
            let bits = _mm256_xor_si256(_mm256_set1_epi8(byte as i8), load_u8(row));
            let halves = (
                _mm256_and_si256(bits, low_half),
                _mm256_and_si256(_mm256_srli_epi16::<4>(bits), low_half),
            );
            differ = _mm256_add_epi8(differ, _mm256_shuffle_epi8(ones, halves.0));
            differ = _mm256_add_epi8(differ, _mm256_shuffle_epi8(ones, halves.1));
        }
        low = _mm256_sub_epi16(low, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(differ)));
        high = _mm256_sub_epi16(
            high,
            _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(differ)),
        );
    }
    (low, high)
}

#[target_feature(enable = "avx2")]
fn simhash_i8(blocks: &[u8], start: &[i16], candidate: &[u8], out: &mut [i8]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let (low, high) = simhash(block, start, candidate);
        store_i8(out, _mm256_packs_epi16(low, high));
    }
}

#[target_feature(enable = "avx2")]
fn simhash_i16(blocks: &[u8], start: &[i16], candidate: &[u8], out: &mut [i16]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let (low, high) = simhash(block, start, candidate);
        let out = out.as_chunks_mut::<16>().0;
        store_i16(&mut out[0], low);
        store_i16(&mut out[1], high);
    }
}

/// Scores of one block, 8 lanes a register.
#[inline]
#[target_feature(enable = "avx2")]
fn int8(block: &[u8], start: &[i32; LANES], candidate: &[u8]) -> [__m256i; 4] {
    let mut dots = [_mm256_setzero_si256(); 4];
    for (dot, start) in dots.iter_mut().zip(start.as_chunks::<8>().0) {
        *dot = load_i32(start);
    }
    for (&[first, second], row) in candidate
        .as_chunks::<2>()
        .0
        .iter()
        .zip(block.as_chunks::<64>().0)
    {
        let (first, second) = (i16::from(first as i8), i16::from(second as i8));
        let pair = _mm256_set1_epi32(i32::from(second) << 16 | i32::from(first as u16));
        for (dot, lanes) in dots.iter_mut().zip(row.as_chunks::<16>().0) {
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
        let dots = int8(block, start, candidate);
        let out = out.as_chunks_mut::<16>().0;
        store_i16(&mut out[0], _mm256_packs_epi32(dots[0], dots[1]));
        store_i16(&mut out[1], _mm256_packs_epi32(dots[2], dots[3]));
    }
}

#[target_feature(enable = "avx2")]
fn int8_i32(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [i32]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        for (dot, out) in int8(block, start, candidate)
            .into_iter()
            .zip(out.as_chunks_mut::<8>().0)
        {
            store_i32(out, dot);
        }
    }
}

/// Adds up the eight 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_i32(value: __m256i) -> u32 {
    let mut lanes = [0i32; 8];
    store_i32(&mut lanes, value);
    lanes.iter().map(|&lane| lane as u32).sum()
}

// Edges are above the lowest value of their type, so `edge - 1` exists and `>` can stand for `>=`.

#[target_feature(enable = "avx2")]
fn count_i8(scores: &[i8], edges: &[i8], counts: &mut [u32]) {
    for (&edge, count) in edges.iter().zip(counts) {
        let below = _mm256_set1_epi8(edge - 1);
        let mut total = _mm256_setzero_si256();
        for steps in scores.as_chunks::<32>().0.chunks(255) {
            let mut reached = _mm256_setzero_si256();
            for step in steps {
                reached = _mm256_sub_epi8(reached, _mm256_cmpgt_epi8(load_i8(step), below));
            }
            total = _mm256_add_epi64(total, _mm256_sad_epu8(reached, _mm256_setzero_si256()));
        }
        *count = sum_i32(total);
    }
}

#[target_feature(enable = "avx2")]
fn count_i16(scores: &[i16], edges: &[i16], counts: &mut [u32]) {
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
        *count = sum_i32(total);
    }
}

#[target_feature(enable = "avx2")]
fn count_i32(scores: &[i32], edges: &[i32], counts: &mut [u32]) {
    for (&edge, count) in edges.iter().zip(counts) {
        let below = _mm256_set1_epi32(edge - 1);
        let mut reached = _mm256_setzero_si256();
        for step in scores.as_chunks::<8>().0 {
            reached = _mm256_sub_epi32(reached, _mm256_cmpgt_epi32(load_i32(step), below));
        }
        *count = sum_i32(reached);
    }
}

#[target_feature(enable = "avx2")]
fn add_rows(table: &[f32], rows: &[usize], out: &mut [f32]) {
    portable::add_rows_in_place(table, rows, out);
}
