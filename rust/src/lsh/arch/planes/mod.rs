//! Bit-sliced Hamming distances: a register holds one bit of each of its pairs, and registers are added up
//! by carry-save adders.
//!
//! The 3 bits of a signature at one triple of positions can differ from the candidate's in 8 ways, and the
//! number of differences has 2 bits. For each block of behaviours and each triple a table holds those two
//! bits for all ways: the low one for either parity of the candidate's bits, the high one for each value of
//! them. So a candidate's distances are the sum of two table entries a triple, computed by a tree of full
//! adders: 1.3 adders a triple and register of pairs, each two instructions where the CPU has functions of
//! three operands, without popcounts or unpacking. (Carry-save adders as in W. Muła, N. Kurz and D. Lemire,
//! "Faster Population Counts Using AVX2 Instructions", arXiv 1611.07612.)

// Inlined, so that the code is compiled for the instruction set of its caller.
#![allow(clippy::inline_always)]

mod adder;
mod layout;
mod plane;
mod tally;

pub(in crate::lsh) use layout::{VARIANTS, slice, triples};
pub(in crate::lsh) use plane::{CODES, PADDED, Plane, Segment, codes_of_all};
pub(in crate::lsh) use tally::at_least_16;

use adder::distances;
use std::mem::MaybeUninit;
use tally::tally_far;

/// Maximum number of codes of a tile of candidates: 32 candidates of 256 bits.
const TILE_CODES: usize = 32 * 96;

/// Argument of the counting kernel: a bit-sliced sequence.
#[derive(Clone, Copy, Debug)]
pub(in crate::lsh) struct Sliced<'a> {
    /// Bytes of a signature.
    pub width: usize,
    /// The tables of all blocks, `[blocks][triples][VARIANTS][WORDS]`.
    pub tables: &'a [u64],
    /// The segments of each block.
    pub segments: &'a [Vec<Segment>],
    /// Distances, from 1 to the number of bits of a signature.
    pub thresholds: &'a [u16],
}

/// Counts, for each candidate and segment, the behaviours at or beyond each threshold into `out`, which has
/// `per_candidate` counts for each.
///
/// # Safety
/// As for [`Plane`].
#[inline(always)]
pub(in crate::lsh) unsafe fn count<P: Plane>(
    sequence: &Sliced<'_>,
    candidates: &[u8],
    per_candidate: usize,
    out: &mut [i32],
) {
    // SAFETY: passed on.
    unsafe {
        match sequence.width {
            8 => count_width::<P, 22>(sequence, candidates, per_candidate, out),
            16 => count_width::<P, 43>(sequence, candidates, per_candidate, out),
            32 => count_width::<P, 86>(sequence, candidates, per_candidate, out),
            64 => count_width::<P, 171>(sequence, candidates, per_candidate, out),
            width => unreachable!("no signatures have {width} bytes"),
        }
    }
}

#[inline(always)]
unsafe fn count_width<P: Plane, const TRIPLES: usize>(
    sequence: &Sliced<'_>,
    candidates: &[u8],
    per_candidate: usize,
    out: &mut [i32],
) {
    let &Sliced {
        width,
        tables,
        segments,
        thresholds,
    } = sequence;
    let codes_each = const { TRIPLES.next_multiple_of(CODES) };
    let tile = TILE_CODES / codes_each;
    assert!(width == const { TRIPLES * 3 / 8 / 8 * 8 });
    assert!(
        thresholds
            .iter()
            .all(|&far| (1..=8 * width).contains(&far.into()))
    );
    let mut codes = [[MaybeUninit::<u8>::uninit(); 2]; TILE_CODES];
    let outs = out.chunks_mut(tile * per_candidate);
    for (candidates, out) in candidates.chunks(tile * width).zip(outs) {
        out.fill(0);
        for (candidate, codes) in candidates
            .chunks_exact(width)
            .zip(codes.chunks_exact_mut(codes_each))
        {
            let mut padded = [0; PADDED];
            padded[..width].copy_from_slice(candidate);
            // SAFETY: passed on.
            unsafe { P::encode(&padded, codes.as_chunks_mut().0) };
        }
        let blocks = tables.chunks_exact(TRIPLES * VARIANTS * P::WORDS);
        for (table, segments) in blocks.zip(segments) {
            for (codes, out) in codes
                .chunks_exact(codes_each)
                .zip(out.chunks_exact_mut(per_candidate))
            {
                // SAFETY: `encode` wrote all of these codes; the table has its size.
                unsafe {
                    let codes = std::slice::from_raw_parts(codes.as_ptr().cast(), codes_each);
                    let planes = distances::<P, TRIPLES>(table, codes);
                    tally_far::<P, TRIPLES>(&planes, thresholds, segments, out);
                }
            }
        }
    }
}
