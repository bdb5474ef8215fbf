//! Bit planes of 512 pairs: logic of three operands (VPTERNLOG), counts of 64-bit lanes (VPOPCNTDQ),
//! permuted by VBMI.

// Inlined, so that the code is compiled for the instruction set of its caller.
#![allow(clippy::inline_always)]

use super::planes::{self, CODES, PADDED, Plane, Segment, Sliced, codes_of_all};
use std::arch::x86_64::{
    __m512i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi32, _mm256_mask_storeu_epi32,
    _mm256_maskz_loadu_epi32, _mm512_and_si512, _mm512_castsi128_si512, _mm512_cvtepi64_epi32,
    _mm512_loadu_si512, _mm512_maskz_mov_epi8, _mm512_or_si512, _mm512_permutexvar_epi8,
    _mm512_permutexvar_epi16, _mm512_popcnt_epi64, _mm512_sad_epu8, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_shrdi_epi64, _mm512_srl_epi64, _mm512_srlv_epi16,
    _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};
use std::mem::MaybeUninit;

/// Register of the AVX-512 level.
#[derive(Clone, Copy)]
pub(super) struct Zmm(pub __m512i);

/// Thresholds whose counts share one register, a byte each in every lane.
const TOGETHER: usize = 8;

/// Permutation of byte `8·lane + i` to `8·i + lane`.
const TRANSPOSED: [u8; 64] = {
    let mut index = [0; 64];
    let mut at = 0;
    while at < 64 {
        index[at] = (at % 8 * 8 + at / 8) as u8;
        at += 1;
    }
    index
};

/// Position of the bits of each of 32 triples: the byte and the next one, and a shift.
const TRIPLE_BYTES: [u16; CODES] = triples(false);
const TRIPLE_SHIFTS: [u16; CODES] = triples(true);

const fn triples(shifts: bool) -> [u16; CODES] {
    let mut table = [0; CODES];
    let mut i = 0;
    while i < CODES {
        let (byte, shift) = (3 * i as u16 / 8, 3 * i as u16 % 8);
        table[i] = if shifts {
            shift
        } else {
            (byte + 1) << 8 | byte
        };
        i += 1;
    }
    table
}

/// Codes of each value of a triple, independent of the bits above its three.
const VALUE_CODES: [u16; CODES] = {
    let all = codes_of_all(Zmm::WORDS);
    let mut table = [0; CODES];
    let mut i = 0;
    while i < CODES {
        table[i] = u16::from_le_bytes(all[i % 8]);
        i += 1;
    }
    table
};

macro_rules! logic {
    ($($name:ident = $table:literal;)*) => {$(
        #[inline(always)]
        unsafe fn $name(a: Self, b: Self, c: Self) -> Self {
            // SAFETY: by the rule of the trait.
            Self(unsafe { _mm512_ternarylogic_epi64::<$table>(a.0, b.0, c.0) })
        }
    )*};
}

impl Plane for Zmm {
    const WORDS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        // SAFETY: by the rule of the trait.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn zeros() -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm512_setzero_si512() })
    }

    #[inline(always)]
    unsafe fn ones() -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm512_set1_epi64(-1) })
    }

    #[inline(always)]
    unsafe fn and(a: Self, b: Self) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm512_and_si512(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn or(a: Self, b: Self) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm512_or_si512(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn xor(a: Self, b: Self) -> Self {
        // SAFETY: by the rule of the trait.
        Self(unsafe { _mm512_xor_si512(a.0, b.0) })
    }

    // The index into a table is `4a + 2b + c`.
    logic! {
        sum = 0x96;
        carry = 0xe8;
        or_and = 0xf8;
        and_or = 0xe0;
    }

    #[inline(always)]
    unsafe fn encode(candidate: &[u8; PADDED], codes: &mut [[[MaybeUninit<u8>; 2]; CODES]]) {
        let load = |table: &[u16; CODES]| {
            // SAFETY: the reference covers 64 bytes, and the load needs no alignment.
            unsafe { _mm512_loadu_si512(table.as_ptr().cast()) }
        };
        for (i, codes) in codes.iter_mut().enumerate() {
            let bytes = &candidate[3 * CODES / 8 * i..][..16];
            // SAFETY: by the rule of the trait; 16 bytes are read and 64 written, none of which need alignment.
            unsafe {
                let bytes = _mm512_castsi128_si512(_mm_loadu_si128(bytes.as_ptr().cast()));
                let bits = _mm512_permutexvar_epi8(load(&TRIPLE_BYTES), bytes);
                let values = _mm512_srlv_epi16(bits, load(&TRIPLE_SHIFTS));
                let made = _mm512_permutexvar_epi16(values, load(&VALUE_CODES));
                _mm512_storeu_si512(codes.as_mut_ptr().cast(), made);
            }
        }
    }

    #[inline(always)]
    unsafe fn tally(
        plane: impl Fn(usize) -> Self,
        n: usize,
        segments: &[Segment],
        out: &mut [i32],
    ) {
        for from in (0..n).step_by(TOGETHER) {
            let together = (n - from).min(TOGETHER);
            // SAFETY: by the rule of the trait; counts are read and written inside `out`, as its slices show.
            unsafe {
                // Each lane has up to 64 ones, which fits a byte: its bytes are shifted in from above.
                let mut counts = _mm512_setzero_si512();
                for i in from..from + together {
                    let ones = _mm512_popcnt_epi64(plane(i).0);
                    counts = _mm512_shrdi_epi64::<8>(counts, ones);
                }
                let missing = _mm_cvtsi32_si128(8 * (TOGETHER - together) as i32);
                let counts = _mm512_srl_epi64(counts, missing);
                let index = _mm512_loadu_si512(TRANSPOSED.as_ptr().cast());
                let counts = _mm512_permutexvar_epi8(index, counts);
                let wanted = (u16::MAX >> (16 - together)) as u8;
                for segment in segments {
                    let words = (1 << segment.end) - (1 << segment.first);
                    let words = u64::from_ne_bytes([words as u8; 8]);
                    let counts = _mm512_maskz_mov_epi8(words, counts);
                    let sums =
                        _mm512_cvtepi64_epi32(_mm512_sad_epu8(counts, _mm512_setzero_si512()));
                    let out = out[segment.at + from..][..together].as_mut_ptr();
                    let sums = _mm256_add_epi32(_mm256_maskz_loadu_epi32(wanted, out), sums);
                    _mm256_mask_storeu_epi32(out, wanted, sums);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq")]
pub(super) fn count(
    sequence: &Sliced<'_>,
    candidates: &[u8],
    per_candidate: usize,
    out: &mut [i32],
) {
    // SAFETY: this function is compiled for the features of the instructions.
    unsafe { planes::count::<Zmm>(sequence, candidates, per_candidate, out) };
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn slice(rows: &[u32], signatures: &[u8], width: usize, table: &mut [u64]) {
    planes::slice::<8>(rows, signatures, width, table);
}
