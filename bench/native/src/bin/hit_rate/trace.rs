//! Traces: which key is asked for, one after the other.

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Zipf};
use std::collections::HashSet;
use std::path::Path;

/// A sequence of requests.
pub struct Trace {
    pub name: String,
    pub keys: Vec<u64>,
    /// Keys that there are: what capacities are shares of.
    pub population: usize,
}

impl Trace {
    /// Independent requests for `population` keys, the one of rank `r` in proportion to `r^-exponent`.
    pub fn zipf(population: usize, requests: usize, exponent: f64, seed: u64) -> Self {
        let ranks = Zipf::new(population as f64, exponent).expect("an exponent above 0");
        let mut rng = SmallRng::seed_from_u64(seed);
        let keys = (0..requests)
            .map(|_| ranks.sample(&mut rng) as u64)
            .collect();
        Self {
            name: format!("Zipf {exponent}"),
            keys,
            population,
        }
    }

    /// The trace in a file of one decimal key a line, called by the file's name. Its keys are all there are.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
        let keys: Vec<u64> = text
            .lines()
            .enumerate()
            .map(|(i, line)| {
                line.parse().map_err(|_| {
                    format!(
                        "{}, line {}: {line:?} is not a key; expected a whole number from 0 to 2^64 - 1",
                        path.display(),
                        i + 1
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(format!("{}: no keys; expected one a line", path.display()));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: name.into_owned(),
            population: keys.iter().collect::<HashSet<_>>().len(),
            keys,
        })
    }
}
