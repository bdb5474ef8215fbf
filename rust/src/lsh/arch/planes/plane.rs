//! Register of bits, and its operations.

use std::mem::MaybeUninit;

/// Codes made together, from 12 bytes of a candidate.
pub(in crate::lsh) const CODES: usize = 32;

/// Bytes of the buffer for the longest candidate, with room for all of its codes and a load of 16 bytes at
/// the last 12.
pub(in crate::lsh) const PADDED: usize = 6 * 12 + 4;

/// Words of a plane that belong to one channel, and the offset of its counts in those of a candidate.
#[derive(Clone, Copy, Debug)]
pub(in crate::lsh) struct Segment {
    /// First word in the block.
    pub first: usize,
    /// One past the last word.
    pub end: usize,
    /// Offset of its counts.
    pub at: usize,
}

/// Register of bits, one a pair.
///
/// # Safety
/// Callers of all functions must be compiled for the instruction set of the type, and the CPU must have it.
#[allow(clippy::missing_safety_doc)] // stated once for all methods
pub(in crate::lsh) trait Plane: Copy {
    /// Number of 64-bit words.
    const WORDS: usize;

    /// Loads the words at `from`, which need no alignment; they must be readable.
    unsafe fn load(from: *const u64) -> Self;
    /// Stores the words at `to`, which must be writable.
    unsafe fn store(self, to: *mut u64);
    /// Returns zero bits.
    unsafe fn zeros() -> Self;
    /// Returns one bits.
    unsafe fn ones() -> Self;
    unsafe fn and(a: Self, b: Self) -> Self;
    unsafe fn or(a: Self, b: Self) -> Self;
    unsafe fn xor(a: Self, b: Self) -> Self;

    /// Returns the low bit of `a + b + c`.
    #[inline(always)]
    unsafe fn sum(a: Self, b: Self, c: Self) -> Self {
        // SAFETY: by the rule of the trait.
        unsafe { Self::xor(Self::xor(a, b), c) }
    }

    /// Returns the high bit of `a + b + c`.
    #[inline(always)]
    unsafe fn carry(a: Self, b: Self, c: Self) -> Self {
        // SAFETY: by the rule of the trait.
        unsafe { Self::or(Self::and(a, b), Self::and(Self::xor(a, b), c)) }
    }

    /// Returns `a | (b & c)`.
    #[inline(always)]
    unsafe fn or_and(a: Self, b: Self, c: Self) -> Self {
        // SAFETY: by the rule of the trait.
        unsafe { Self::or(a, Self::and(b, c)) }
    }

    /// Returns `a & (b | c)`.
    #[inline(always)]
    unsafe fn and_or(a: Self, b: Self, c: Self) -> Self {
        // SAFETY: by the rule of the trait.
        unsafe { Self::and(a, Self::or(b, c)) }
    }

    /// Writes the codes of a candidate.
    #[inline(always)]
    unsafe fn encode(candidate: &[u8; PADDED], codes: &mut [[[MaybeUninit<u8>; 2]; CODES]]) {
        for (bytes, codes) in candidate.chunks_exact(3 * CODES / 8).zip(codes) {
            for (bytes, codes) in bytes
                .as_chunks::<3>()
                .0
                .iter()
                .zip(codes.as_chunks_mut::<8>().0)
            {
                let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
                for (i, code) in codes.iter_mut().enumerate() {
                    let all = const { codes_of_all(Self::WORDS) };
                    *code = all[(bits >> (3 * i) & 7) as usize].map(MaybeUninit::new);
                }
            }
        }
    }

    /// Adds the number of ones of planes `0..n` to the counts of each segment, which start at
    /// `out[segment.at]`.
    #[inline(always)]
    unsafe fn tally(
        plane: impl Fn(usize) -> Self,
        n: usize,
        segments: &[Segment],
        out: &mut [i32],
    ) {
        for i in 0..n {
            let mut words = [0u64; 8];
            // SAFETY: no plane has more than 8 words.
            unsafe { plane(i).store(words.as_mut_ptr()) };
            for segment in segments {
                let ones: u32 = words[segment.first..segment.end]
                    .iter()
                    .map(|word| word.count_ones())
                    .sum();
                out[segment.at + i] += ones as i32;
            }
        }
    }
}

/// Positions of the low and the high bit of a triple in the table, in words from its first entry.
pub(in crate::lsh) type Code = [u8; 2];

/// Returns the codes of a triple for the candidate's bits 0, 1, .., 7, if planes have so many words.
pub(in crate::lsh) const fn codes_of_all(words: usize) -> [Code; 8] {
    let mut all = [[0; 2]; 8];
    let mut value = 0u8;
    while value < 8 {
        let parity = value.count_ones() as usize % 2;
        all[value as usize] = [(parity * words) as u8, ((2 + value as usize) * words) as u8];
        value += 1;
    }
    all
}
