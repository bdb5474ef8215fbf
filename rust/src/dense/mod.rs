//! Products of a block of rows with small weight matrices.
//!
//! `out[r] += x[r] · W` for rows of a few hundred numbers and weights that stay in the L2 cache.
//! [`Weights`] packs `W` once per call, [`Weights::multiply`] runs over any number of rows.
//!
//! # One order of addition
//! Every output is one chain `((out + x_0 w_0) + x_1 w_1) + ...` over the inputs in order, independent of
//! the other rows: a row's outputs have the same bits in every block. AVX2 and AVX-512 round once per step
//! (fused) and agree to the bit; the portable form rounds products and sums, and the `bfloat16` form adds
//! inputs in pairs.

mod aligned;
mod arch;

use crate::bf16::{Bf16, Matrix};
use crate::error::{Error, Result};
use crate::lsh::Level;
pub use aligned::{Aligned, Number};
use arch::Kernels;

/// Granularity of rows: as many as the kernels keep in registers at a time.
pub const ROWS: usize = 12;

/// Weights `[inputs, outputs]`, packed for the vector units of one level.
///
/// Outputs are split into panels of up to four registers' width; within a panel the weights of one input
/// are contiguous (those of two inputs interleaved, for `bfloat16` products).
#[derive(Debug)]
pub struct Weights {
    kernels: Kernels,
    inputs: usize,
    outputs: usize,
    panels: Panels,
}

/// Packed weights, panel after panel.
#[derive(Debug)]
enum Panels {
    F32(Aligned<f32>),
    /// For products of pairs.
    Bf16(Aligned<Bf16>),
}

