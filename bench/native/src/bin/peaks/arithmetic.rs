//! Arithmetic in registers and in the first level of cache, by the widest instructions that are there.

/// Something to repeat: how many things one time does, and the loop over a number of times.
pub struct Work {
    /// Operations of one time.
    pub each: f64,
    /// Does it so many times.
    pub run: fn(u64),
}

/// Floating-point operations of fused multiplications and additions, two each.
pub fn fma_f32() -> Option<Work> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Some(Work {
                each: (2 * 16 * avx512::CHAINS) as f64,
                // SAFETY: the processor has the instructions.
                run: |times| unsafe { avx512::fma_f32(times) },
            });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(Work {
                each: (2 * 8 * avx2::CHAINS) as f64,
                // SAFETY: the processor has the instructions.
                run: |times| unsafe { avx2::fma_f32(times) },
            });
        }
    }
    None
}

/// Floating-point operations of dot products of pairs of bfloat16, four a lane.
pub fn dot_bf16() -> Option<Work> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        return Some(Work {
            each: (4 * 16 * avx512::CHAINS) as f64,
            // SAFETY: the processor has the instructions.
            run: |times| unsafe { avx512::dot_bf16(times) },
        });
    }
    None
}

/// Pairs of 256-bit signatures whose different bits are counted.
pub fn signature_pairs() -> Option<Work> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bitalg") {
            return Some(Work {
                each: avx512::PAIRS as f64,
                // SAFETY: the processor has the instructions.
                run: |times| unsafe { avx512::signature_pairs(times) },
            });
        }
        if is_x86_feature_detected!("popcnt") {
            return Some(Work {
                each: avx2::PAIRS as f64,
                // SAFETY: the processor has the instructions.
                run: |times| unsafe { avx2::signature_pairs(times) },
            });
        }
    }
    None
}

/// Comparisons of a score of a byte with an edge, each counted.
pub fn score_compares() -> Option<Work> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bw") {
            return Some(Work {
                each: (64 * avx512::SCORES * avx512::EDGES) as f64,
                // SAFETY: the processor has the instructions.
                run: |times| unsafe { avx512::score_compares(times) },
            });
        }
        if is_x86_feature_detected!("avx2") {
            return Some(Work {
                each: (32 * avx2::SCORES * avx2::EDGES) as f64,
                // SAFETY: the processor has the instructions.
                run: |times| unsafe { avx2::score_compares(times) },
            });
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, __m512i, _mm512_add_epi16, _mm512_castsi512_ps, _mm512_cmpge_epi8_mask,
        _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_mask_sub_epi8, _mm512_popcnt_epi16,
        _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_setzero_si512, _mm512_xor_si512,
    };
    use std::array::from_fn;
    use std::hint::black_box;

    /// Sums that do not wait for each other.
    pub const CHAINS: usize = 16;
    /// Registers of a signature in 16-bit pieces, each of 32 behaviours.
    const PIECES: usize = 16;
    /// Blocks of 32 behaviours that are compared with one candidate at a time.
    const BLOCKS: usize = 4;
    /// Pairs of one time.
    pub const PAIRS: usize = 32 * BLOCKS;
    /// Registers of 64 scores, and the edges they are compared with.
    pub const SCORES: usize = 16;
    pub const EDGES: usize = 4;

    #[target_feature(enable = "avx512f")]
    pub fn fma_f32(times: u64) {
        let (a, b) = (
            black_box(_mm512_set1_ps(1.0)),
            black_box(_mm512_set1_ps(1e-9)),
        );
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box::<[__m512; CHAINS]>(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dot_bf16(times: u64) {
        let one = black_box(_mm512_castsi512_ps(_mm512_set1_epi16(0x3F80)));
        // SAFETY: both types are 64 bytes of plain numbers.
        let pairs: std::arch::x86_64::__m512bh = unsafe { std::mem::transmute(one) };
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        black_box::<[__m512; CHAINS]>(sums);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bitalg")]
    pub fn signature_pairs(times: u64) {
        let blocks: [[__m512i; BLOCKS]; PIECES] =
            black_box([[_mm512_set1_epi8(0x55); BLOCKS]; PIECES]);
        for time in 0..times {
            let mut different = [_mm512_setzero_si512(); BLOCKS];
            let candidate = _mm512_set1_epi16(time as i16);
            for piece in &blocks {
                for (sum, block) in different.iter_mut().zip(piece) {
                    let bits = _mm512_popcnt_epi16(_mm512_xor_si512(candidate, *block));
                    *sum = _mm512_add_epi16(*sum, bits);
                }
            }
            black_box::<[__m512i; BLOCKS]>(different);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn score_compares(times: u64) {
        let scores: [__m512i; SCORES] = black_box([_mm512_set1_epi8(3); SCORES]);
        let minus_one = _mm512_set1_epi8(-1);
        for time in 0..times {
            // Other edges each time, so that nothing can be computed before the loop.
            let edges: [__m512i; EDGES] =
                from_fn(|edge| _mm512_set1_epi8((time as i8).wrapping_add(edge as i8)));
            let mut counts = [_mm512_setzero_si512(); EDGES];
            for score in &scores {
                for (count, edge) in counts.iter_mut().zip(&edges) {
                    let reached = _mm512_cmpge_epi8_mask(*score, *edge);
                    *count = _mm512_mask_sub_epi8(*count, reached, *count, minus_one);
                }
            }
            black_box::<[__m512i; EDGES]>(counts);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm256_cmpgt_epi8, _mm256_fmadd_ps, _mm256_set1_epi8, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sub_epi8,
    };
    use std::array::from_fn;
    use std::hint::black_box;

    pub const CHAINS: usize = 12;
    pub const PAIRS: usize = 64;
    pub const SCORES: usize = 16;
    pub const EDGES: usize = 4;

    #[target_feature(enable = "avx2,fma")]
    pub fn fma_f32(times: u64) {
        let (a, b) = (
            black_box(_mm256_set1_ps(1.0)),
            black_box(_mm256_set1_ps(1e-9)),
        );
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..times {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box::<[__m256; CHAINS]>(sums);
    }

    #[target_feature(enable = "popcnt")]
    pub fn signature_pairs(times: u64) {
        let signatures: [[u64; 4]; PAIRS] = black_box([[0x5555; 4]; PAIRS]);
        for time in 0..times {
            let mut different = [0; PAIRS];
            for (sum, signature) in different.iter_mut().zip(&signatures) {
                for word in signature {
                    *sum += (word ^ time).count_ones();
                }
            }
            black_box(different);
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn score_compares(times: u64) {
        let scores: [__m256i; SCORES] = black_box([_mm256_set1_epi8(3); SCORES]);
        for time in 0..times {
            let edges: [__m256i; EDGES] =
                from_fn(|edge| _mm256_set1_epi8((time as i8).wrapping_add(edge as i8)));
            let mut counts = [_mm256_setzero_si256(); EDGES];
            for score in &scores {
                for (count, edge) in counts.iter_mut().zip(&edges) {
                    *count = _mm256_sub_epi8(*count, _mm256_cmpgt_epi8(*score, *edge));
                }
            }
            black_box::<[__m256i; EDGES]>(counts);
        }
    }
}
