//! Keys from strings, and the spread of keys over a table.

/// The 64-bit key of a string id: its XXH3-64 hash with seed 0, the same on every machine.
#[must_use]
pub fn key_of(id: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(id)
}

/// Spreads `key` over all 64 bits. A bijection (the finaliser of `MurmurHash3`), so two keys never
/// share a hash; ids are often consecutive numbers, and a table needs both ends of the hash.
#[inline]
pub(super) fn spread(mut key: u64) -> u64 {
    key ^= key >> 33;
    key = key.wrapping_mul(0xff51_afd7_ed55_8ccd);
    key ^= key >> 33;
    key = key.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    key ^ (key >> 33)
}

/// The key that [`spread`] takes to `hash`, for tests that want collisions.
#[cfg(test)]
pub(super) fn unspread(mut hash: u64) -> u64 {
    // A shift by more than half the width undoes itself; the factors are inverse modulo 2^64.
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0x9cb4_b2f8_1293_37db);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0x4f74_430c_22a5_4005);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_keys_are_those_of_the_published_function() {
        // XXH3-64 of the empty input, from the algorithm's specification.
        assert_eq!(key_of(b""), 0x2d06_8005_38d3_94c2);
        assert_ne!(key_of(b"item-1"), key_of(b"item-2"));
    }

    #[test]
    fn spreading_loses_nothing() {
        for key in (0..1000).chain([u64::MAX, 1 << 63, 0x1234_5678_9abc_def0]) {
            assert_eq!(unspread(spread(key)), key);
        }
    }

    #[test]
    fn consecutive_keys_differ_in_half_of_their_bits() {
        let flips: u32 = (0..4096u64)
            .map(|key| (spread(key) ^ spread(key + 1)).count_ones())
            .sum();
        let mean = f64::from(flips) / 4096.0;
        assert!((30.0..34.0).contains(&mean), "{mean}");
    }
}
