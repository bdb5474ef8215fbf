//! Selection of the instruction set of the kernels.

use crate::error::{Error, Result};
use crate::sync::plain::OnceLock;

/// Environment variable that forces a level.
pub const ENVIRONMENT_VARIABLE: &str = "AIF_JAX_KERNELS";

/// Instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Portable code, as vectorised by the compiler.
    Scalar,
    /// AVX2, FMA and POPCNT on `x86_64`.
    Avx2,
    /// The same and AVX-VNNI on `x86_64`.
    AvxVnni,
    /// AVX-512 F, BW, VL, VBMI, VBMI2, VNNI and VPOPCNTDQ on `x86_64`: Ice Lake, Zen 4 and later.
    Avx512,
}

impl Level {
    /// All levels, the best last.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::AvxVnni, Self::Avx512];

    /// Returns the name used by the environment variable and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx_vnni",
            Self::Avx512 => "avx512",
        }
    }

    /// Returns the level of this name, if this CPU has it.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|level| level.name() == name && level.runs_here())
            .ok_or_else(|| {
                let possible: Vec<_> =
                    Self::ALL.into_iter().filter(|level| level.runs_here()).map(Self::name).collect();
                let known = Self::ALL.iter().any(|level| level.name() == name);
                let problem = if known { "this CPU lacks" } else { "there are no" };
                Error::Config(format!(
                    "{problem} kernels {name:?}; possible here: {} ({ENVIRONMENT_VARIABLE} forces one, \
                     unset it for the best)",
                    possible.join(", ")
                ))
            })
    }

    /// Returns whether this CPU has it.
    #[must_use]
    pub fn runs_here(self) -> bool {
        features(self).iter().all(|&(_, present)| present)
    }

    /// Returns the level that kernels use in this process: the one named by the environment variable, or
    /// the best that the CPU has. Determined at the first call and kept.
    pub fn chosen() -> Result<Self> {
        static CHOSEN: OnceLock<Result<Level>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| match std::env::var(ENVIRONMENT_VARIABLE) {
                Ok(name) => Self::from_name(&name),
                Err(std::env::VarError::NotPresent) => Ok(Self::ALL
                    .into_iter()
                    .rfind(|level| level.runs_here())
                    .unwrap_or(Self::Scalar)),
                Err(error @ std::env::VarError::NotUnicode(_)) => {
                    Err(Error::Config(format!("{ENVIRONMENT_VARIABLE}: {error}")))
                }
            })
            .clone()
    }

    /// Returns the CPU features that any level needs, and whether this CPU has them.
    #[must_use]
    pub fn cpu_features() -> Vec<(&'static str, bool)> {
        let mut all: Vec<(&'static str, bool)> = Vec::new();
        for &feature in Self::ALL.into_iter().flat_map(features) {
            if !all.contains(&feature) {
                all.push(feature);
            }
        }
        all
    }
}

/// Returns the features that a level needs, and whether they are present.
#[cfg(target_arch = "x86_64")]
fn features(level: Level) -> &'static [(&'static str, bool)] {
    macro_rules! detected {
        ($($feature:tt),*) => {{
            static FEATURES: OnceLock<Vec<(&'static str, bool)>> = OnceLock::new();
            FEATURES.get_or_init(|| vec![$(($feature, std::arch::is_x86_feature_detected!($feature))),*])
        }};
    }
    match level {
        Level::Scalar => &[],
        Level::Avx2 => detected!("avx2", "fma", "popcnt"),
        Level::AvxVnni => detected!("avx2", "fma", "popcnt", "avxvnni"),
        Level::Avx512 => {
            detected!(
                "avx512f",
                "avx512bw",
                "avx512vl",
                "avx512vbmi",
                "avx512vbmi2",
                "avx512vnni",
                "avx512vpopcntdq"
            )
        }
    }
}

/// Returns the features that a level needs, and whether they are present.
#[cfg(not(target_arch = "x86_64"))]
fn features(level: Level) -> &'static [(&'static str, bool)] {
    match level {
        Level::Scalar => &[],
        Level::Avx2 => &[("avx2", false)],
        Level::AvxVnni => &[("avxvnni", false)],
        Level::Avx512 => &[("avx512f", false)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_impossible_ones_list_the_possible() {
        for level in Level::ALL {
            match Level::from_name(level.name()) {
                Ok(found) => assert!(found == level && level.runs_here()),
                Err(error) => assert!(error.to_string().contains("this CPU lacks"), "{error}"),
            }
        }
        let error = Level::from_name("sse9").unwrap_err().to_string();
        assert!(
            error.contains("\"sse9\"") && error.contains("scalar"),
            "{error}"
        );
        assert!(Level::Scalar.runs_here());
    }
}
