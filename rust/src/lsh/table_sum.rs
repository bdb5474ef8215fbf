//! Sum of the table rows selected by a signature's groups of bits.

use super::Level;
use super::arch::Kernels;
use crate::bf16::Matrix;
use crate::error::{Error, Result};

/// Computes for each signature `out = Σ_g table[g, code_g]`: the code of group `g` consists of bits
/// `g·bits` to `g·bits + bits - 1`, bit 0 being the lowest of byte 0.
///
/// `table` is `[groups, 2^bits, width]` with `groups = 8·signature_bytes / bits`, `signatures`
/// `[n, signature_bytes]`, `out` `[n, width]`. Rows are added in the order of the groups, in 32 bits.
///
/// # Errors
/// [`Error::Request`] if `bits` is not 2, 4 or 8 or a length does not match; [`Error::Config`] if the CPU
/// lacks `level`.
pub fn table_sum(
    level: Level,
    bits: usize,
    table: Matrix<'_>,
    signature_bytes: usize,
    signatures: &[u8],
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    let kernels = Kernels::for_level(level)?;
    if !matches!(bits, 2 | 4 | 8) {
        return Err(Error::Request(format!(
            "table_sum: bits is {bits}, expected 2, 4 or 8"
        )));
    }
    let codes = 1usize << bits;
    let groups = signature_bytes * 8 / bits;
    let table_len = (groups * codes).checked_mul(width);
    let fits = table_len == Some(table.len())
        && signature_bytes > 0
        && signatures.len().is_multiple_of(signature_bytes)
        && (signatures.len() / signature_bytes).checked_mul(width) == Some(out.len());
    if !fits {
        return Err(Error::Request(format!(
            "table_sum: a table of {} floats, {} bytes of signatures and {} sums; expected [{groups}, {codes}, \
             {width}] floats, {signature_bytes} bytes a signature and {width} sums each",
            table.len(),
            signatures.len(),
            out.len()
        )));
    }
    if width == 0 {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(groups);
    for (signature, out) in signatures
        .chunks_exact(signature_bytes)
        .zip(out.chunks_exact_mut(width))
    {
        rows.clear();
        for &byte in signature {
            for shift in (0..8).step_by(bits) {
                let code = usize::from(byte) >> shift & (codes - 1);
                rows.push((rows.len() * codes + code) * width);
            }
        }
        // SAFETY: `Kernels::for_level` made sure that the CPU has the level of this kernel.
        unsafe {
            match table {
                Matrix::F32(table) => (kernels.add_rows)(table, &rows, out),
                Matrix::Bf16(table) => (kernels.add_half_rows)(table, &rows, out),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;

    #[test]
    fn every_level_adds_the_same_floats_in_the_order_of_the_groups() {
        let signatures: Vec<u8> = (0..30u32).map(|i| (i * 151 % 256) as u8).collect();
        for (bits, width) in [(2, 1), (4, 64), (4, 67), (8, 130)] {
            let (codes, groups) = (1 << bits, 6 * 8 / bits);
            let table: Vec<f32> = (0..groups * codes * width)
                .map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 7.0)
                .collect();
            let mut expected = vec![0.0f32; 5 * width];
            for (signature, out) in signatures
                .chunks_exact(6)
                .zip(expected.chunks_exact_mut(width))
            {
                for group in 0..groups {
                    let byte = signature[group * bits / 8];
                    let code = usize::from(byte) >> (group * bits % 8) & (codes - 1);
                    let row = &table[(group * codes + code) * width..][..width];
                    out.iter_mut()
                        .zip(row)
                        .for_each(|(sum, value)| *sum += value);
                }
            }
            // 16-bit tables are compared with the sum of their widened values.
            let halves: Vec<Bf16> = table.iter().map(|&value| Bf16::round(value)).collect();
            let widened: Vec<f32> = halves.iter().map(|half| half.widen()).collect();
            let run = |level, table: Matrix<'_>| {
                let mut sums = vec![f32::NAN; 5 * width];
                table_sum(level, bits, table, 6, &signatures, width, &mut sums).unwrap();
                sums
            };
            for level in Level::ALL.into_iter().filter(|level| level.runs_here()) {
                assert_eq!(
                    run(level, Matrix::F32(&table)),
                    expected,
                    "{level:?} {bits} {width}"
                );
                assert_eq!(
                    run(level, Matrix::Bf16(&halves)),
                    run(Level::Scalar, Matrix::F32(&widened)),
                    "{level:?} {bits} {width}, halves"
                );
            }
        }
    }
}
