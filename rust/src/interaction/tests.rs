//! Comparison of every level with the formula, number by number in 64 bits, over random models and rows.

mod case;

use super::*;
use crate::cache::{CacheConfig, DType, RowLayout};
use case::{Case, Random};
use proptest::prelude::*;

fn check(seed: u64, dtype: DType, n: usize) {
    let case = Case::new(&mut Random(seed), dtype, n);
    let halves: Vec<Bf16> = case
        .factors
        .iter()
        .map(|&value| Bf16::round(value))
        .collect();
    let expected: Vec<Vec<f64>> = (0..n).map(|i| case.expected(i)).collect();
    let largest = expected
        .iter()
        .flatten()
        .fold(1.0f64, |most, value| most.max(value.abs()));
    let mut there = vec![false; n];
    case.cache.contains(&case.keys, |i, found| there[i] = found);
    for level in Level::ALL.into_iter().filter(|level| level.runs_here()) {
        case.with_model(&halves, |model| {
            let interaction = Interaction::new(level, model, &case.cache).unwrap();
            let outputs = model.outputs();
            let mut scratch = Scratch::default();
            let mut run = |chosen: &[usize]| {
                let keys: Vec<u64> = chosen.iter().map(|&i| case.keys[i]).collect();
                let p = case.pair_width();
                let pair: Vec<f32> = chosen
                    .iter()
                    .flat_map(|&i| case.pair[i * p..][..p].to_vec())
                    .collect();
                let mut logits = vec![f32::NAN; keys.len() * outputs];
                let mut status = vec![9; keys.len()];
                interaction
                    .score(
                        &case.cache,
                        &keys,
                        &pair,
                        None,
                        &mut scratch,
                        &mut logits,
                        &mut status,
                    )
                    .unwrap();
                (logits, status)
            };
            let (logits, status) = run(&(0..n).collect::<Vec<_>>());
            for i in 0..n {
                let rankable = there[i] && case.rankable[i] > 0;
                assert_eq!(
                    status[i],
                    u8::from(there[i]) * FOUND + u8::from(rankable) * RANKABLE
                );
                for (given, want) in logits[i * outputs..][..outputs].iter().zip(&expected[i]) {
                    let off = (f64::from(*given) - want).abs();
                    assert!(
                        !there[i] || off <= 2e-5 * largest,
                        "{level:?} {i}: {given} for {want}"
                    );
                }
            }
            // Among other candidates, in another order: the same bits.
            let chosen: Vec<usize> = (0..n)
                .rev()
                .filter(|i| i % 3 != seed as usize % 3)
                .collect();
            let (again, _) = run(&chosen);
            for (place, &i) in chosen.iter().enumerate() {
                let bits = |from: &[f32], at: usize| -> Vec<u32> {
                    from[at * outputs..][..outputs]
                        .iter()
                        .map(|v| v.to_bits())
                        .collect()
                };
                assert_eq!(bits(&again, place), bits(&logits, i), "{level:?} {i}");
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_level_gives_what_the_formula_gives(seed in any::<u64>(), n in 1..130usize) {
        for dtype in [DType::Float32, DType::BFloat16, DType::Int8] {
            check(seed, dtype, n);
        }
    }
}

#[test]
fn a_row_in_place_of_missing_ones_is_scored_like_one_of_its_own() {
    let case = Case::new(&mut Random(5), DType::Float32, 60);
    let mut there = [false; 60];
    case.cache.contains(&case.keys, |i, found| there[i] = found);
    let (known, missing) = (
        there.iter().position(|&t| t).unwrap(),
        there.iter().position(|&t| !t).unwrap(),
    );
    let mut row = Vec::new();
    case.cache.read_rows(&[case.keys[known]], |_, found| {
        row.extend_from_slice(found.unwrap());
    });
    case.with_model(&[], |model| {
        let interaction = Interaction::new(Level::Scalar, model, &case.cache).unwrap();
        let outputs = model.outputs();
        let (mut logits, mut status) = (vec![0.0; 2 * outputs], [0; 2]);
        let p = case.pair_width();
        let pair = case.pair[..p].repeat(2);
        let keys = [case.keys[known], case.keys[missing]];
        let mut scratch = Scratch::default();
        interaction
            .score(
                &case.cache,
                &keys,
                &pair,
                Some(&row),
                &mut scratch,
                &mut logits,
                &mut status,
            )
            .unwrap();
        assert_eq!(status[1], status[0] - FOUND);
        assert_eq!(logits[..outputs], logits[outputs..]);
        let short = interaction.score(
            &case.cache,
            &keys,
            &pair,
            Some(&row[1..]),
            &mut scratch,
            &mut logits,
            &mut status,
        );
        assert!(matches!(short, Err(Error::Layout(_))));
        let fewer = interaction.score(
            &case.cache,
            &keys,
            &pair,
            None,
            &mut scratch,
            &mut logits[1..],
            &mut status,
        );
        assert!(matches!(fewer, Err(Error::Request(_))));
    });
}

#[test]
fn rows_of_another_layout_are_refused_with_the_column_named() {
    let case = Case::new(&mut Random(3), DType::Float32, 4);
    for (columns, named) in [
        (vec![("h", DType::Float32, vec![case.hidden + 1])], "\"h\""),
        (vec![("h", DType::Float32, vec![case.hidden])], "\"e\""),
        (vec![("h", DType::Int32, vec![case.hidden])], "\"h\""),
        (vec![("h", DType::Int8, vec![case.hidden])], "\"scale\""),
    ] {
        let layout = RowLayout::new(columns).unwrap();
        let other = EmbeddingCache::new(layout, CacheConfig::default()).unwrap();
        case.with_model(&[], |model| {
            let error = Interaction::new(Level::Scalar, model, &other)
                .unwrap_err()
                .to_string();
            assert!(error.contains(named), "{error}");
        });
    }
    case.with_model(&[], |model| {
        let mut wrong = model.clone();
        wrong.shared = &case.shared[1..];
        assert!(matches!(
            Interaction::new(Level::Scalar, &wrong, &case.cache),
            Err(Error::Request(_))
        ));
    });
}
