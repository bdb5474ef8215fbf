//! Model parameters of one request.

use crate::bf16::Matrix;
use crate::error::{Error, Result};
use crate::lsh::Sequence;

/// Part of the model that the real-time stage computes, folded for one user and context.
#[derive(Clone, Debug)]
pub struct Model<'a> {
    /// Width of the first layer, `h`.
    pub hidden: usize,
    /// Initial sums of every candidate, `[h]`.
    pub shared: &'a [f32],
    /// Columns of the row that are multiplied with `factors`, in this order.
    pub factored: Vec<&'a str>,
    /// Factors `[sum of the columns' widths, h]`.
    pub factors: Matrix<'a>,
    /// Pooled sub-sequences by category.
    pub slots: Option<SlotFactors<'a>>,
    /// Table rows that the signature selects.
    pub table: Option<Table<'a>>,
    /// Histogram of similarities.
    pub tiers: Option<Tiers<'a>>,
    /// Pair features.
    pub pair: PairFeatures<'a>,
    /// Layers after the first; without any, the first layer's sums are the logits.
    pub layers: Vec<Layer<'a>>,
}

/// Categories of a user, and their contributions to items of the same category.
#[derive(Clone, Copy, Debug)]
pub struct SlotFactors<'a> {
    /// Category of each slot, `[C]`; slots of other values than `first_category` and up are empty.
    pub category: &'a [i32],
    /// Contribution of each slot, `[C, h]`.
    pub rows: Matrix<'a>,
    /// Lowest valid category: an item's smaller values do not count.
    pub first_category: i32,
}

/// Table whose rows a signature's groups of bits select; see [`table_sum`](crate::lsh::table_sum).
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Bits of a group.
    pub bits: usize,
    /// `[groups, 2^bits, h]`.
    pub values: Matrix<'a>,
    /// `h`.
    pub width: usize,
}

/// Histogram of similarities as features.
#[derive(Clone, Copy, Debug)]
pub struct Tiers<'a> {
    /// Sequence that candidates are compared with.
    pub sequence: Sequence<'a>,
    /// Behaviours in each channel, `[channels]`.
    pub lengths: &'a [f32],
    /// Scaling of counts into features.
    pub scale: TierScale,
    /// Weights of the features, `[channels * tiers, h]`.
    pub weights: &'a [f32],
}

/// Scaling of counts into features of bounded size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierScale {
    /// `count / length`.
    Share,
    /// `log(1 + count) / log(1 + length)`.
    Log1p,
}

impl TierScale {
    /// Parses the name of a scale.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "share" => Ok(Self::Share),
            "log1p" => Ok(Self::Log1p),
            _ => Err(Error::Request(format!(
                "tier scale is {name:?}, expected \"share\" or \"log1p\""
            ))),
        }
    }
}

/// Weights of the candidates' pair features.
#[derive(Clone, Copy, Debug)]
pub struct PairFeatures<'a> {
    /// Features of a candidate; 0 if there are none.
    pub width: usize,
    /// `[width, h]`.
    pub weights: &'a [f32],
}

/// Layer after the first, whose inputs are clamped at zero.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// `[inputs, outputs]`.
    pub weights: &'a [f32],
    /// `[outputs]`.
    pub bias: &'a [f32],
}

impl Model<'_> {
    /// Logits of one candidate.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.layers
            .last()
            .map_or(self.hidden, |layer| layer.bias.len())
    }

    /// Checks that sizes match, for columns of `factored` numbers in all.
    pub(super) fn check(&self, factored: usize) -> Result<()> {
        let h = self.hidden;
        let expect = |what: &str, given: usize, expected: usize| {
            if given == expected {
                return Ok(());
            }
            Err(Error::Request(format!(
                "interaction: {what} has {given} numbers, expected {expected} for a first layer of {h}"
            )))
        };
        if h == 0 {
            return Err(Error::Request(
                "interaction: a first layer of width 0".into(),
            ));
        }
        expect("shared", self.shared.len(), h)?;
        expect("factors", self.factors.len(), factored * h)?;
        expect(
            "weights of pair features",
            self.pair.weights.len(),
            self.pair.width * h,
        )?;
        if let Some(slots) = &self.slots {
            expect("slots", slots.rows.len(), slots.category.len() * h)?;
        }
        if let Some(table) = &self.table {
            expect("table row", table.width, h)?;
        }
        if let Some(tiers) = &self.tiers {
            let sequence = &tiers.sequence;
            expect("tier lengths", tiers.lengths.len(), sequence.channels)?;
            let features = sequence.channels * (sequence.edges.len() + 1);
            expect("weights of tiers", tiers.weights.len(), features * h)?;
        }
        Ok(())
    }
}