/// Rows of inputs to multiply, each `stride` elements after the one before.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a> {
    /// For weights of [`Weights::new`].
    F32(&'a [f32], usize),
    /// For weights of [`Weights::new_bf16`].
    Bf16(&'a [Bf16], usize),
}

impl Weights {
    /// Packs weights for 32-bit inputs: the matrices one below the other, each with `outputs` columns.
    ///
    /// # Errors
    /// [`Error::Request`] if a matrix has no whole number of rows; [`Error::OutOfMemory`];
    /// [`Error::Config`] if the CPU lacks `level`.
    pub fn new(level: Level, outputs: usize, matrices: &[Matrix<'_>]) -> Result<Self> {
        Self::pack(level, outputs, matrices, false)
    }

    /// Packs weights for `bfloat16` inputs, as [`new`](Self::new). Returns `None` if this CPU lacks such
    /// products: widen the inputs then, which gives nearly the same result.
    pub fn new_bf16(level: Level, outputs: usize, matrices: &[Matrix<'_>]) -> Result<Option<Self>> {
        if Kernels::for_level(level)?.bf16.is_none() {
            return Ok(None);
        }
        Self::pack(level, outputs, matrices, true).map(Some)
    }

    fn pack(level: Level, outputs: usize, matrices: &[Matrix<'_>], bf16: bool) -> Result<Self> {
        let kernels = Kernels::for_level(level)?;
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
            panels: if bf16 {
                Panels::Bf16(Aligned::default())
            } else {
                Panels::F32(Aligned::default())
            },
        };
        let depth = weights.padded_inputs();
        let size = depth * weights.padded_outputs();
        let cut: Vec<_> = weights.cut().collect();
        match &mut weights.panels {
            Panels::F32(panels) => {
                let panels = panels.get_mut(size)?;
                place(matrices, outputs, &cut, |to, value| {
                    panels[to.first * depth + to.input * to.width + to.column] = value;
                });
            }
            Panels::Bf16(panels) => {
                let panels = panels.get_mut(size)?;
                place(matrices, outputs, &cut, |to, value| {
                    let pair = to.first * depth + (to.input / 2 * to.width + to.column) * 2;
                    panels[pair + to.input % 2] = Bf16::round(value);
                });
            }
        }
        Ok(weights)
    }

    /// Returns the numbers in a row of inputs.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the width of a row of outputs, rounded up to whole registers.
    #[must_use]
    pub fn padded_outputs(&self) -> usize {
        self.outputs.next_multiple_of(self.kernels.lanes)
    }

    /// Returns the width of a row of inputs, rounded up to a whole pair if they are multiplied in pairs.
    #[must_use]
    pub fn padded_inputs(&self) -> usize {
        match self.panels {
            Panels::F32(_) => self.inputs,
            Panels::Bf16(_) => self.inputs.next_multiple_of(2),
        }
    }

    /// Returns the first output and the width of each panel.
    fn cut(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (padded, most) = (
            self.padded_outputs(),
            self.kernels.f32.len() * self.kernels.lanes,
        );
        (0..padded)
            .step_by(most)
            .map(move |first| (first, most.min(padded - first)))
    }

    /// Adds `inputs · W` to `out`, whose rows are [`padded_outputs`](Self::padded_outputs) apart.
    ///
    /// # Panics
    /// If `out` is not a multiple of [`ROWS`] rows, `inputs` has fewer rows, a row of inputs is shorter
    /// than [`padded_inputs`](Self::padded_inputs), inputs are of another kind than the weights, or the
    /// stride of `bfloat16` inputs is odd.
    pub fn multiply(&self, inputs: Inputs<'_>, out: &mut [f32]) {
        let (width, depth) = (self.padded_outputs(), self.padded_inputs());
        let rows = out.len() / width;
        assert!(
            rows * width == out.len() && rows.is_multiple_of(ROWS),
            "{} outputs are not a multiple of {ROWS} rows of {width}",
            out.len()
        );
        let (len, stride) = match inputs {
            Inputs::F32(values, stride) => (values.len(), stride),
            Inputs::Bf16(values, stride) => {
                assert!(
                    stride.is_multiple_of(2),
                    "rows of bfloat16 inputs, {stride} apart, are not whole pairs"
                );
                (values.len(), stride)
            }
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
            // assertions and by `pack`; `Kernels::for_level` made sure that the CPU has the level.
            unsafe {
                let out = out.as_mut_ptr().add(first);
                match (inputs, &self.panels, self.kernels.bf16) {
                    (Inputs::F32(values, _), Panels::F32(panels), _) => {
                        let weights = panels.all()[first * depth..].as_ptr();
                        let kernel = self.kernels.f32[vectors];
                        kernel(values.as_ptr(), stride, depth, weights, out, width, rows);
                    }
                    (Inputs::Bf16(values, _), Panels::Bf16(panels), Some(kernels)) => {
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

/// Position of a weight in the panels.
struct Position {
    /// First output of the panel.
    first: usize,
    /// Width of the panel.
    width: usize,
    input: usize,
    /// Index of the output in the panel.
    column: usize,
}

/// Calls `put` with the position and the value of every number of vertically stacked matrices, panel by
/// panel.
fn place(
    matrices: &[Matrix<'_>],
    outputs: usize,
    cut: &[(usize, usize)],
    mut put: impl FnMut(Position, f32),
) {
    for &(first, width) in cut {
        let mut input = 0;
        for matrix in matrices {
            for row in 0..matrix.len() / outputs {
                for output in first..outputs.min(first + width) {
                    let to = Position {
                        first,
                        width,
                        input,
                        column: output - first,
                    };
                    put(to, matrix.at(row * outputs + output));
                }
                input += 1;
            }
        }
    }
}

/// Loops over single rows, for one level.
#[derive(Clone, Copy, Debug)]
pub struct RowKernels(Kernels);

impl RowKernels {
    /// Selects the kernels of `level`.
    ///
    /// # Errors
    /// [`Error::Config`] if the CPU lacks it.
    pub fn for_level(level: Level) -> Result<Self> {
        Kernels::for_level(level).map(Self)
    }

    /// Computes `out += scale * x`, element by element, up to the shorter length. The levels may round
    /// differently in the last bit.
    #[inline]
    pub fn add_scaled(&self, out: &mut [f32], scale: f32, x: &[f32]) {
        // SAFETY: `Kernels::for_level` made sure that the CPU has the level.
        unsafe { (self.0.add_scaled)(out, scale, x) }
    }

    /// Clamps negative numbers to zero; a NaN stays one.
    #[inline]
    pub fn relu(&self, values: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.0.relu)(values) }
    }
}

#[cfg(test)]
mod tests;
