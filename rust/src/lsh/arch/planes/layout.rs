//! Tables of bit planes of a sequence.

use crate::lsh::pack::{EMPTY, LANES};

/// Table entries of a triple: 2 low bits, 8 high bits.
pub(in crate::lsh) const VARIANTS: usize = 10;

/// Returns the number of triples of a signature of `width` bytes.
pub(in crate::lsh) const fn triples(width: usize) -> usize {
    (8 * width).div_ceil(3)
}

/// Writes the table `[triples][VARIANTS][W]` of a block: `rows` are the behaviours in its lanes, [`EMPTY`]
/// where there is none and missing at the end. An empty lane has distance 0 from every candidate.
#[inline(always)]
pub(in crate::lsh) fn slice<const W: usize>(
    rows: &[u32],
    signatures: &[u8],
    width: usize,
    table: &mut [u64],
) {
    let mut planes = [[0u64; W]; 64 * 8 + 2];
    let mut filled = [0u64; W];
    for (lane, rows) in rows.chunks(LANES).enumerate() {
        for (bit, &row) in rows.iter().enumerate().filter(|&(_, &row)| row != EMPTY) {
            filled[lane] |= 1 << bit;
            let words = signatures[row as usize * width..][..width]
                .as_chunks::<8>()
                .0;
            for (word, &bytes) in words.iter().enumerate() {
                planes[word * 64 + bit][lane] = u64::from_le_bytes(bytes);
            }
        }
    }
    for matrix in planes.as_chunks_mut::<64>().0.iter_mut().take(width / 8) {
        transpose(matrix);
    }
    let xor = |a: [u64; W], b: [u64; W]| std::array::from_fn(|i| a[i] ^ b[i]);
    let triples = planes.as_chunks::<3>().0;
    for (&[a, b, c], out) in triples.iter().zip(table.chunks_exact_mut(VARIANTS * W)) {
        let out = out.as_chunks_mut::<W>().0;
        out[0] = xor(xor(a, b), c);
        out[1] = xor(out[0], filled);
        for (value, out) in out[2..].iter_mut().enumerate() {
            let flipped = |bit: usize, plane| {
                if value >> bit & 1 == 1 {
                    xor(plane, filled)
                } else {
                    plane
                }
            };
            let (a, b, c) = (flipped(0, a), flipped(1, b), flipped(2, c));
            *out = std::array::from_fn(|i| a[i] & b[i] | (a[i] ^ b[i]) & c[i]);
        }
    }
}

/// Transposes `W` adjacent matrices of 64 x 64 bits (Warren, *Hacker's Delight*, 7-3).
#[inline(always)]
fn transpose<const W: usize>(rows: &mut [[u64; W]; 64]) {
    let mut step = 32;
    let mut low = u64::MAX >> 32;
    while step > 0 {
        for pair in rows.chunks_exact_mut(2 * step) {
            let (first, second) = pair.split_at_mut(step);
            for (first, second) in first.iter_mut().zip(second) {
                for (a, b) in first.iter_mut().zip(second) {
                    let differ = (*a >> step ^ *b) & low;
                    *a ^= differ << step;
                    *b ^= differ;
                }
            }
        }
        step /= 2;
        low ^= low << step;
    }
}
