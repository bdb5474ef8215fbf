//! Loops shared by all instruction sets, generic over the register type.

/// Vector register of one level and its operations.
///
/// # Safety
/// For all methods: the CPU has the instruction set. Pointers are valid for a register's width.
pub(super) trait Register: Copy {
    /// Element of inputs and weights: one number, or a pair that is multiplied together.
    type Input: Copy;
    /// Outputs of a register.
    const LANES: usize;

    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Loads the weights of one input for a register of outputs.
    type Weights: Copy;
    unsafe fn weights(from: *const Self::Input) -> Self::Weights;
    /// Broadcasts an input to every lane.
    unsafe fn splat(input: Self::Input) -> Self::Weights;
    /// Computes `self + input * weights`, lane by lane.
    unsafe fn add_product(self, input: Self::Weights, weights: Self::Weights) -> Self;
}

/// Adds the products of rows with one panel of `VECTORS` registers, `ROWS` rows at a time.
///
/// # Safety
/// As in the [module](super), with pointers and counts in [`Register::Input`]s; `rows` is a multiple of
/// `ROWS`.
#[inline(always)]
#[allow(clippy::inline_always)] // into functions of each instruction set, which is what it is for
pub(super) unsafe fn product<V: Register, const ROWS: usize, const VECTORS: usize>(
    x: *const V::Input,
    stride: usize,
    depth: usize,
    w: *const V::Input,
    out: *mut f32,
    width: usize,
    rows: usize,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: by the caller's contract: `row + ROWS <= rows`, and all of these are inside its buffers.
        unsafe {
            let (x, out) = (x.add(row * stride), out.add(row * width));
            let mut sums: [[V; VECTORS]; ROWS] = std::array::from_fn(|r| {
                std::array::from_fn(|c| V::load(out.add(r * width + c * V::LANES)))
            });
            for i in 0..depth {
                let weights: [V::Weights; VECTORS] =
                    std::array::from_fn(|c| V::weights(w.add((i * VECTORS + c) * V::LANES)));
                for (r, sums) in sums.iter_mut().enumerate() {
                    // Unaligned: a pair needs no more alignment than its numbers.
                    let input = V::splat(x.add(r * stride + i).read_unaligned());
                    for (sum, &weights) in sums.iter_mut().zip(&weights) {
                        *sum = sum.add_product(input, weights);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (c, sum) in sums.into_iter().enumerate() {
                    sum.store(out.add(r * width + c * V::LANES));
                }
            }
        }
        row += ROWS;
    }
}

/// Computes `out += scale * x`, element by element.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
pub(super) fn add_scaled_in_place(out: &mut [f32], scale: f32, x: &[f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out += scale * x;
    }
}

/// Clamps negative numbers to zero; a NaN stays one, so that a broken score is noticed.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
pub(super) fn relu_in_place(values: &mut [f32]) {
    for value in values {
        *value = if *value < 0.0 { 0.0 } else { *value };
    }
}

/// Defines the loads and stores of a [`Register`] by two instructions.
macro_rules! load_store {
    ($load:ident, $store:ident) => {
        #[inline(always)]
        #[allow(clippy::inline_always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: by the contract of the trait.
            Self(unsafe { $load(from) })
        }

        #[inline(always)]
        #[allow(clippy::inline_always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: by the contract of the trait.
            unsafe { $store(to, self.0) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use load_store;

/// Defines a [`Register`] of 32-bit floats by its instructions.
macro_rules! f32_register {
    ($name:ident, $vector:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, $multiply_add:ident) => {
        #[derive(Clone, Copy)]
        struct $name($vector);

        impl Register for $name {
            type Input = f32;
            type Weights = Self;
            const LANES: usize = $lanes;

            load_store!($load, $store);

            #[inline(always)]
            #[allow(clippy::inline_always)]
            unsafe fn weights(from: *const f32) -> Self {
                // SAFETY: by the contract of the trait.
                unsafe { Self::load(from) }
            }

            #[inline(always)]
            #[allow(clippy::inline_always)]
            unsafe fn splat(input: f32) -> Self {
                // SAFETY: by the contract of the trait.
                Self(unsafe { $splat(input) })
            }

            #[inline(always)]
            #[allow(clippy::inline_always)]
            unsafe fn add_product(self, input: Self, weights: Self) -> Self {
                // SAFETY: by the contract of the trait.
                Self(unsafe { $multiply_add(input.0, weights.0, self.0) })
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use f32_register;

/// Defines the loops over single rows, compiled for an instruction set.
macro_rules! row_kernels {
    ($(#[$attribute:meta])*) => {
        $(#[$attribute])*
        fn add_scaled(out: &mut [f32], scale: f32, x: &[f32]) {
            $crate::dense::arch::loops::add_scaled_in_place(out, scale, x);
        }

        $(#[$attribute])*
        fn relu(values: &mut [f32]) {
            $crate::dense::arch::loops::relu_in_place(values);
        }
    };
}
pub(super) use row_kernels;

/// Defines a product: the loop, compiled for an instruction set.
macro_rules! kernel {
    ($(#[$attribute:meta])* $name:ident, $element:ty, $register:ty, $rows:literal, $vectors:literal, $per_input:literal) => {
        $(#[$attribute])*
        unsafe fn $name(
            x: *const $element,
            stride: usize,
            depth: usize,
            w: *const $element,
            out: *mut f32,
            width: usize,
            rows: usize,
        ) {
            const { assert!(crate::dense::ROWS % $rows == 0) };
            // SAFETY: by the caller's contract; strides and depths in inputs of `$per_input` elements.
            unsafe {
                $crate::dense::arch::loops::product::<$register, $rows, $vectors>(
                    x.cast(),
                    stride / $per_input,
                    depth / $per_input,
                    w.cast(),
                    out,
                    width,
                    rows,
                );
            }
        }
    };
}
pub(super) use kernel;
