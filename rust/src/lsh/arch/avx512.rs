//! AVX-512: dot products of bytes (VNNI), and their tiers by binary search in registers.

use super::super::pack::LANES;
use super::avx512_planes::{self, Zmm};
use super::planes::{self, Plane};
use super::{ByteKernels, ByteSequence, Kernels, portable};
use crate::bf16::Bf16;
use std::arch::x86_64::{
    __m512i, _mm512_cmpge_epi16_mask, _mm512_cmpge_epi32_mask, _mm512_dpbusd_epi32,
    _mm512_loadu_si512, _mm512_mask_add_epi16, _mm512_mask_sub_epi32, _mm512_packs_epi32,
    _mm512_permutexvar_epi16, _mm512_reduce_add_epi32, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_storeu_si512,
};

pub(super) const KERNELS: Kernels = Kernels {
    plane_words: 8,
    slice: avx512_planes::slice,
    count_bits: avx512_planes::count,
    int8_group: 4,
    int8_offset: 128,
    bytes: ByteKernels::Fused(count_bytes),
    int8_i32,
    count_i32,
    add_rows,
    add_half_rows,
};

/// Candidates scored together, so that a piece of the sequence is loaded once for all of them.
const CANDIDATES: usize = 4;

/// Edges counted together, so that scores are loaded once for all of them.
const EDGES: usize = 4;

/// Returns the scores of one block against `N` candidates, 16 lanes a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8<const N: usize>(
    block: &[u8],
    start: &[i32; LANES],
    candidates: [&[u8]; N],
) -> [[__m512i; 4]; N] {
    let width = candidates[0].len();
    assert!(block.len() == LANES * width && candidates.iter().all(|one| one.len() == width));
    // SAFETY: four registers of starts, by the type.
    let first = |i: usize| unsafe { _mm512_loadu_si512(start.as_ptr().add(i * 16).cast()) };
    let mut dots = [[first(0), first(1), first(2), first(3)]; N];
    for at in 0..width / 4 {
        // SAFETY: a block has four registers for every four bytes of a signature, by the assertion.
        let row =
            |i: usize| unsafe { _mm512_loadu_si512(block.as_ptr().add((4 * at + i) * 64).cast()) };
        let rows = [row(0), row(1), row(2), row(3)];
        for (candidate, dots) in candidates.iter().zip(&mut dots) {
            // SAFETY: inside the candidate, by the assertion.
            let word = unsafe {
                candidate
                    .as_ptr()
                    .add(4 * at)
                    .cast::<i32>()
                    .read_unaligned()
            };
            // The instruction wants one side unsigned: flipping the top bit adds 128 to each byte.
            let word = _mm512_set1_epi32(word ^ i32::from_ne_bytes([0x80; 4]));
            for (dot, &row) in dots.iter_mut().zip(&rows) {
                *dot = _mm512_dpbusd_epi32(*dot, word, row);
            }
        }
    }
    dots
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8_i32(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [i32]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let [dots] = int8(block, start, [candidate]);
        for (dots, out) in dots.into_iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: the reference covers 64 bytes, and the store needs no alignment.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), dots) };
        }
    }
}

#[target_feature(enable = "avx512f")]
fn count_i32(scores: &[i32], edges: &[i32], counts: &mut [i32]) {
    for (edges, counts) in edges.chunks(EDGES).zip(counts.chunks_mut(EDGES)) {
        let mut spread = [_mm512_setzero_si512(); EDGES];
        for (spread, &edge) in spread.iter_mut().zip(edges) {
            *spread = _mm512_set1_epi32(edge);
        }
        let minus_one = _mm512_set1_epi32(-1);
        let mut reached = [_mm512_setzero_si512(); EDGES];
        for step in scores.as_chunks::<16>().0 {
            // SAFETY: the reference covers 64 bytes, and the load needs no alignment.
            let step = unsafe { _mm512_loadu_si512(step.as_ptr().cast()) };
            for (reached, &edge) in reached.iter_mut().zip(&spread) {
                let is_reached = _mm512_cmpge_epi32_mask(step, edge);
                *reached = _mm512_mask_sub_epi32(*reached, is_reached, *reached, minus_one);
            }
        }
        for (reached, count) in reached.into_iter().zip(counts) {
            *count += _mm512_reduce_add_epi32(reached);
        }
    }
}

/// Counts bytes pairs of bytes.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512vpopcntdq"
)]
fn count_bytes(
    sequence: &ByteSequence<'_>,
    candidates: &[u8],
    per_candidate: usize,
    out: &mut [i32],
) {
    out.fill(0);
    let width = sequence.width;
    let together = candidates.chunks(CANDIDATES * width);
    for (candidates, out) in together.zip(out.chunks_mut(CANDIDATES * per_candidate)) {
        let mut each = candidates.chunks_exact(width);
        if candidates.len() == CANDIDATES * width {
            let candidates: [&[u8]; CANDIDATES] =
                std::array::from_fn(|_| each.next().unwrap_or_default());
            count_near_together(sequence, candidates, per_candidate, out);
        } else {
            for (candidate, out) in each.zip(out.chunks_exact_mut(per_candidate)) {
                count_near_together(sequence, [candidate], per_candidate, out);
            }
        }
    }
}

