//! Hash functions: keys of strings, and hashes of keys.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Returns the 64-bit key of a string id: its XXH3-64 hash with seed 0, the same on every machine.
///
/// The function is public and not cryptographic: whoever chooses ids can choose two with the same key.
#[must_use]
pub fn key_of(id: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(id)
}

/// Mixes `key` into all 64 bits with the finaliser of `MurmurHash3`, a bijection, so two keys never share a
/// hash. Ids are often consecutive, and the table uses both ends of the hash.
#[inline]
pub(super) fn mix64(key: u64) -> u64 {
    mix_with(key, 0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53)
}

/// Returns a random number, another one on each call.
pub(super) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Inverse of [`mix64`], for tests that need collisions.
#[cfg(test)]
pub(super) fn unmix64(hash: u64) -> u64 {
    // A shift by more than half the width is its own inverse; the factors are inverse modulo 2^64.
    mix_with(hash, 0x9cb4_b2f8_1293_37db, 0x4f74_430c_22a5_4005)
}

#[inline]
fn mix_with(mut bits: u64, first: u64, second: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(first);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(second);
    bits ^ (bits >> 33)
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
    fn mixing_is_invertible() {
        for key in (0..1000).chain([u64::MAX, 1 << 63, 0x1234_5678_9abc_def0]) {
            assert_eq!(unmix64(mix64(key)), key);
        }
    }

    #[test]
    fn consecutive_keys_differ_in_half_of_their_bits() {
        let flips: u32 = (0..4096u64)
            .map(|key| (mix64(key) ^ mix64(key + 1)).count_ones())
            .sum();
        let mean = f64::from(flips) / 4096.0;
        assert!((30.0..34.0).contains(&mean), "{mean}");
    }
}
