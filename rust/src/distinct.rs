//! First occurrences among many keys.

/// Returns the indices of the first occurrences of all keys, ascending; `None` if all keys differ.
///
/// # Panics
/// With 2^31 keys or more.
#[must_use]
pub fn distinct(keys: &[u64]) -> Option<Vec<i64>> {
    assert!(keys.len() < 1 << 31, "{} keys are too many", keys.len());
    // At most half full, so that probes are short; 0 is free, else an index plus one.
    let slots = (2 * keys.len()).next_power_of_two().max(2);
    let shift = 64 - slots.trailing_zeros();
    let mut table = vec![0u32; slots];
    let mut places: Option<Vec<i64>> = None;
    for (place, &key) in keys.iter().enumerate() {
        // Fibonacci hashing: consecutive ids are spread over the table.
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> shift) as usize;
        let seen = loop {
            match table[slot] {
                0 => {
                    table[slot] = place as u32 + 1;
                    break false;
                }
                other if keys[other as usize - 1] == key => break true,
                _ => slot = (slot + 1) & (slots - 1),
            }
        };
        if seen {
            places.get_or_insert_with(|| (0..place as i64).collect());
        } else if let Some(places) = &mut places {
            places.push(place as i64);
        }
    }
    places
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::distinct;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn plainly(keys: &[u64]) -> Vec<i64> {
        let mut seen = HashSet::new();
        (0i64..)
            .zip(keys)
            .filter(|(_, key)| seen.insert(**key))
            .map(|(place, _)| place)
            .collect()
    }

    proptest! {
        #[test]
        fn places_are_those_of_a_set(
            keys in prop::collection::vec(prop_oneof![0u64..40, any::<u64>(), (0u64..40).prop_map(|n| n << 58)], 0..300)
        ) {
            let expected = plainly(&keys);
            match distinct(&keys) {
                None => prop_assert_eq!(expected.len(), keys.len()),
                Some(places) => {
                    prop_assert!(places.len() < keys.len());
                    prop_assert_eq!(places, expected);
                }
            }
        }
    }

    #[test]
    fn keys_that_all_land_in_one_slot_are_told_apart() {
        // The inverse of the multiplier gives keys whose hashes are small numbers.
        let inverse = 0xF1DE_83E1_9937_733Du64;
        let keys: Vec<u64> = (0..1000u64).map(|n| n.wrapping_mul(inverse)).collect();
        assert_eq!(distinct(&keys), None);
        let twice: Vec<u64> = keys.iter().chain(&keys).copied().collect();
        assert_eq!(distinct(&twice), Some((0..1000).collect()));
    }
}