#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512vpopcntdq"
)]
fn count_near_together<const N: usize>(
    sequence: &ByteSequence<'_>,
    candidates: [&[u8]; N],
    per_candidate: usize,
    out: &mut [i32],
) {
    if sequence.edges.len() < 16 {
        count_near_steps::<N, 4>(sequence, candidates, per_candidate, out);
    } else {
        count_near_steps::<N, 5>(sequence, candidates, per_candidate, out);
    }
}

/// Counts like `count_near_together`, by a binary search of `STEPS` steps among the edges.
///
/// The masks of the steps are the bits of a pair's tier, highest first: bit planes, which are counted like
/// those of distances.
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512vpopcntdq"
)]
fn count_near_steps<const N: usize, const STEPS: usize>(
    sequence: &ByteSequence<'_>,
    candidates: [&[u8]; N],
    per_candidate: usize,
    out: &mut [i32],
) {
    // `steps[k]` holds at `n` the edge to compare with in the step that adds `2^k` to `n` edges reached.
    // Entries beyond the edges stand for one that any score may reach; their counts are not read.
    let mut steps = [_mm512_setzero_si512(); STEPS];
    for (k, step) in steps.iter_mut().enumerate() {
        let lanes: [i16; 32] = std::array::from_fn(|n| {
            let edge = sequence.edges.get(n + (1 << k) - 1);
            edge.copied().unwrap_or(i16::MAX)
        });
        // SAFETY: the reference covers 64 bytes, and the load needs no alignment.
        *step = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    }
    let groups = Zmm::WORDS;
    let size = LANES * sequence.width;
    let blocks = sequence.rows.chunks(groups * size);
    let starts = sequence.start.chunks(groups * LANES);
    for ((rows, start), segments) in blocks.zip(starts).zip(sequence.segments) {
        let mut planes = [[[0u64; 8]; STEPS]; N];
        let starts = start.as_chunks::<LANES>().0;
        for (group, (rows, start)) in rows.chunks_exact(size).zip(starts).enumerate() {
            let scores = int8(rows, start, candidates);
            for (planes, [a, b, c, d]) in planes.iter_mut().zip(scores) {
                let low = search(_mm512_packs_epi32(a, b), &steps);
                let high = search(_mm512_packs_epi32(c, d), &steps);
                for (plane, (low, high)) in planes.iter_mut().zip(low.into_iter().zip(high)) {
                    plane[group] = u64::from(low) | u64::from(high) << 32;
                }
            }
        }
        for (planes, out) in planes.iter().zip(out.chunks_exact_mut(per_candidate)) {
            // SAFETY: this function is compiled for the features of the instructions; planes have 8 words.
            unsafe {
                let plane = |k: usize| Zmm::load(planes[k].as_ptr());
                let four = planes::at_least_16(plane(3), plane(2), plane(1), plane(0));
                let edges = sequence.edges.len();
                if STEPS == 4 {
                    Zmm::tally(|edge| four[(edge + 1) & 15], edges, segments, out);
                } else {
                    let top = plane(STEPS - 1);
                    let all: [Zmm; 32] = std::array::from_fn(|i| match i {
                        0..16 => Zmm::or(top, four[i]),
                        _ => Zmm::and(top, four[i - 16]),
                    });
                    Zmm::tally(|edge| all[(edge + 1) & 31], edges, segments, out);
                }
            }
        }
    }
}

/// Returns the bits of the number of edges that each score reaches, the lowest first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn search<const STEPS: usize>(scores: __m512i, steps: &[__m512i; STEPS]) -> [u32; STEPS] {
    let mut bits = [0; STEPS];
    let mut reached = _mm512_setzero_si512();
    for k in (0..STEPS).rev() {
        let edge = _mm512_permutexvar_epi16(reached, steps[k]);
        bits[k] = _mm512_cmpge_epi16_mask(scores, edge);
        let more = _mm512_set1_epi16(1 << k);
        reached = _mm512_mask_add_epi16(reached, bits[k], reached, more);
    }
    bits
}

#[target_feature(enable = "avx512f")]
fn add_rows(table: &[f32], rows: &[usize], out: &mut [f32]) {
    portable::add_rows_in_place(table, rows, out);
}

#[target_feature(enable = "avx512f")]
fn add_half_rows(table: &[Bf16], rows: &[usize], out: &mut [f32]) {
    portable::add_rows_in_place(table, rows, out);
}
