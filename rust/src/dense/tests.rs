use super::*;

/// Returns a pseudo-random value of few bits, so that sums of products are exact.
fn small(i: usize) -> f32 {
    ((i * 7919 + 13) % 41) as f32 / 8.0 - 2.5
}

/// Computes `out + x · W`, number by number.
fn naive(x: &[f32], w: &[f32], outputs: usize, out: &[f32], rows: usize) -> Vec<f32> {
    let depth = w.len() / outputs;
    let mut sums = out.to_vec();
    for row in 0..rows {
        for output in 0..outputs {
            for i in 0..depth {
                sums[row * outputs + output] += x[row * depth + i] * w[i * outputs + output];
            }
        }
    }
    sums
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.runs_here())
}

/// Pads rows of `outputs` to `width` with zeros.
fn padded(values: &[f32], outputs: usize, width: usize) -> Vec<f32> {
    let rows = values.chunks_exact(outputs);
    rows.flat_map(|row| {
        row.iter()
            .copied()
            .chain(std::iter::repeat_n(0.0, width - outputs))
    })
    .collect()
}

#[test]
fn every_level_multiplies_as_the_definition_does() {
    for (depth, outputs, rows) in [
        (1, 1, 12),
        (2, 3, 24),
        (7, 16, 12),
        (33, 50, 12),
        (64, 64, 36),
        (16, 128, 24),
        (21, 200, 12),
        (5, 17, 60),
    ] {
        let x: Vec<f32> = (0..rows * depth).map(small).collect();
        let w: Vec<f32> = (0..depth * outputs).map(|i| small(i + 3)).collect();
        let before: Vec<f32> = (0..rows * outputs).map(|i| small(i + 5)).collect();
        let expected = naive(&x, &w, outputs, &before, rows);
        for level in levels() {
            // Numbers this small are exact in 8 bits and their sums in 24, in any order.
            let parts = w.split_at(depth / 2 * outputs);
            let parts = [Matrix::F32(parts.0), Matrix::F32(parts.1)];
            let f32 = Weights::new(level, outputs, &parts).unwrap();
            let width = f32.padded_outputs();
            let mut out = padded(&before, outputs, width);
            f32.multiply(Inputs::F32(&x, depth), &mut out);
            let case = format!("{level:?} {depth} {outputs}");
            assert_eq!(out, padded(&expected, outputs, width), "{case}");
            let Some(bf16) = Weights::new_bf16(level, outputs, &parts).unwrap() else {
                continue;
            };
            let stride = bf16.padded_inputs();
            let x = padded(&x, depth, stride);
            let x: Vec<Bf16> = x.into_iter().map(Bf16::round).collect();
            let mut out = padded(&before, outputs, width);
            bf16.multiply(Inputs::Bf16(&x, stride), &mut out);
            assert_eq!(out, padded(&expected, outputs, width), "{case}, bf16");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_block() {
    let (depth, outputs, rows) = (37, 80, 36);
    let x: Vec<f32> = (0..rows * depth).map(|i| small(i).sin()).collect();
    let w: Vec<f32> = (0..depth * outputs).map(|i| small(i).cos()).collect();
    for level in levels() {
        let weights = Weights::new(level, outputs, &[Matrix::F32(&w)]).unwrap();
        let width = weights.padded_outputs();
        let mut all = vec![0.0f32; rows * width];
        weights.multiply(Inputs::F32(&x, depth), &mut all);
        for row in 0..rows {
            let place = row % ROWS;
            let mut block = vec![0.5; ROWS * depth];
            block[place * depth..][..depth].copy_from_slice(&x[row * depth..][..depth]);
            let mut out = vec![0.0f32; ROWS * width];
            weights.multiply(Inputs::F32(&block, depth), &mut out);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(&out[place * width..][..width]),
                bits(&all[row * width..][..width]),
                "{level:?}"
            );
        }
    }
}

#[test]
fn fused_levels_agree_to_the_bit() {
    let (depth, outputs) = (53, 128);
    let x: Vec<f32> = (0..ROWS * depth).map(|i| small(i).sin()).collect();
    let w: Vec<f32> = (0..depth * outputs).map(|i| small(i).cos()).collect();
    let mut seen: Option<Vec<f32>> = None;
    for level in levels().filter(|&level| level != Level::Scalar) {
        let weights = Weights::new(level, outputs, &[Matrix::F32(&w)]).unwrap();
        let mut out = vec![0.0; ROWS * outputs];
        weights.multiply(Inputs::F32(&x, depth), &mut out);
        assert_eq!(*seen.get_or_insert_with(|| out.clone()), out, "{level:?}");
    }
}

#[test]
fn scratch_memory_of_more_bytes_than_an_address_is_refused() {
    let mut numbers = Aligned::<f32>::default();
    for len in [(1 << 62) + 1, usize::MAX] {
        let error = numbers.get_mut(len).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
    }
    assert!(numbers.all().is_empty());
}

#[test]
fn bf16_inputs_may_start_at_any_number_but_rows_start_at_pairs() {
    let (depth, outputs) = (6, 16);
    let w: Vec<f32> = (0..depth * outputs).map(small).collect();
    let numbers = (0..=ROWS * (depth + 1)).map(|i| Bf16::round(small(i)));
    let numbers: Vec<Bf16> = numbers.collect();
    for level in levels() {
        let Some(weights) = Weights::new_bf16(level, outputs, &[Matrix::F32(&w)]).unwrap() else {
            continue;
        };
        let multiply = |x: &[Bf16], stride| {
            let mut out = vec![0.0; ROWS * weights.padded_outputs()];
            weights.multiply(Inputs::Bf16(x, stride), &mut out);
            out
        };
        // One of the two lies across the boundaries of pairs.
        let shifted = &numbers[1..];
        let copied = shifted.to_vec();
        assert_eq!(multiply(shifted, depth), multiply(&copied, depth));
        let odd = std::panic::catch_unwind(|| multiply(&numbers, depth + 1)).unwrap_err();
        let message = odd.downcast_ref::<String>().unwrap();
        assert!(
            message.contains("7 apart, are not whole pairs"),
            "{message}"
        );
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let error = Weights::new(Level::Scalar, 3, &[Matrix::F32(&[0.0; 4])]).unwrap_err();
    assert!(matches!(error, Error::Request(_)), "{error:?}");
    assert!(Weights::new(Level::Scalar, 0, &[Matrix::F32(&[0.0; 4])]).is_err());
    let weights = Weights::new(Level::Scalar, 2, &[Matrix::F32(&[1.0; 4])]).unwrap();
    let short = std::panic::catch_unwind(|| {
        let mut out = vec![0.0; ROWS * weights.padded_outputs()];
        weights.multiply(Inputs::F32(&[0.0; 5], 2), &mut out);
    });
    assert!(short.is_err());
}
