//! The real-time stage on a CPU: from item ids to logits, a block of candidates at a time.
//!
//! For each candidate the model wants
//!
//! ```text
//! H      = shared + h_i + [e_i, w_i, m_i] · M + mean of G_u over its categories
//!          + Σ_g table[g, s_i[g]] + tiers(s_i, S_u) W_t + x_ui W_p
//! logits = layers(relu(H))
//! ```
//!
//! whose operands are small except for the item rows. [`Interaction`] lays out what one request's candidates
//! share; [`Interaction::score`] then reads each row once, where it lies in the cache, and takes its block
//! through first layer, `SimTier` and layers while all of it stays in the first two levels of cache. Nothing of
//! the size `[N, h]` is ever written to memory.
//!
//! # One candidate, one score
//! Each sum is taken in an order that depends on the model alone, so a candidate's logits have the same bits
//! in any company; see [`dense`](crate::dense) for what levels of instruction sets agree on.

mod model;
mod reader;
mod slots;
mod tiers;

pub use model::{Layer, Model, PairFeatures, SlotFactors, Table, TierScale, Tiers};
pub use reader::{FOUND, RANKABLE};

use crate::bf16::{Bf16, Matrix};
use crate::cache::EmbeddingCache;
use crate::dense::{Aligned, Inputs, ROWS, RowKernels, Weights};
use crate::error::{Error, Result};
use crate::lsh::{Level, table_sum};
use reader::RowReader;
use slots::Slots;
use tiers::TierFeatures;

/// Candidates of a block: few enough that rows, inputs and first layer of one stay in the second level of
/// cache, a multiple of what products take at once, and so many that each brings weights and sequence to the
/// first level for enough of them.
const BLOCK: usize = 8 * ROWS;

/// What the candidates of one request share, laid out for the kernels of one level.
#[derive(Debug)]
pub struct Interaction<'a> {
    level: Level,
    rows: RowKernels,
    reader: RowReader,
    /// First layer: width, rounded up to whole registers.
    width: usize,
    /// The widest layer, the first one included, rounded up likewise.
    widest: usize,
    shared: Vec<f32>,
    /// Factors that `bfloat16` inputs are multiplied with as such.
    halves: Option<Weights>,
    /// All other weights of the first layer: factors (if they are not above), tiers, pair features.
    singles: Option<Weights>,
    slots: Option<Slots>,
    table: Option<Table<'a>>,
    tiers: Option<TierFeatures>,
    pair_width: usize,
    layers: Vec<(Weights, Vec<f32>)>,
    outputs: usize,
}

/// One thread's memory for the block that it works on; any number of calls may use it, one at a time.
#[derive(Debug, Default)]
pub struct Scratch {
    halves: Aligned<Bf16>,
    singles: Aligned<f32>,
    first: Aligned<f32>,
    spare: Aligned<f32>,
    rows: reader::Blocks,
    counts: Vec<i32>,
    sums: Vec<f32>,
}

