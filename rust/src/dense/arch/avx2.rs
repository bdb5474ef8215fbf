//! AVX2 with FMA: eight floats a register, sixteen registers.

use super::Kernels;
use super::loops::{Register, kernel, row_kernels};
use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
};

pub(super) const KERNELS: Kernels = Kernels {
    lanes: Eight::LANES,
    singles: &[one, two],
    halves: None,
    add_scaled,
    relu,
};

#[derive(Clone, Copy)]
struct Eight(__m256);

impl Register for Eight {
    type Input = f32;
    type Weights = Self;
    const LANES: usize = 8;

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn weights(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self::load(from) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn spread(input: f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_set1_ps(input) })
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn add_product(self, input: Self, weights: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_fmadd_ps(input.0, weights.0, self.0) })
    }
}

kernel!(
    #[target_feature(enable = "avx2,fma")]
    one,
    f32,
    Eight,
    12,
    1,
    1
);
kernel!(
    #[target_feature(enable = "avx2,fma")]
    two,
    f32,
    Eight,
    6,
    2,
    1
);

row_kernels!(#[target_feature(enable = "avx2,fma")]);
