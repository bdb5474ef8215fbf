//! Products of a block of rows with small weights: what a layer of the model costs, and no more.
//!
//! `out[r] += x[r] · W` for rows of a few hundred numbers and weights that stay in the second level of
//! cache. [`Weights`] lays `W` out once per call, [`Weights::multiply`] runs over any number of rows.
//!
//! # One order of addition
//! Every output is one chain `((out + x_0 w_0) + x_1 w_1) + ...` over the inputs in order, whatever rows
//! stand beside it and however many: a row's outputs have the same bits in every block. AVX2 and AVX-512
//! round once per step (fused) and agree to the bit; the portable form rounds products and sums, and the
//! `bfloat16` form adds inputs in pairs.

mod aligned;
mod arch;

use crate::bf16::{Bf16, Matrix};
use crate::error::{Error, Result};
use crate::lsh::Level;
pub use aligned::{Aligned, Number};
use arch::Kernels;

/// Rows come in multiples of this many: what the kernels keep in registers at a time.
pub const ROWS: usize = 12;

/// Weights `[inputs, outputs]`, laid out for the vector units of one level.
///
/// Outputs are cut into panels of up to four registers' width, and within a panel the weights of one input
/// lie together (of two inputs, in turn, for `bfloat16` products).
#[derive(Debug)]
pub struct Weights {
    kernels: Kernels,
    inputs: usize,
    outputs: usize,
    panels: Panels,
}

/// Weights as the kernels read them, panel after panel.
#[derive(Debug)]
enum Panels {
    Singles(Aligned<f32>),
    /// For products of pairs.
    Halves(Aligned<Bf16>),
}

