//! AVX-VNNI: dot products of bytes by four in registers of 256 bits, for CPUs that have them but not
//! AVX-512. All other kernels are those of AVX2.

use super::super::pack::LANES;
use super::avx2::{self, load_i32, store_dots_i16, store_i32};
use super::{ByteKernels, Kernels};
use std::arch::x86_64::{
    __m256i, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_si256,
};

pub(super) const KERNELS: Kernels = Kernels {
    int8_group: 4,
    int8_offset: 128,
    bytes: ByteKernels::Scores(int8_i16, avx2::count_i16),
    int8_i32,
    ..avx2::KERNELS
};

/// Writes the scores of a block, 8 lanes a register.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn int8(block: &[u8], start: &[i32; LANES], candidate: &[u8]) -> [__m256i; 8] {
    let mut dots = [_mm256_setzero_si256(); 8];
    for (dot, start) in dots.iter_mut().zip(start.as_chunks::<8>().0) {
        *dot = load_i32(start);
    }
    let words = candidate.as_chunks::<4>().0;
    let rows = block.as_chunks::<{ 4 * LANES }>().0;
    for (&word, row) in words.iter().zip(rows) {
        // The instruction wants one side unsigned: flipping the top bit adds 128 to each byte.
        let word = _mm256_set1_epi32(i32::from_le_bytes(word) ^ i32::from_le_bytes([0x80; 4]));
        for (dot, lanes) in dots.iter_mut().zip(row.as_chunks::<32>().0) {
            // SAFETY: the reference covers 32 bytes, and the load needs no alignment.
            let lanes = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) };
            *dot = _mm256_dpbusd_avx_epi32(*dot, word, lanes);
        }
    }
    dots
}

#[target_feature(enable = "avx2,avxvnni")]
fn int8_i16(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [i16]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        store_dots_i16(int8(block, start, candidate), out);
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn int8_i32(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [i32]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let dots = int8(block, start, candidate);
        for (dot, out) in dots.into_iter().zip(out.as_chunks_mut::<8>().0) {
            store_i32(out, dot);
        }
    }
}
