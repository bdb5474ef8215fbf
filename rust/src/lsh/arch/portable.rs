//! Plain loops over small arrays, which the compiler vectorises for what it builds for.

use super::super::pack::LANES;
use super::Kernels;

pub(super) const KERNELS: Kernels = Kernels {
    simhash_group: 1,
    int8_group: 1,
    int8_offset: 0,
    simhash_i8: simhash,
    simhash_i16: simhash,
    int8_i16: int8,
    int8_i32: int8,
    count_i8: count::<i8, u8, 255>,
    count_i16: count::<i16, u16, 65_535>,
    count_i32: count::<i32, u32, { usize::MAX }>,
    add_rows,
};

/// Integers that scores are kept in.
trait Lane: Copy + PartialOrd {
    /// The nearest value to `score`.
    fn saturate(score: i32) -> Self;
}

macro_rules! lane {
    ($($lane:ty),*) => {$(
        impl Lane for $lane {
            #[inline]
            fn saturate(score: i32) -> Self {
                score.clamp(<$lane>::MIN.into(), <$lane>::MAX.into()) as $lane
            }
        }
    )*};
}

lane!(i8, i16, i32);

fn simhash<T: Lane>(blocks: &[u8], start: &[i16], candidate: &[u8], out: &mut [T]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let mut equal = *start;
        // 16 bytes differ in at most 128 bits, which a byte can count.
        for (bytes, rows) in candidate.chunks(16).zip(block.chunks(16 * LANES)) {
            let mut differ = [0u8; LANES];
            for (&byte, row) in bytes.iter().zip(rows.as_chunks::<LANES>().0) {
                for (differ, &other) in differ.iter_mut().zip(row) {
                    *differ += (byte ^ other).count_ones() as u8;
                }
            }
            for (equal, &differ) in equal.iter_mut().zip(&differ) {
                *equal -= i16::from(differ);
            }
        }
        for (out, &equal) in out.iter_mut().zip(&equal) {
            *out = T::saturate(equal.into());
        }
    }
}

fn int8<T: Lane>(blocks: &[u8], start: &[i32], candidate: &[u8], out: &mut [T]) {
    let blocks = blocks.chunks_exact(LANES * candidate.len());
    let starts = start.as_chunks::<LANES>().0;
    for ((block, start), out) in blocks.zip(starts).zip(out.as_chunks_mut::<LANES>().0) {
        let mut dot = *start;
        for (&byte, row) in candidate.iter().zip(block.as_chunks::<LANES>().0) {
            for (dot, &other) in dot.iter_mut().zip(row) {
                *dot += i32::from(i16::from(byte as i8) * i16::from(other as i8));
            }
        }
        for (out, &dot) in out.iter_mut().zip(&dot) {
            *out = T::saturate(dot);
        }
    }
}

/// Counts lane by lane in integers of type `C`, which `LIMIT` steps cannot overflow.
fn count<T, C, const LIMIT: usize>(scores: &[T], edges: &[T], counts: &mut [u32])
where
    T: Lane,
    C: Copy + Default + From<bool> + Into<u32> + std::ops::AddAssign,
{
    const STEP: usize = 64;
    for (&edge, count) in edges.iter().zip(counts) {
        *count = 0;
        for scores in scores.as_chunks::<STEP>().0.chunks(LIMIT) {
            let mut reached = [C::default(); STEP];
            for step in scores {
                for (reached, &score) in reached.iter_mut().zip(step) {
                    *reached += C::from(score >= edge);
                }
            }
            *count += reached.iter().map(|&reached| reached.into()).sum::<u32>();
        }
    }
}

fn add_rows(table: &[f32], rows: &[usize], out: &mut [f32]) {
    add_rows_in_place(table, rows, out);
}

/// The sum of rows, a piece of the row at a time, so that the running sum stays in registers.
///
/// Inlined into functions of each instruction set, which is all that it takes. Rows are added one after
/// the other in every lane, so that all of them round alike.
#[inline(always)]
pub(super) fn add_rows_in_place(table: &[f32], rows: &[usize], out: &mut [f32]) {
    const PIECE: usize = 64;
    let width = out.len();
    let (pieces, rest) = out.as_chunks_mut::<PIECE>();
    let done = pieces.len() * PIECE;
    for (piece, out) in pieces.iter_mut().enumerate() {
        let mut sum = [0.0f32; PIECE];
        for &row in rows {
            let row = &table[row + piece * PIECE..][..PIECE];
            for (sum, &value) in sum.iter_mut().zip(row) {
                *sum += value;
            }
        }
        *out = sum;
    }
    if !rest.is_empty() {
        rest.fill(0.0);
        for &row in rows {
            let row = &table[row + done..row + width];
            for (sum, &value) in rest.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}
