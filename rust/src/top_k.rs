//! Selection of the highest scores, in order.

/// Writes the `best.len()` highest of `scores`, the highest first, and their indices; of equal scores the
/// earlier comes first.
///
/// Scores are compared in the total order of IEEE 754: `-0` is below `+0`, and a NaN is beyond the infinity
/// of its sign.
///
/// # Panics
/// If `best` and `order` are not of one length, or longer than `scores`.
pub fn top_k(scores: &[f32], best: &mut [f32], order: &mut [i32]) {
    let k = best.len();
    assert!(
        order.len() == k && k <= scores.len(),
        "{k} best of {} scores, and {} places",
        scores.len(),
        order.len()
    );
    if k == 0 {
        return;
    }
    // One integer a score, ascending as scores descend: selecting and sorting integers takes no branches.
    let mut ranks: Vec<u64> = (0u64..)
        .zip(scores)
        .map(|(place, &score)| u64::from(descending(score)) << 32 | place)
        .collect();
    if k < ranks.len() {
        ranks.select_nth_unstable(k - 1);
        ranks.truncate(k);
    }
    ranks.sort_unstable();
    for ((best, order), rank) in best.iter_mut().zip(order).zip(ranks) {
        let place = rank as u32;
        *best = scores[place as usize];
        *order = place.cast_signed();
    }
}

/// Returns an integer that is the smaller, the higher the score.
#[inline]
fn descending(score: f32) -> u32 {
    let bits = score.to_bits();
    // Of negative numbers all bits but the sign grow as the number decreases; the sign of positive ones is
    // 0.
    let flipped = (bits.cast_signed() >> 31).cast_unsigned() >> 1;
    !(bits ^ flipped ^ 1 << 31)
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::top_k;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_the_start_of_a_stable_sort(
            scores in prop::collection::vec(
                prop_oneof![any::<f32>(), (-3i8..3).prop_map(f32::from), Just(-0.0), Just(f32::NEG_INFINITY)],
                0..300,
            ),
            share in 0.0..=1.0f64,
        ) {
            let k = (scores.len() as f64 * share) as usize;
            let mut expected: Vec<usize> = (0..scores.len()).collect();
            expected.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let (mut best, mut order) = (vec![0.0; k], vec![0; k]);
            top_k(&scores, &mut best, &mut order);
            for (i, &place) in expected.iter().take(k).enumerate() {
                prop_assert_eq!(order[i] as usize, place);
                prop_assert_eq!(best[i].to_bits(), scores[place].to_bits());
            }
        }
    }
}
