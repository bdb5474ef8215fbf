//! AVX-512: bit counts in 16-bit lanes (BITALG), dot products of bytes (VNNI), counts by compare masks.

use super::super::pack::LANES;
use super::{Kernels, portable};
use std::arch::x86_64::{
    __m256i, __m512i, _mm256_storeu_si256, _mm512_cmpge_epi8_mask, _mm512_cmpge_epi16_mask,
    _mm512_cmpge_epi32_mask, _mm512_cvtsepi16_epi8, _mm512_cvtsepi32_epi16, _mm512_dpbusd_epi32,
    _mm512_loadu_si512, _mm512_madd_epi16, _mm512_mask_sub_epi8, _mm512_mask_sub_epi16,
    _mm512_mask_sub_epi32, _mm512_or_si512, _mm512_popcnt_epi16, _mm512_reduce_add_epi32,
    _mm512_reduce_add_epi64, _mm512_sad_epu8, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi64, _mm512_storeu_si512,
    _mm512_sub_epi16, _mm512_xor_si512,
};

pub(super) const KERNELS: Kernels = Kernels {
    simhash_group: 2,
    int8_group: 4,
    int8_offset: 128,
    simhash_i8,
    simhash_i16,
    int8_i16,
    int8_i32,
    count_i8,
    count_i16,
    count_i32,
    add_rows,
};

/// Blocks that are scored together, so that a piece of the candidate is spread over a register once
/// for all of them and their sums do not wait for each other.
const TOGETHER: usize = 4;

/// Edges that are counted together, so that scores are loaded once for all of them.
const EDGES: usize = 4;

/// Moves between memory and registers, for plain integers of 64 or 32 bytes together.
macro_rules! memory {
    ($name:ident, load, $lane:ty, $lanes:literal) => {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn $name(from: &[$lane; $lanes]) -> __m512i {
            const { assert!(size_of::<[$lane; $lanes]>() == 64) };
            // SAFETY: the reference covers 64 bytes, and the load needs no alignment.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }
    };
    ($name:ident, store, $lane:ty, $lanes:literal) => {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn $name(to: &mut [$lane; $lanes], value: __m512i) {
            const { assert!(size_of::<[$lane; $lanes]>() == 64) };
            // SAFETY: the reference covers 64 bytes, and the store needs no alignment.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), value) }
        }
    };
    ($name:ident, store_half, $lane:ty, $lanes:literal) => {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn $name(to: &mut [$lane; $lanes], value: __m256i) {
            const { assert!(size_of::<[$lane; $lanes]>() == 32) };
            // SAFETY: the reference covers 32 bytes, and the store needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
        }
    };
}

memory!(load_i8, load, i8, 64);
memory!(load_i16, load, i16, 32);
memory!(load_i32, load, i32, 16);
memory!(store_i16, store, i16, 32);
memory!(store_i32, store, i32, 16);
memory!(store_half_i8, store_half, i8, 32);
memory!(store_half_i16, store_half, i16, 16);

/// Scores of `N` blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bitalg")]
fn simhash<const N: usize>(blocks: &[u8], start: &[i16], candidate: &[u8]) -> [__m512i; N] {
    let size = LANES * candidate.len();
    assert!(blocks.len() == N * size && start.len() == N * LANES);
    let row = |n: usize, i: usize| {
        // SAFETY: register `i` of block `n` is inside the slice, by the assertion.
        unsafe { _mm512_loadu_si512(blocks.as_ptr().add(n * size + 64 * i).cast()) }
    };
    let mut equal = [_mm512_setzero_si512(); N];
    for (n, equal) in equal.iter_mut().enumerate() {
        // SAFETY: as above.
        *equal = unsafe { _mm512_loadu_si512(start.as_ptr().add(n * LANES).cast()) };
    }
    for (i, &word) in candidate.as_chunks::<2>().0.iter().enumerate() {
        let word = _mm512_set1_epi16(i16::from_le_bytes(word));
        for (n, equal) in equal.iter_mut().enumerate() {
            let differ = _mm512_xor_si512(word, row(n, i));
            *equal = _mm512_sub_epi16(*equal, _mm512_popcnt_epi16(differ));
        }
    }
    equal
}

/// Scores of `N` blocks, 16 lanes a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8<const N: usize>(blocks: &[u8], start: &[i32], candidate: &[u8]) -> [[__m512i; 2]; N] {
    let size = LANES * candidate.len();
    assert!(blocks.len() == N * size && start.len() == N * LANES);
    let row = |n: usize, i: usize| {
        // SAFETY: register `i` of block `n` is inside the slice, by the assertion.
        unsafe { _mm512_loadu_si512(blocks.as_ptr().add(n * size + 64 * i).cast()) }
    };
    // SAFETY: as above.
    let first = |i: usize| unsafe { _mm512_loadu_si512(start.as_ptr().add(i * 16).cast()) };
    let mut dots = [[_mm512_setzero_si512(); 2]; N];
    for (n, dots) in dots.iter_mut().enumerate() {
        *dots = [first(2 * n), first(2 * n + 1)];
    }
    for (i, &word) in candidate.as_chunks::<4>().0.iter().enumerate() {
        // The instruction wants one side unsigned: flipping the top bit adds 128 to each byte.
        let word = _mm512_set1_epi32(i32::from_le_bytes(word) ^ i32::from_le_bytes([0x80; 4]));
        for (n, dots) in dots.iter_mut().enumerate() {
            dots[0] = _mm512_dpbusd_epi32(dots[0], word, row(n, 2 * i));
            dots[1] = _mm512_dpbusd_epi32(dots[1], word, row(n, 2 * i + 1));
        }
    }
    dots
}