impl<'a> Interaction<'a> {
    /// Lays out what the candidates of a request share, for rows of the layout of `cache`.
    ///
    /// # Errors
    /// [`Error::Layout`] if the cache lacks a column or has it in another shape or type; [`Error::Request`] if
    /// sizes in `model` contradict each other; [`Error::Config`] if the CPU lacks `level`.
    pub fn new(level: Level, model: &Model<'a>, cache: &EmbeddingCache) -> Result<Self> {
        let hidden = model.hidden;
        let reader = RowReader::new(cache.layout(), model)?;
        model.check(reader.factored())?;
        // Factors of 32 bits keep them, and rows are then widened to meet them.
        let halves = match model.factors {
            Matrix::Bf16(_) if reader.reduced() && reader.factored() > 0 => {
                Weights::of_halves(level, hidden, &[model.factors])?
            }
            _ => None,
        };
        let tiers = model
            .tiers
            .as_ref()
            .map(|tiers| TierFeatures::new(level, tiers))
            .transpose()?;
        let mut matrices = Vec::new();
        if halves.is_none() {
            matrices.push(model.factors);
        }
        if let Some(tiers) = &model.tiers {
            matrices.push(Matrix::F32(tiers.weights));
        }
        matrices.push(Matrix::F32(model.pair.weights));
        let singles = Weights::new(level, hidden, &matrices)?;
        let width = singles.padded_outputs();
        let mut shared = model.shared.to_vec();
        shared.resize(width, 0.0);
        let mut layers = Vec::new();
        let mut inputs = hidden;
        for layer in &model.layers {
            let outputs = layer.bias.len();
            let weights = Weights::new(level, outputs, &[Matrix::F32(layer.weights)])?;
            if weights.inputs() != inputs {
                return Err(Error::Request(format!(
                    "layer {} takes {} numbers, and the one before gives {inputs}",
                    layers.len(),
                    weights.inputs()
                )));
            }
            let mut bias = layer.bias.to_vec();
            bias.resize(weights.padded_outputs(), 0.0);
            layers.push((weights, bias));
            inputs = outputs;
        }
        let widths = layers
            .iter()
            .map(|(_, bias): &(Weights, Vec<f32>)| bias.len());
        Ok(Self {
            level,
            rows: RowKernels::of(level)?,
            reader,
            width,
            widest: widths.fold(width, usize::max),
            shared,
            halves,
            singles: (singles.inputs() > 0).then_some(singles),
            slots: model
                .slots
                .as_ref()
                .map(|slots| Slots::new(slots, hidden, width)),
            table: model.table,
            tiers,
            pair_width: model.pair.width,
            layers,
            outputs: model.outputs(),
        })
    }

