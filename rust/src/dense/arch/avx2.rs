//! AVX2 with FMA: eight floats a register, sixteen registers.

use super::Kernels;
use super::loops::{Register, f32_register, kernel, load_store, row_kernels};
use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
};

pub(super) const KERNELS: Kernels = Kernels::f32_only(Eight::LANES, &[one, two], add_scaled, relu);

f32_register!(
    Eight,
    __m256,
    8,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps
);

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
