//! Keys: scattered over all 64 bits, asked for uniformly or by Zipf's law.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// How often each key is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// All keys alike.
    Uniform,
    /// By Zipf's law with this exponent.
    Zipf(f64),
}

impl Popularity {
    /// What the tables call it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Uniform => "uniform".into(),
            Self::Zipf(exponent) => format!("Zipf {exponent}"),
        }
    }
}

/// The key of row `number`: a bijection of 64-bit integers, so that neighbours in number are strangers as
/// keys (the finaliser of `SplitMix64`: Steele et al., *Fast splittable pseudorandom number generators*,
/// 2014).
#[must_use]
pub fn key_of(number: usize) -> u64 {
    let mut x = number as u64;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `count` row numbers below `rows`. By Zipf's law the popular ones are scattered over all numbers, so that
/// popularity says nothing about where a row lies.
///
/// # Panics
/// If there are no rows, or the exponent is not above 0.
#[must_use]
pub fn draw(rows: usize, count: usize, popularity: Popularity, seed: u64) -> Vec<usize> {
    let mut rng = SmallRng::seed_from_u64(seed);
    match popularity {
        Popularity::Uniform => (0..count).map(|_| rng.random_range(0..rows)).collect(),
        Popularity::Zipf(exponent) => {
            let zipf = Zipf::new(rows as f64, exponent).expect("an exponent above 0");
            (0..count)
                .map(|_| {
                    let rank = zipf.sample(&mut rng) as usize - 1;
                    (key_of(rank) % rows as u64) as usize
                })
                .collect()
        }
    }
}
