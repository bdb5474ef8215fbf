//! Counts of distances at or beyond thresholds.

// Single-letter names follow the convention for adders.
#![allow(clippy::many_single_char_names)]

use super::adder::PLANES;
use super::plane::{Plane, Segment};

/// Counts the distances at or beyond each threshold.
///
/// Both halves of a distance are compared with all their values at once; a threshold then needs three of
/// these planes.
///
/// # Safety
/// As for [`Plane`]; thresholds are from 1 to the bits of a signature.
#[inline(always)]
pub(super) unsafe fn tally_far<P: Plane, const TRIPLES: usize>(
    planes: &[P; PLANES],
    thresholds: &[u16],
    segments: &[Segment],
    out: &mut [i32],
) {
    let p = planes;
    // SAFETY: by the caller's contract; no threshold is beyond the highest value below.
    unsafe {
        let (ones, zeros) = (P::ones(), P::zeros());
        let low = at_least_16(p[3], p[2], p[1], p[0]);
        // The highest plane is set only at the distance of all bits: the lower ones then count as set.
        if TRIPLES < 43 {
            let some = P::or(p[6], p[5]);
            let high = [
                ones,
                P::or(some, p[4]),
                some,
                P::or_and(p[6], p[5], p[4]),
                p[6],
                zeros,
            ];
            tally_digits(&high, &low, thresholds, segments, out);
        } else if TRIPLES < 86 {
            let high = at_least_16(p[7], p[6], p[5], p[4]);
            tally_digits(&high, &low, thresholds, segments, out);
        } else if TRIPLES < 171 {
            let [a, b, c, d] = [p[7], p[6], p[5], p[4]].map(|plane| P::or(plane, p[8]));
            let four = at_least_16(a, b, c, d);
            let high: [P; 18] = std::array::from_fn(|i| match i {
                0..16 => four[i],
                16 => p[8],
                _ => zeros,
            });
            tally_digits(&high, &low, thresholds, segments, out);
        } else {
            let [top, a, b, c, d] = [p[8], p[7], p[6], p[5], p[4]].map(|plane| P::or(plane, p[9]));
            let four = at_least_16(a, b, c, d);
            let high: [P; 34] = std::array::from_fn(|i| match i {
                0 => ones,
                1..16 => P::or(top, four[i]),
                16..32 => P::and(top, four[i - 16]),
                32 => p[9],
                _ => zeros,
            });
            tally_digits(&high, &low, thresholds, segments, out);
        }
    }
}

/// Counts the two-digit numbers that reach each threshold: `high` and `low` hold whether a digit is at
/// least 0, 1, and so on.
///
/// # Safety
/// As for [`Plane`]; `high` has an entry for the high digit of each threshold and one more.
#[inline(always)]
unsafe fn tally_digits<P: Plane>(
    high: &[P],
    low: &[P; 16],
    thresholds: &[u16],
    segments: &[Segment],
    out: &mut [i32],
) {
    let reached = |i: usize| {
        // SAFETY: `tally` passes the planes of thresholds; the rest by the contract of this function.
        unsafe {
            let threshold = usize::from(*thresholds.get_unchecked(i));
            let (digit, next) = (threshold >> 4, low[threshold & 15]);
            let equal = *high.get_unchecked(digit);
            P::or_and(*high.get_unchecked(digit + 1), equal, next)
        }
    };
    // SAFETY: passed on.
    unsafe { P::tally(reached, thresholds.len(), segments, out) };
}

/// Returns whether the number of four bits, the highest first, is at least 0, 1, .., 15.
#[inline(always)]
pub(in crate::lsh) unsafe fn at_least_16<P: Plane>(a: P, b: P, c: P, d: P) -> [P; 16] {
    // SAFETY: passed on.
    unsafe {
        let (either, both) = (P::or(a, b), P::and(a, b));
        let low = [P::or(c, d), c, P::and(c, d)];
        [
            P::ones(),
            P::or(either, low[0]),
            P::or(either, low[1]),
            P::or(either, low[2]),
            either,
            P::or_and(a, b, low[0]),
            P::or_and(a, b, low[1]),
            P::or_and(a, b, low[2]),
            a,
            P::and_or(a, b, low[0]),
            P::and_or(a, b, low[1]),
            P::and_or(a, b, low[2]),
            both,
            P::and(both, low[0]),
            P::and(both, low[1]),
            P::and(both, low[2]),
        ]
    }
}
