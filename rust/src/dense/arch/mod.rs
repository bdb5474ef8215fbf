//! Inner loops, one file for each instruction set, and their dispatch table.
//!
//! # Safety
//! A kernel `(x, stride, depth, w, out, width, rows)` reads `rows` rows of `depth` inputs, `stride` apart,
//! and `depth` rows of weights, and adds to `rows` rows of outputs, `width` apart, as many as its panel is
//! wide; `rows` is a multiple of [`ROWS`](super::ROWS). The CPU must have the instruction set for which it
//! is compiled, which [`Kernels::for_level`] checks.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod loops;
mod portable;

use crate::bf16::Bf16;
use crate::error::Result;
use crate::lsh::Level;

/// Product with one panel of weights.
pub(super) type Product<T> = unsafe fn(*const T, usize, usize, *const T, *mut f32, usize, usize);

/// Kernels of one level, by the width of the panel: one register, two, and so on, as long as sums, weights
/// and an input have a register each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Floats of a register.
    pub lanes: usize,
    /// Products of 32-bit floats.
    pub f32: &'static [Product<f32>],
    /// Products of pairs of `bfloat16`, if the CPU has them; `depth` is even.
    pub bf16: Option<&'static [Product<Bf16>]>,
    /// Adds scaled numbers to others.
    pub add_scaled: unsafe fn(&mut [f32], f32, &[f32]),
    /// Clamps negative numbers to zero.
    pub relu: unsafe fn(&mut [f32]),
}

impl Kernels {
    /// Makes the kernels of a level without products of `bfloat16` pairs.
    const fn f32_only(
        lanes: usize,
        f32: &'static [Product<f32>],
        add_scaled: unsafe fn(&mut [f32], f32, &[f32]),
        relu: unsafe fn(&mut [f32]),
    ) -> Self {
        Self {
            lanes,
            f32,
            bf16: None,
            add_scaled,
            relu,
        }
    }

    /// Selects the kernels of `level`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config) if the CPU lacks it.
    pub fn for_level(level: Level) -> Result<Self> {
        #[allow(clippy::match_wildcard_for_single_variants)]
        // a level between two of these uses the lower
        match Level::from_name(level.name())? {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Ok(avx512::kernels()),
            Level::Scalar => Ok(portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            _ => Ok(avx2::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("`from_name` refuses them here"),
        }
    }
}
