//! AVX-512: sixteen floats a register, thirty-two registers; pairs of `bfloat16` where the CPU has them.

use super::Kernels;
use super::loops::{Register, f32_register, kernel, load_store, row_kernels};
use crate::bf16::Bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};

/// Returns the kernels, with those of AVX512-BF16 if this CPU has it.
pub(super) fn kernels() -> Kernels {
    let bf16 = std::arch::is_x86_feature_detected!("avx512bf16");
    Kernels {
        lanes: Sixteen::LANES,
        f32: &[one, two, three, four],
        bf16: bf16.then_some(&[one_bf16, two_bf16, three_bf16, four_bf16]),
        add_scaled,
        relu,
    }
}

f32_register!(
    Sixteen,
    __m512,
    16,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps
);

/// Sums of products of pairs.
#[derive(Clone, Copy)]
struct Pairs(__m512);

/// Pair of adjacent inputs.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Pair([Bf16; 2]);

impl Register for Pairs {
    type Input = Pair;
    type Weights = __m512i;
    const LANES: usize = 16;

    load_store!(_mm512_loadu_ps, _mm512_storeu_ps);

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn weights(from: *const Pair) -> __m512i {
        // SAFETY: by the contract of the trait.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn splat(input: Pair) -> __m512i {
        let [low, high] = input.0;
        // SAFETY: by the contract of the trait.
        unsafe { _mm512_set1_epi32((u32::from(high.0) << 16 | u32::from(low.0)) as i32) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always)]
    unsafe fn add_product(self, input: __m512i, weights: __m512i) -> Self {
        // SAFETY: by the contract of the trait; the types hold the same 64 bytes.
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
    one_bf16,
    Bf16,
    Pairs,
    12,
    1,
    2
);
kernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    two_bf16,
    Bf16,
    Pairs,
    12,
    2,
    2
);
kernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    three_bf16,
    Bf16,
    Pairs,
    6,
    3,
    2
);
kernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    four_bf16,
    Bf16,
    Pairs,
    6,
    4,
    2
);

row_kernels!(#[target_feature(enable = "avx512f")]);
