//! Comparison of every level with the definition.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// Definition of the counts, pair by pair.
fn naive(sequence: &Sequence<'_>, candidates: &[u8]) -> Vec<i32> {
    let tiers = sequence.edges.len() + 1;
    let mut counts = Vec::new();
    for candidate in candidates.chunks_exact(sequence.width) {
        let mut one = vec![0; sequence.channels * tiers];
        for (row, &channel) in sequence
            .signatures
            .chunks_exact(sequence.width)
            .zip(sequence.channel)
        {
            let score = sequence.kind.score(candidate, row);
            let tier = sequence.edges.iter().filter(|&&edge| score >= edge).count();
            if (0..sequence.channels as i32).contains(&channel) {
                one[channel as usize * tiers + tier] += 1;
            }
        }
        counts.extend(one);
    }
    counts
}

fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), prop::sample::select(vec![0, 127, 128, 255])]
}

fn check_all(
    kind: Kind,
    width: usize,
    rows: &[u8],
    candidates: &[u8],
    channel: &[i32],
    edges: &[i32],
) {
    let length = rows.len() / width;
    let sequence = Sequence {
        kind,
        width,
        signatures: &rows[..length * width],
        channel: &channel[..length],
        channels: 3,
        edges,
    };
    let candidates = &candidates[..candidates.len() / width * width];
    let expected = naive(&sequence, candidates);
    for level in Level::ALL.into_iter().filter(|level| level.runs_here()) {
        let mut counts = vec![-1; expected.len()];
        SimTier::new(level, &sequence)
            .unwrap()
            .count(candidates, &mut counts);
        assert_eq!(counts, expected, "{level:?} {kind:?} {width} {edges:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_level_counts_what_the_definition_counts(
        (rows, candidates) in (vec(byte(), 0..6000), vec(byte(), 0..1300)),
        channel in vec(-2..4i32, 6000),
        (bytes, far) in (vec(-9..530i32, 0..=MAX_EDGES), vec(any::<i32>(), 0..=MAX_EDGES)),
        large in vec(-40_000..40_000i32, 0..=MAX_EDGES),
    ) {
        for width in [8, 16, 32, 64] {
            check_all(Kind::SimHash, width, &rows, &candidates, &channel, &bytes);
            check_all(Kind::SimHash, width, &rows, &candidates, &channel, &far);
        }
        for width in [4, 20, 64, 256] {
            for edges in [&bytes, &large, &far] {
                check_all(Kind::Int8, width, &rows, &candidates, &channel, edges);
            }
        }
    }
}

/// Sequences that end anywhere in a block, that fill several, and that would overflow any narrow counter:
/// one channel has nearly all behaviours, one a few, one none.
#[test]
fn sequences_of_any_length_are_counted() {
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    for length in [0, 1, 63, 64, 65, 511, 513, 5_000, 70_000] {
        for (kind, width) in [(Kind::SimHash, 8), (Kind::SimHash, 32), (Kind::Int8, 8)] {
            let mut rows: Vec<u8> = (0..length * width).map(|_| random()).collect();
            // Most behaviours equal the first candidate, so that one tier counts nearly all.
            let candidates: Vec<u8> = (0..3 * width).map(|_| random()).collect();
            for (row, to) in rows.chunks_exact_mut(width).enumerate() {
                if row % 16 != 0 {
                    to.copy_from_slice(&candidates[..width]);
                }
            }
            let channel: Vec<i32> = (0..length).map(|i| 2 * i32::from(i % 997 == 5)).collect();
            let bits = 8 * width as i32;
            let edges: Vec<i32> = (0..MAX_EDGES as i32).map(|i| bits - 2 * i).collect();
            check_all(kind, width, &rows, &candidates, &channel, &edges);
            check_all(kind, width, &rows, &candidates, &channel, &edges[..15]);
            check_all(kind, width, &rows, &candidates, &channel, &[]);
        }
    }
}

/// A tile of candidates plus one, so that the last tile has one.
#[test]
fn any_number_of_candidates_is_counted() {
    let rows: Vec<u8> = (0..100 * 64u32).map(|i| (i * i % 251) as u8).collect();
    let candidates: Vec<u8> = (0..101 * 64u32).map(|i| (i * i * 7 % 241) as u8).collect();
    let channel: Vec<i32> = (0..800).map(|i| i % 4).collect();
    let edges: Vec<i32> = (0..9).collect();
    for width in [8, 16, 32, 64] {
        let middle: Vec<i32> = edges.iter().map(|edge| 4 * width as i32 + edge).collect();
        check_all(Kind::SimHash, width, &rows, &candidates, &channel, &middle);
        check_all(Kind::Int8, width, &rows, &candidates, &channel, &edges);
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let good = Sequence {
        kind: Kind::SimHash,
        width: 8,
        signatures: &[0; 16],
        channel: &[0, 0],
        channels: 1,
        edges: &[1],
    };
    let refused = |sequence: Sequence<'_>| {
        let error = SimTier::new(Level::Scalar, &sequence).unwrap_err();
        assert!(matches!(error, Error::Request(_)), "{error:?}");
    };
    assert!(SimTier::new(Level::Scalar, &good).is_ok());
    refused(Sequence {
        width: 24,
        signatures: &[0; 48],
        ..good
    });
    refused(Sequence {
        kind: Kind::Int8,
        width: 6,
        signatures: &[0; 12],
        ..good
    });
    refused(Sequence {
        kind: Kind::Int8,
        width: 2048,
        signatures: &[0; 4096],
        ..good
    });
    refused(Sequence {
        signatures: &[0; 17],
        ..good
    });
    refused(Sequence {
        edges: &[0; MAX_EDGES + 1],
        ..good
    });
    refused(Sequence {
        channels: 0,
        ..good
    });
}