    /// Scores candidates.
    ///
    /// `pair` are their pair features `[n, width]`, `logits` `[n, outputs]`. `status[i]` says with [`FOUND`]
    /// whether candidate `i` has a row, and with [`RANKABLE`] whether its logits mean something: its row, or
    /// that of `missing` in place of a missing one, may be ranked. `missing` is a row of the cache's layout.
    ///
    /// # Errors
    /// [`Error::Request`] if lengths do not belong together; [`Error::Layout`] if `cache` is of another layout
    /// than the interaction was made for; [`Error::OutOfMemory`].
    #[allow(clippy::too_many_arguments)] // what goes in, what comes out, and where it is worked out
    pub fn score(
        &self,
        cache: &EmbeddingCache,
        keys: &[u64],
        pair: &[f32],
        missing: Option<&[u8]>,
        scratch: &mut Scratch,
        logits: &mut [f32],
        status: &mut [u8],
    ) -> Result<()> {
        self.reader.fits(cache.layout(), missing)?;
        let n = keys.len();
        if (pair.len(), logits.len(), status.len()) != (n * self.pair_width, n * self.outputs, n) {
            return Err(Error::Request(format!(
                "{n} candidates with {} pair features, {} logits and {} places for what they are; expected \
                 {} features and {} logits of each",
                pair.len(),
                logits.len(),
                status.len(),
                self.pair_width,
                self.outputs
            )));
        }
        let outs = logits.chunks_mut(BLOCK * self.outputs);
        for (number, ((keys, status), logits)) in keys
            .chunks(BLOCK)
            .zip(status.chunks_mut(BLOCK))
            .zip(outs)
            .enumerate()
        {
            let first = number * BLOCK * self.pair_width;
            let pair = &pair[first..first + keys.len() * self.pair_width];
            self.block(cache, keys, pair, missing, scratch, logits, status)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // those of `score`
    fn block(
        &self,
        cache: &EmbeddingCache,
        keys: &[u64],
        pair: &[f32],
        missing: Option<&[u8]>,
        scratch: &mut Scratch,
        logits: &mut [f32],
        status: &mut [u8],
    ) -> Result<()> {
        let Scratch {
            halves,
            singles,
            first,
            spare,
            rows,
            counts,
            sums,
        } = scratch;
        let n = keys.len();
        let padded = n.next_multiple_of(ROWS);
        // Products read whole multiples of rows, and nobody reads what they make of the last ones.
        let half_depth = self.halves.as_ref().map_or(0, Weights::padded_inputs);
        let depth = self.singles.as_ref().map_or(0, Weights::inputs);
        let halves = halves.of(BLOCK * half_depth)?;
        let singles = singles.of(BLOCK * depth)?;
        let first = first.of(BLOCK * self.widest)?;
        rows.prepare(&self.reader, BLOCK);
        cache.read_rows(keys, |place, row| {
            status[place] = u8::from(row.is_some()) * FOUND;
            let mut outs = reader::Outs {
                first: &mut first[place * self.width..][..self.width],
                halves: &mut halves[place * half_depth..][..half_depth],
                singles: &mut singles[place * depth..][..depth],
            };
            match row.or(missing) {
                Some(row) => {
                    status[place] |= self.reader.read(row, &self.shared, &mut outs, place, rows);
                }
                None => RowReader::read_nothing(&self.shared, &mut outs, place, rows),
            }
        });
        if let Some(slots) = &self.slots {
            let firsts = first.chunks_exact_mut(self.width);
            for (categories, first) in rows.categories(n).zip(firsts) {
                slots.add(self.rows, categories, first);
            }
        }
        if let Some(table) = &self.table {
            self.add_table(table, rows, n, sums, first)?;
        }
        if let Some(tiers) = &self.tiers {
            let place = if half_depth == 0 {
                self.reader.factored()
            } else {
                0
            };
            tiers.write(rows, n, counts, singles, depth, place);
        }
        if self.pair_width > 0 {
            let rows = singles.chunks_exact_mut(depth);
            for (pair, row) in pair.chunks_exact(self.pair_width).zip(rows) {
                row[depth - self.pair_width..].copy_from_slice(pair);
            }
        }
        let sums = &mut first[..padded * self.width];
        if let Some(weights) = &self.halves {
            weights.multiply(Inputs::Bf16(halves, half_depth), sums);
        }
        if let Some(weights) = &self.singles {
            weights.multiply(Inputs::F32(singles, depth), sums);
        }
        // Two buffers take turns: the inputs of a layer, and its outputs.
        let (mut values, mut width) = (first, self.width);
        let mut next = spare.of(BLOCK * self.widest)?;
        for (weights, bias) in &self.layers {
            let inputs = &mut values[..padded * width];
            self.rows.relu(inputs);
            let outs = &mut next[..padded * bias.len()];
            for row in outs.chunks_exact_mut(bias.len()) {
                row.copy_from_slice(bias);
            }
            weights.multiply(Inputs::F32(inputs, width), outs);
            std::mem::swap(&mut values, &mut next);
            width = bias.len();
        }
        for (out, row) in logits
            .chunks_exact_mut(self.outputs)
            .zip(values.chunks_exact(width))
        {
            out.copy_from_slice(&row[..self.outputs]);
        }
        Ok(())
    }
    /// Adds the table's rows of each candidate's signature, unless it has no content.
    fn add_table(
        &self,
        table: &Table<'_>,
        rows: &reader::Blocks,
        n: usize,
        sums: &mut Vec<f32>,
        first: &mut [f32],
    ) -> Result<()> {
        let hidden = table.width;
        sums.resize(n * hidden, 0.0);
        let (bytes, signatures) = rows.signatures(n);
        table_sum(
            self.level,
            table.bits,
            table.values,
            bytes,
            signatures,
            hidden,
            sums,
        )?;
        let sums = sums.chunks_exact(hidden).zip(rows.has_content(n));
        for ((sums, &has_content), first) in sums.zip(first.chunks_exact_mut(self.width)) {
            self.rows.add_scaled(first, has_content, sums);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
