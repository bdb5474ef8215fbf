//! Eight floats in an array, which the compiler vectorises for its target.

use super::Kernels;
use super::loops::{Register, kernel, row_kernels};

pub(super) const KERNELS: Kernels = Kernels::f32_only(Eight::LANES, &[one, two], add_scaled, relu);

#[derive(Clone, Copy)]
struct Eight([f32; 8]);

impl Register for Eight {
    type Input = f32;
    type Weights = Self;
    const LANES: usize = 8;

    #[inline]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the contract of the trait.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by the contract of the trait.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline]
    unsafe fn weights(from: *const f32) -> Self {
        // SAFETY: by the contract of the trait.
        unsafe { Self::load(from) }
    }

    #[inline]
    unsafe fn splat(input: f32) -> Self {
        Self([input; 8])
    }

    #[inline]
    unsafe fn add_product(self, input: Self, weights: Self) -> Self {
        // Not `mul_add`: without an instruction for it, that is a call for every number.
        Self(std::array::from_fn(|i| {
            self.0[i] + input.0[i] * weights.0[i]
        }))
    }
}

kernel!(one, f32, Eight, 6, 1, 1);
kernel!(two, f32, Eight, 3, 2, 1);

row_kernels!();
