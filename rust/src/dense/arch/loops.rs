//! The loop that all instruction sets share, over whatever they call a register.

/// What a level keeps in one register, and what it does with it.
///
/// # Safety
/// For all methods: the CPU has the instruction set. Pointers are valid for a register's width.
pub(super) trait Register: Copy {
    /// What inputs and weights are made of: one number, or two that are multiplied together.
    type Input: Copy;
    /// Outputs of a register.
    const LANES: usize;

    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The weights of one input for a register of outputs.
    type Weights: Copy;
    unsafe fn weights(from: *const Self::Input) -> Self::Weights;
    /// An input in every lane.
    unsafe fn spread(input: Self::Input) -> Self::Weights;
    /// `self + input * weights`, lane by lane.
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
        // SAFETY: the caller's: `row + ROWS <= rows`, and all of these are inside what it gave.
        unsafe {
            let (x, out) = (x.add(row * stride), out.add(row * width));
            let mut sums: [[V; VECTORS]; ROWS] = std::array::from_fn(|r| {
                std::array::from_fn(|c| V::load(out.add(r * width + c * V::LANES)))
            });
            for i in 0..depth {
                let weights: [V::Weights; VECTORS] =
                    std::array::from_fn(|c| V::weights(w.add((i * VECTORS + c) * V::LANES)));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let input = V::spread(*x.add(r * stride + i));
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

/// `out += scale * x`, number by number.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
pub(super) fn add_scaled_in_place(out: &mut [f32], scale: f32, x: &[f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out += scale * x;
    }
}

/// Cuts off below zero; a NaN stays one, so that a broken score is noticed.
#[inline(always)]
#[allow(clippy::inline_always)] // as above
pub(super) fn relu_in_place(values: &mut [f32]) {
    for value in values {
        *value = if *value < 0.0 { 0.0 } else { *value };
    }
}

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
            // SAFETY: the caller's; strides and depths in inputs of `$per_input` elements.
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
