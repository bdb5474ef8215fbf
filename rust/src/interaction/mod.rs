//! Real-time stage on a CPU: item ids to logits, a block of candidates at a time.
//!
//! For each candidate the model computes
//!
//! ```text
//! H      = shared + h_i + [e_i, w_i, m_i] · M + mean of G_u over its categories
//!          + Σ_g table[g, s_i[g]] + tiers(s_i, S_u) W_t + x_ui W_p
//! logits = layers(relu(H))
//! ```
//!
//! whose operands are small except for the item rows. [`Interaction`] packs what the candidates of one
//! request share; [`Interaction::score`] then reads each row once, in place in the cache, and takes its
//! block through first layer, `SimTier` and layers while all of it stays in the L1 and L2 caches. Nothing
//! of the size `[N, h]` is ever written to memory.
//!
//! # One candidate, one score
//! Each sum is taken in an order that depends on the model alone, so a candidate's logits have the same
//! bits whatever the other candidates; [`dense`](crate::dense) documents the agreement between instruction
//! sets.

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

/// Candidates of a block: few enough that rows, inputs and first layer stay in the L2 cache, a multiple of
/// the rows of a product, and enough to amortise loading weights and sequence into the L1 cache.
const BLOCK: usize = 8 * ROWS;

/// Data shared by the candidates of one request, packed for the kernels of one level.
#[derive(Debug)]
pub struct Interaction<'a> {
    level: Level,
    rows: RowKernels,
    reader: RowReader,
    /// Width of the first layer, rounded up to whole registers.
    width: usize,
    /// Width of the widest layer, rounded up likewise.
    widest: usize,
    shared: Vec<f32>,
    /// Factors for inputs that are multiplied as `bfloat16`.
    bf16: Option<Weights>,
    /// All other weights of the first layer: factors (if they are not above), tiers, pair features.
    f32: Option<Weights>,
    slots: Option<Slots>,
    table: Option<Table<'a>>,
    tiers: Option<TierFeatures>,
    pair_width: usize,
    layers: Vec<(Weights, Vec<f32>)>,
    outputs: usize,
}

/// Inputs and outputs of at most [`BLOCK`] candidates; see [`Interaction::score`].
struct Block<'a> {
    keys: &'a [u64],
    pair: &'a [f32],
    logits: &'a mut [f32],
    status: &'a mut [u8],
}

/// Scratch memory of one thread for its current block; reusable by any number of calls, one at a time.
#[derive(Debug, Default)]
pub struct Scratch {
    bf16: Aligned<Bf16>,
    f32: Aligned<f32>,
    first: Aligned<f32>,
    spare: Aligned<f32>,
    rows: reader::Blocks,
    counts: Vec<i32>,
    sums: Vec<f32>,
}

impl<'a> Interaction<'a> {
    /// Packs the shared data of a request, for rows of the layout of `cache`.
    ///
    /// # Errors
    /// [`Error::Layout`] if the cache lacks a column or has it in another shape or type; [`Error::Request`]
    /// if sizes in `model` contradict each other; [`Error::Config`] if the CPU lacks `level`.
    pub fn new(level: Level, model: &Model<'a>, cache: &EmbeddingCache) -> Result<Self> {
        let hidden = model.hidden;
        let reader = RowReader::new(cache.layout(), model)?;
        model.check(reader.factored())?;
        // 32-bit factors are kept as they are, and rows are widened to match.
        let bf16 = match model.factors {
            Matrix::Bf16(_) if reader.reduced() && reader.factored() > 0 => {
                Weights::new_bf16(level, hidden, &[model.factors])?
            }
            _ => None,
        };
        let tiers = model
            .tiers
            .as_ref()
            .map(|tiers| TierFeatures::new(level, tiers))
            .transpose()?;
        let mut matrices = Vec::new();
        if bf16.is_none() {
            matrices.push(model.factors);
        }
        if let Some(tiers) = &model.tiers {
            matrices.push(Matrix::F32(tiers.weights));
        }
        matrices.push(Matrix::F32(model.pair.weights));
        let f32 = Weights::new(level, hidden, &matrices)?;
        let width = f32.padded_outputs();
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
            rows: RowKernels::for_level(level)?,
            reader,
            width,
            widest: widths.fold(width, usize::max),
            shared,
            bf16,
            f32: (f32.inputs() > 0).then_some(f32),
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
    /// `pair` are their pair features `[n, width]`, `logits` `[n, outputs]`. `status[i]` has the bit
    /// [`FOUND`] if candidate `i` has a row, and [`RANKABLE`] if its logits are valid: its row, or
    /// `missing` in place of a missing one, may be ranked. `missing` is a row of the cache's layout.
    ///
    /// # Errors
    /// [`Error::Request`] if lengths do not match; [`Error::Layout`] if `cache` has another layout than the
    /// interaction was made for; [`Error::OutOfMemory`].
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
                "{n} candidates with {} pair features, {} logits and {} status bytes; expected \
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
            let block = Block {
                keys,
                pair,
                logits,
                status,
            };
            self.block(cache, block, missing, scratch)?;
        }
        Ok(())
    }

    fn block(
        &self,
        cache: &EmbeddingCache,
        block: Block<'_>,
        missing: Option<&[u8]>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Block {
            keys,
            pair,
            logits,
            status,
        } = block;
        let Scratch {
            bf16,
            f32,
            first,
            spare,
            rows,
            counts,
            sums,
        } = scratch;
        let n = keys.len();
        let padded = n.next_multiple_of(ROWS);
        // Products read whole multiples of rows; the results of the excess rows are discarded.
        let bf16_depth = self.bf16.as_ref().map_or(0, Weights::padded_inputs);
        let depth = self.f32.as_ref().map_or(0, Weights::inputs);
        let bf16 = bf16.get_mut(BLOCK * bf16_depth)?;
        let f32 = f32.get_mut(BLOCK * depth)?;
        let first = first.get_mut(BLOCK * self.widest)?;
        rows.prepare(&self.reader, BLOCK);
        cache.read_rows(keys, |place, row| {
            status[place] = u8::from(row.is_some()) * FOUND;
            let mut outs = reader::Outs {
                first: &mut first[place * self.width..][..self.width],
                bf16: &mut bf16[place * bf16_depth..][..bf16_depth],
                f32: &mut f32[place * depth..][..depth],
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
            let place = if bf16_depth == 0 {
                self.reader.factored()
            } else {
                0
            };
            tiers.write(rows, n, counts, f32, depth, place);
        }
        if self.pair_width > 0 {
            let rows = f32.chunks_exact_mut(depth);
            for (pair, row) in pair.chunks_exact(self.pair_width).zip(rows) {
                row[depth - self.pair_width..].copy_from_slice(pair);
            }
        }
        let sums = &mut first[..padded * self.width];
        if let Some(weights) = &self.bf16 {
            weights.multiply(Inputs::Bf16(bf16, bf16_depth), sums);
        }
        if let Some(weights) = &self.f32 {
            weights.multiply(Inputs::F32(f32, depth), sums);
        }
        // Two buffers alternate: the inputs of a layer, and its outputs.
        let (mut values, mut width) = (first, self.width);
        let mut next = spare.get_mut(BLOCK * self.widest)?;
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
    /// Adds the table rows of each candidate's signature, unless it has no content.
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

#[cfg(all(test, not(aif_loom)))]
mod tests;
