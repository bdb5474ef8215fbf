//! Bit planes of 256 pairs with two-operand logic; ones are counted by words.

// Inlined, so that the code is compiled for the instruction set of its caller.
#![allow(clippy::inline_always)]

use super::planes::{self, Plane, Sliced};
use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_loadu_si256, _mm256_or_si256, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm256_xor_si256,
};

/// Register of the AVX2 level.
#[derive(Clone, Copy)]
struct Ymm(__m256i);

impl Plane for Ymm {
    const WORDS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        // SAFETY: by the rule of the trait.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn zeros() -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    unsafe fn ones() -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm256_set1_epi64x(-1) })
    }

    #[inline(always)]
    unsafe fn and(a: Self, b: Self) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm256_and_si256(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn or(a: Self, b: Self) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm256_or_si256(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn xor(a: Self, b: Self) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm256_xor_si256(a.0, b.0) })
    }
}

#[target_feature(enable = "avx2,popcnt")]
pub(super) fn count(
    sequence: &Sliced<'_>,
    candidates: &[u8],
    per_candidate: usize,
    out: &mut [i32],
) {
    // SAFETY: this function is compiled for the features of the instructions.
    unsafe { planes::count::<Ymm>(sequence, candidates, per_candidate, out) };
}

#[target_feature(enable = "avx2")]
pub(super) fn slice(rows: &[u32], signatures: &[u8], width: usize, table: &mut [u64]) {
    planes::slice::<4>(rows, signatures, width, table);
}
