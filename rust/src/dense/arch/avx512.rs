//! AVX-512: sixteen floats a register, thirty-two registers; pairs of `bfloat16` where the CPU has them.

use super::Kernels;
use super::loops::{Register, kernel, row_kernels};
use crate::bf16::Bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};

/// The kernels, with those of AVX512-BF16 if this CPU has it.
pub(super) fn kernels() -> Kernels {
    let halves = std::arch::is_x86_feature_detected!("avx512bf16");
    Kernels {
        lanes: Sixteen::LANES,
        singles: &[one, two, three, four],
        halves: halves.then_some(&[one_halves, two_halves, three_halves, four_halves]),
        add_scaled,
        relu,
    }
}

#[derive(Clone, Copy)]
struct Sixteen(__m512);

impl Register for Sixteen {
    type Input = f32;
    type Weights = Self;
    const LANES: usize = 16;

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(to, self.0) }
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
        Self(unsafe { _mm512_set1_ps(input) })
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn add_product(self, input: Self, weights: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_fmadd_ps(input.0, weights.0, self.0) })
    }
}

/// Sums of products of pairs.
#[derive(Clone, Copy)]
struct Pairs(__m512);

/// Two inputs side by side.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Pair([Bf16; 2]);

impl Register for Pairs {
    type Input = Pair;
    type Weights = __m512i;
    const LANES: usize = 16;

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn weights(from: *const Pair) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn spread(input: Pair) -> __m512i {
        let [low, high] = input.0;
        // SAFETY: the caller's.
        unsafe { _mm512_set1_epi32((u32::from(high.0) << 16 | u32::from(low.0)) as i32) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn add_product(self, input: __m512i, weights: __m512i) -> Self {
        // SAFETY: the caller's; the types hold the same 64 bytes.
        unsafe {
            let input = std::mem::transmute::<__m512i, __m512bh>(input);
            let weights = std::mem::transmute::<__m512i, __m512bh>(weights);
            Self(_mm512_dpbf16_ps(self.0, input, weights))
        }
    }
}

kernel!(
    #[target_feature(enable = "avx512f")]
    one,
    f32,
    Sixteen,
    12,
    1,
    1
);
kernel!(
    #[target_feature(enable = "avx512f")]
    two,
    f32,
    Sixteen,
    12,
    2,
    1
);
kernel!(
    #[target_feature(enable = "avx512f")]
    three,
    f32,
    Sixteen,
    6,
    3,
    1
);
kernel!(
    #[target_feature(enable = "avx512f")]
    four,
    f32,
    Sixteen,
    6,
    4,
    1
);
kernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    one_halves,
    Bf16,
    Pairs,
    12,
    1,
    2
);
kernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    two_halves,
    Bf16,
    Pairs,
    12,
    2,
    2
);
kernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    three_halves,
    Bf16,
    Pairs,
    6,
    3,
    2
);
kernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    four_halves,
    Bf16,
    Pairs,
    6,
    4,
    2
);

row_kernels!(#[target_feature(enable = "avx512f")]);