/// Rows of inputs that are multiplied, each `stride` elements after the one before.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a> {
    /// For weights of [`Weights::new`].
    F32(&'a [f32], usize),
    /// For weights of [`Weights::of_halves`].
    Bf16(&'a [Bf16], usize),
}

impl Weights {
    /// Lays out weights for 32-bit inputs: the matrices one below the other, each with `outputs` columns.
    ///
    /// # Errors
    /// [`Error::Request`] if a matrix has no whole number of rows; [`Error::OutOfMemory`];
    /// [`Error::Config`] if the CPU lacks `level`.
    pub fn new(level: Level, outputs: usize, matrices: &[Matrix<'_>]) -> Result<Self> {
        Self::laid_out(level, outputs, matrices, false)
    }

    /// Lays out weights for `bfloat16` inputs, as [`new`](Self::new). `None` if this CPU cannot multiply
    /// them as such: widen the inputs then, which gives nearly the same.
    pub fn of_halves(
        level: Level,
        outputs: usize,
        matrices: &[Matrix<'_>],
    ) -> Result<Option<Self>> {
        if Kernels::of(level)?.halves.is_none() {
            return Ok(None);
        }
        Self::laid_out(level, outputs, matrices, true).map(Some)
    }

    fn laid_out(
        level: Level,
        outputs: usize,
        matrices: &[Matrix<'_>],
        halves: bool,
    ) -> Result<Self> {
        let kernels = Kernels::of(level)?;
        let mut inputs = 0;
        for matrix in matrices {
            if outputs == 0 || !matrix.len().is_multiple_of(outputs) {
                return Err(Error::Request(format!(
                    "weights of {} numbers have no whole number of rows of {outputs}",
                    matrix.len()
                )));
            }
            inputs += matrix.len() / outputs;
        }
        let mut weights = Self {
            kernels,
            inputs,
            outputs,
            panels: if halves {
                Panels::Halves(Aligned::default())
            } else {
                Panels::Singles(Aligned::default())
            },
        };
        let depth = weights.padded_inputs();
        let size = depth * weights.padded_outputs();
        let cut: Vec<_> = weights.cut().collect();
        match &mut weights.panels {
            Panels::Singles(panels) => {
                let panels = panels.of(size)?;
                place(
                    matrices,
                    outputs,
                    &cut,
                    |first, width, input, column, value| {
                        panels[first * depth + input * width + column] = value;
                    },
                );
            }
            Panels::Halves(panels) => {
                let panels = panels.of(size)?;
                place(
                    matrices,
                    outputs,
                    &cut,
                    |first, width, input, column, value| {
                        let pair = first * depth + (input / 2 * width + column) * 2;
                        panels[pair + input % 2] = Bf16::round(value);
                    },
                );
            }
        }
        Ok(weights)
    }

    /// Numbers of one row of inputs.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Places that one row of outputs takes: the outputs, rounded up to whole registers.
    #[must_use]
    pub fn padded_outputs(&self) -> usize {
        self.outputs.next_multiple_of(self.kernels.lanes)
    }

    /// Places that one row of inputs takes: a pair more than there are if their number is odd and they
    /// are multiplied in pairs.
    #[must_use]
    pub fn padded_inputs(&self) -> usize {
        match self.panels {
            Panels::Singles(_) => self.inputs,
            Panels::Halves(_) => self.inputs.next_multiple_of(2),
        }
    }

    /// First output and width of each panel.
    fn cut(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (padded, most) = (
            self.padded_outputs(),
            self.kernels.singles.len() * self.kernels.lanes,
        );
        (0..padded)
            .step_by(most)
            .map(move |first| (first, most.min(padded - first)))
    }

    /// Adds `inputs · W` to `out`, rows of which are [`padded_outputs`](Self::padded_outputs) apart.
    ///
    /// # Panics
    /// If `out` is no multiple of [`ROWS`] rows, `inputs` has fewer rows, a row of inputs is shorter than
    /// [`padded_inputs`](Self::padded_inputs), or inputs are of another kind than the weights.
    pub fn multiply(&self, inputs: Inputs<'_>, out: &mut [f32]) {
        let (width, depth) = (self.padded_outputs(), self.padded_inputs());
        let rows = out.len() / width;
        assert!(
            rows * width == out.len() && rows.is_multiple_of(ROWS),
            "{} outputs are no multiple of {ROWS} rows of {width}",
            out.len()
        );
        let (len, stride) = match inputs {
            Inputs::F32(values, stride) => (values.len(), stride),
            Inputs::Bf16(values, stride) => (values.len(), stride),
        };
        assert!(
            stride >= depth && (rows == 0 || len >= (rows - 1) * stride + depth),
            "{rows} rows of {depth} inputs, {stride} apart, do not fit in {len}"
        );
        if depth == 0 {
            return;
        }
        for (first, panel) in self.cut() {
            let vectors = panel / self.kernels.lanes - 1;
            // SAFETY: outputs, inputs and weights are as large as the kernel reads and writes, by the
            // assertions and by `laid_out`; `Kernels::of` made sure that the CPU has the level.
            unsafe {
                let out = out.as_mut_ptr().add(first);
                match (inputs, &self.panels, self.kernels.halves) {
                    (Inputs::F32(values, _), Panels::Singles(panels), _) => {
                        let weights = panels.all()[first * depth..].as_ptr();
                        let kernel = self.kernels.singles[vectors];
                        kernel(values.as_ptr(), stride, depth, weights, out, width, rows);
                    }
                    (Inputs::Bf16(values, _), Panels::Halves(panels), Some(kernels)) => {
                        let weights = panels.all()[first * depth..].as_ptr();
                        let kernel = kernels[vectors];
                        kernel(values.as_ptr(), stride, depth, weights, out, width, rows);
                    }
                    _ => panic!("inputs and weights are of different kinds"),
                }
            }
        }
    }
}

/// Shows `put` every number of matrices that stand one below the other, panel by panel: the panel's first
/// output and its width, the input, the output's place in the panel, the number.
fn place(
    matrices: &[Matrix<'_>],
    outputs: usize,
    cut: &[(usize, usize)],
    mut put: impl FnMut(usize, usize, usize, usize, f32),
) {
    for &(first, width) in cut {
        let mut input = 0;
        for matrix in matrices {
            for row in 0..matrix.len() / outputs {
                for output in first..outputs.min(first + width) {
                    put(
                        first,
                        width,
                        input,
                        output - first,
                        matrix.at(row * outputs + output),
                    );
                }
                input += 1;
            }
        }
    }
}

/// Loops over single rows, by the kernels of one level.
#[derive(Clone, Copy, Debug)]
pub struct RowKernels(Kernels);

impl RowKernels {
    /// The kernels of `level`.
    ///
    /// # Errors
    /// [`Error::Config`] if the CPU lacks it.
    pub fn of(level: Level) -> Result<Self> {
        Kernels::of(level).map(Self)
    }

    /// `out += scale * x`, number by number, as far as the shorter one goes. The levels may round
    /// differently in the last bit.
    #[inline]
    pub fn add_scaled(&self, out: &mut [f32], scale: f32, x: &[f32]) {
        // SAFETY: `Kernels::of` made sure that the CPU has the level.
        unsafe { (self.0.add_scaled)(out, scale, x) }
    }

    /// Cuts numbers off below zero; a NaN stays one.
    #[inline]
    pub fn relu(&self, values: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.0.relu)(values) }
    }
}

#[cfg(test)]
mod tests;