/// Scores every block by `$score`, `TOGETHER` at a time, and stores each by `$store`.
macro_rules! score_kernel {
    ($name:ident, $features:literal, $score:ident, $start:ty, $lane:ty, $store:expr) => {
        #[target_feature(enable = $features)]
        fn $name(blocks: &[u8], start: &[$start], candidate: &[u8], out: &mut [$lane]) {
            let size = LANES * candidate.len();
            let together = out.len() / (TOGETHER * LANES);
            let (blocks, last_blocks) = blocks.split_at(together * TOGETHER * size);
            let (start, last_start) = start.split_at(together * TOGETHER * LANES);
            let (out, last_out) = out.split_at_mut(together * TOGETHER * LANES);
            let blocks = blocks.chunks_exact(TOGETHER * size);
            let starts = start.chunks_exact(TOGETHER * LANES);
            for ((block, start), out) in blocks
                .zip(starts)
                .zip(out.chunks_exact_mut(TOGETHER * LANES))
            {
                let scores = $score::<TOGETHER>(block, start, candidate);
                for (scores, out) in scores.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
                    $store(scores, out);
                }
            }
            let blocks = last_blocks.chunks_exact(size);
            let starts = last_start.chunks_exact(LANES);
            for ((block, start), out) in blocks.zip(starts).zip(last_out.as_chunks_mut::<LANES>().0)
            {
                let [scores] = $score::<1>(block, start, candidate);
                $store(scores, out);
            }
        }
    };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_simhash_i8(scores: __m512i, out: &mut [i8; LANES]) {
    store_half_i8(out, _mm512_cvtsepi16_epi8(scores));
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_simhash_i16(scores: __m512i, out: &mut [i16; LANES]) {
    store_i16(out, scores);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_int8_i16(scores: [__m512i; 2], out: &mut [i16; LANES]) {
    for (scores, out) in scores.into_iter().zip(out.as_chunks_mut::<16>().0) {
        store_half_i16(out, _mm512_cvtsepi32_epi16(scores));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_int8_i32(scores: [__m512i; 2], out: &mut [i32; LANES]) {
    for (scores, out) in scores.into_iter().zip(out.as_chunks_mut::<16>().0) {
        store_i32(out, scores);
    }
}

score_kernel!(
    simhash_i8,
    "avx512f,avx512bw,avx512bitalg",
    simhash,
    i16,
    i8,
    store_simhash_i8
);
score_kernel!(
    simhash_i16,
    "avx512f,avx512bw,avx512bitalg",
    simhash,
    i16,
    i16,
    store_simhash_i16
);
score_kernel!(
    int8_i16,
    "avx512f,avx512bw,avx512vnni",
    int8,
    i32,
    i16,
    store_int8_i16
);
score_kernel!(
    int8_i32,
    "avx512f,avx512bw,avx512vnni",
    int8,
    i32,
    i32,
    store_int8_i32
);

/// How often each lane reached each of up to `EDGES` edges.
macro_rules! reached {
    ($scores:expr, $edges:expr, $load:ident, $spread:ident, $compare:ident, $subtract:ident) => {{
        let mut spread = [_mm512_setzero_si512(); EDGES];
        for (spread, &edge) in spread.iter_mut().zip($edges) {
            *spread = $spread(edge);
        }
        let minus_one = _mm512_set1_epi8(-1);
        let mut reached = [_mm512_setzero_si512(); EDGES];
        for step in $scores {
            let step = $load(step);
            for (reached, &edge) in reached.iter_mut().zip(&spread) {
                *reached = $subtract(*reached, $compare(step, edge), *reached, minus_one);
            }
        }
        reached
    }};
}

#[target_feature(enable = "avx512f,avx512bw")]
fn count_i8(scores: &[i8], edges: &[i8], counts: &mut [u32]) {
    for (edges, counts) in edges.chunks(EDGES).zip(counts.chunks_mut(EDGES)) {
        counts.fill(0);
        // A lane can count to 255.
        for steps in scores.as_chunks::<64>().0.chunks(255) {
            let [a, b, c, d] = reached!(
                steps,
                edges,
                load_i8,
                _mm512_set1_epi8,
                _mm512_cmpge_epi8_mask,
                _mm512_mask_sub_epi8
            );
            // 64 lanes of at most 255 add up to less than 2^16: four sums fit side by side.
            let zero = _mm512_setzero_si512();
            let ab = _mm512_or_si512(
                _mm512_sad_epu8(a, zero),
                _mm512_slli_epi64::<16>(_mm512_sad_epu8(b, zero)),
            );
            let cd = _mm512_or_si512(
                _mm512_sad_epu8(c, zero),
                _mm512_slli_epi64::<16>(_mm512_sad_epu8(d, zero)),
            );
            let sums =
                _mm512_reduce_add_epi64(_mm512_or_si512(ab, _mm512_slli_epi64::<32>(cd))) as u64;
            for (n, count) in counts.iter_mut().enumerate() {
                *count += (sums >> (16 * n)) as u32 & 0xffff;
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn count_i16(scores: &[i16], edges: &[i16], counts: &mut [u32]) {
    for (edges, counts) in edges.chunks(EDGES).zip(counts.chunks_mut(EDGES)) {
        counts.fill(0);
        for steps in scores.as_chunks::<32>().0.chunks(i16::MAX as usize) {
            let reached = reached!(
                steps,
                edges,
                load_i16,
                _mm512_set1_epi16,
                _mm512_cmpge_epi16_mask,
                _mm512_mask_sub_epi16
            );
            for (reached, count) in reached.into_iter().zip(counts.iter_mut()) {
                *count += _mm512_reduce_add_epi32(_mm512_madd_epi16(reached, _mm512_set1_epi16(1)))
                    as u32;
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn count_i32(scores: &[i32], edges: &[i32], counts: &mut [u32]) {
    for (edges, counts) in edges.chunks(EDGES).zip(counts.chunks_mut(EDGES)) {
        let steps = scores.as_chunks::<16>().0;
        let reached = reached!(
            steps,
            edges,
            load_i32,
            _mm512_set1_epi32,
            _mm512_cmpge_epi32_mask,
            _mm512_mask_sub_epi32
        );
        for (reached, count) in reached.into_iter().zip(counts) {
            *count = _mm512_reduce_add_epi32(reached) as u32;
        }
    }
}

#[target_feature(enable = "avx512f")]
fn add_rows(table: &[f32], rows: &[usize], out: &mut [f32]) {
    portable::add_rows_in_place(table, rows, out);
}
