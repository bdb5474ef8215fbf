//! Random model with its rows and one request, and the result of the formula in 64 bits.

use super::super::*;
use crate::cache::{CacheConfig, DType, RowLayout};
use crate::lsh::{Kind, Sequence};

/// Pseudo-random number generator.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    pub(super) fn float(&mut self) -> f32 {
        (self.next() % 4001) as f32 / 2000.0 - 1.0
    }

    pub(super) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub(super) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// Float column as it is stored, and the numbers it represents.
pub(super) fn column(
    random: &mut Random,
    dtype: DType,
    rows: usize,
    width: usize,
    hidden: bool,
) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let values = random.floats(rows * width);
    let scales: Vec<f32> = (0..rows)
        .map(|_| random.float().abs() / 100.0 + 0.001)
        .collect();
    let (mut stored, mut read) = (Vec::new(), Vec::new());
    for (i, &value) in values.iter().enumerate() {
        match dtype {
            DType::Float32 => {
                stored.extend(value.to_ne_bytes());
                read.push(value);
            }
            DType::BFloat16 => {
                stored.extend(Bf16::round(value).0.to_ne_bytes());
                read.push(Bf16::round(value).widen());
            }
            _ => {
                let step = (value * 127.0) as i8;
                stored.push(step.cast_unsigned());
                let exact = f32::from(step) * scales[i / width];
                read.push(if hidden {
                    exact
                } else {
                    Bf16::round(exact).widen()
                });
            }
        }
    }
    (stored, read, scales)
}

/// Parts of a case, with owners for what the model borrows.
pub(super) struct Case {
    pub(super) hidden: usize,
    pub(super) widths: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) cache: EmbeddingCache,
    pub(super) keys: Vec<u64>,
    /// Values of each key's row: `h`, then the factored columns.
    pub(super) h: Vec<f32>,
    pub(super) columns: Vec<Vec<f32>>,
    pub(super) has_content: Vec<f32>,
    pub(super) signatures: Vec<u8>,
    pub(super) categories: Vec<i32>,
    pub(super) rankable: Vec<u8>,
    pub(super) shared: Vec<f32>,
    pub(super) factors: Vec<f32>,
    pub(super) slot_category: Vec<i32>,
    pub(super) slots: Vec<f32>,
    pub(super) table: Vec<f32>,
    pub(super) bits: Option<usize>,
    pub(super) kind: Kind,
    pub(super) sequence: Vec<u8>,
    pub(super) channel: Vec<i32>,
    pub(super) lengths: Vec<f32>,
    pub(super) edges: Vec<i32>,
    pub(super) scale: TierScale,
    pub(super) tier_weights: Vec<f32>,
    pub(super) pair: Vec<f32>,
    pub(super) pair_weights: Vec<f32>,
    pub(super) layers: Vec<(Vec<f32>, Vec<f32>)>,
}

pub(super) const NAMES: [&str; 3] = ["e", "bridge", "content"];
pub(super) const CATEGORIES_EACH: usize = 3;
pub(super) const CHANNELS: usize = 2;
pub(super) const FIRST_KEY: u64 = 1 << 40;

impl Case {
    /// Makes a case of `n` candidates, some of which have no row.
    #[allow(clippy::too_many_lines)] // one random part after the other
    pub(super) fn new(random: &mut Random, dtype: DType, n: usize) -> Self {
        let hidden = [8, 16, 20, 64, 72][random.below(5)];
        let widths = vec![1 + random.below(20), 3, 1 + random.below(40)];
        let kind = [Kind::SimHash, Kind::Int8][random.below(2)];
        let width = [8, 32, 64][random.below(3)];
        let length = random.below(200);
        let (h, h_read, h_scales) = column(random, dtype, n, hidden, true);
        let mut scales = vec![h_scales];
        let (mut stored, mut columns) = (vec![h], Vec::new());
        for &width in &widths {
            let (bytes, read, scale) = column(random, dtype, n, width, false);
            stored.push(bytes);
            columns.push(read);
            scales.push(scale);
        }
        let has_content: Vec<f32> = (0..n)
            .map(|_| f32::from(u8::from(random.below(4) > 0)))
            .collect();
        let signatures = random.bytes(n * width);
        let categories: Vec<i32> = (0..n * CATEGORIES_EACH)
            .map(|_| random.below(12) as i32)
            .collect();
        let rankable: Vec<u8> = (0..n).map(|_| u8::from(random.below(5) > 0)).collect();
        let mut layout = vec![("h", dtype, vec![hidden])];
        for (name, &width) in NAMES.iter().zip(&widths) {
            layout.push((name, dtype, vec![width]));
        }
        layout.push(("has_content", DType::Float32, vec![1]));
        layout.push(("signature", DType::UInt8, vec![width]));
        layout.push(("category", DType::Int32, vec![CATEGORIES_EACH]));
        layout.push(("rankable", DType::UInt8, vec![1]));
        if dtype == DType::Int8 {
            layout.push(("scale", DType::Float32, vec![scales.len()]));
        }
        let cache =
            EmbeddingCache::new(RowLayout::new(layout).unwrap(), CacheConfig::default()).unwrap();
        let keys: Vec<u64> = (0..n as u64).map(|key| FIRST_KEY + key).collect();
        let bytes_of = |values: &[f32]| {
            values
                .iter()
                .flat_map(|v| v.to_ne_bytes())
                .collect::<Vec<u8>>()
        };
        stored.push(bytes_of(&has_content));
        stored.push(signatures.clone());
        stored.push(categories.iter().flat_map(|c| c.to_ne_bytes()).collect());
        stored.push(rankable.clone());
        if dtype == DType::Int8 {
            let each: Vec<f32> = (0..n)
                .flat_map(|row| scales.iter().map(move |s| s[row]))
                .collect();
            stored.push(bytes_of(&each));
        }
        cache
            .upsert(&keys, &stored.iter().map(Vec::as_slice).collect::<Vec<_>>())
            .unwrap();
        let missing: Vec<u64> = keys
            .iter()
            .copied()
            .filter(|_| random.below(7) == 0)
            .collect();
        cache.delete(&missing).unwrap();
        let factored: usize = widths.iter().sum();
        let tiers = 1 + random.below(20);
        let channel: Vec<i32> = (0..length)
            .map(|_| random.below(CHANNELS + 1) as i32 - 1)
            .collect();
        let lengths = (0..CHANNELS as i32)
            .map(|c| channel.iter().filter(|&&found| found == c).count() as f32)
            .collect();
        let bits = [None, Some(2), Some(4), Some(8)][random.below(4)];
        let table = bits.map_or(0, |bits| width * 8 / bits * (1 << bits) * hidden);
        let outputs = [vec![], vec![1], vec![17, 2], vec![64, 9, 3]][random.below(4)].clone();
        let (mut layers, mut inputs) = (Vec::new(), hidden);
        for outputs in outputs {
            layers.push((random.floats(inputs * outputs), random.floats(outputs)));
            inputs = outputs;
        }
        // Factors of reduced rows have 8 bits, as the model's do.
        let factors = random.floats(factored * hidden).into_iter();
        let factors = factors.map(|value| Bf16::round(value).widen()).collect();
        let slots = random.below(6);
        let pair_width = random.below(4);
        Self {
            hidden,
            widths,
            dtype,
            cache,
            keys,
            h: h_read,
            columns,
            has_content,
            signatures,
            categories,
            rankable,
            shared: random.floats(hidden),
            factors,
            slot_category: (0..slots)
                .map(|slot| if slot == 4 { -1 } else { 3 * slot as i32 - 1 })
                .collect(),
            slots: random.floats(slots * hidden),
            table: random.floats(table),
            bits,
            kind,
            sequence: random.bytes(length * width),
            channel,
            lengths,
            edges: (0..tiers)
                .map(|_| match kind {
                    Kind::SimHash => random.below(8 * width + 2) as i32,
                    Kind::Int8 => random.below(200_000) as i32 - 100_000,
                })
                .collect(),
            scale: [TierScale::Share, TierScale::Log1p][random.below(2)],
            tier_weights: random.floats(CHANNELS * (tiers + 1) * hidden),
            pair: random.floats(n * pair_width),
            pair_weights: random.floats(pair_width * hidden),
            layers,
        }
    }

    pub(super) fn signature_bytes(&self) -> usize {
        self.signatures.len() / self.keys.len()
    }

    pub(super) fn pair_width(&self) -> usize {
        self.pair_weights.len() / self.hidden
    }

    pub(super) fn with_model<T>(&self, halves: &[Bf16], use_it: impl FnOnce(&Model<'_>) -> T) -> T {
        let reduced = self.dtype != DType::Float32;
        use_it(&Model {
            hidden: self.hidden,
            shared: &self.shared,
            factored: NAMES.to_vec(),
            factors: if reduced {
                Matrix::Bf16(halves)
            } else {
                Matrix::F32(&self.factors)
            },
            slots: (!self.slots.is_empty()).then_some(SlotFactors {
                category: &self.slot_category,
                rows: Matrix::F32(&self.slots),
                first_category: 2,
            }),
            table: self.bits.map(|bits| Table {
                bits,
                values: Matrix::F32(&self.table),
                width: self.hidden,
            }),
            tiers: Some(Tiers {
                sequence: Sequence {
                    kind: self.kind,
                    width: self.signature_bytes(),
                    signatures: &self.sequence,
                    channel: &self.channel,
                    channels: CHANNELS,
                    edges: &self.edges,
                },
                lengths: &self.lengths,
                scale: self.scale,
                weights: &self.tier_weights,
            }),
            pair: PairFeatures {
                width: self.pair_width(),
                weights: &self.pair_weights,
            },
            layers: self
                .layers
                .iter()
                .map(|(weights, bias)| Layer { weights, bias })
                .collect(),
        })
    }

    /// Evaluates the formula for candidate `i` with its row.
    pub(super) fn expected(&self, i: usize) -> Vec<f64> {
        let h = self.hidden;
        let mut first: Vec<f64> = (0..h)
            .map(|o| f64::from(self.shared[o]) + f64::from(self.h[i * h + o]))
            .collect();
        let mut add = |x: f32, weights: &[f32]| {
            first
                .iter_mut()
                .zip(weights)
                .for_each(|(sum, &w)| *sum += f64::from(x) * f64::from(w));
        };
        let mut input = 0;
        for (column, &width) in self.columns.iter().zip(&self.widths) {
            for &x in &column[i * width..][..width] {
                add(x, &self.factors[input * h..][..h]);
                input += 1;
            }
        }
        let categories = &self.categories[i * CATEGORIES_EACH..][..CATEGORIES_EACH];
        let known = categories.iter().filter(|&&c| c >= 2).count();
        for &category in categories.iter().filter(|&&c| c >= 2) {
            for slot in (0..self.slot_category.len()).filter(|&s| self.slot_category[s] == category)
            {
                add(1.0 / known as f32, &self.slots[slot * h..][..h]);
            }
        }
        let width = self.signature_bytes();
        let own = &self.signatures[i * width..][..width];
        if let Some(bits) = self.bits {
            for group in 0..width * 8 / bits {
                let byte = own[group * bits / 8];
                let code = usize::from(byte) >> (group * bits % 8) & ((1 << bits) - 1);
                let row = (group << bits | code) * h;
                add(self.has_content[i], &self.table[row..][..h]);
            }
        }
        let tiers = self.edges.len() + 1;
        for (theirs, &channel) in self.sequence.chunks_exact(width).zip(&self.channel) {
            let score = self.kind.score(own, theirs);
            let tier = self.edges.iter().filter(|&&edge| score >= edge).count();
            if self.scale == TierScale::Share && channel >= 0 {
                let share = self.has_content[i] / self.lengths[channel as usize];
                add(
                    share,
                    &self.tier_weights[(channel as usize * tiers + tier) * h..][..h],
                );
            }
        }
        if self.scale == TierScale::Log1p {
            for channel in 0..CHANNELS {
                let mut counts = vec![0; tiers];
                for (theirs, _) in self
                    .sequence
                    .chunks_exact(width)
                    .zip(&self.channel)
                    .filter(|(_, c)| **c == channel as i32)
                {
                    let score = self.kind.score(own, theirs);
                    counts[self.edges.iter().filter(|&&edge| score >= edge).count()] += 1;
                }
                for (tier, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                    let share = (count as f32).ln_1p() / self.lengths[channel].ln_1p();
                    add(
                        self.has_content[i] * share,
                        &self.tier_weights[(channel * tiers + tier) * h..][..h],
                    );
                }
            }
        }
        let p = self.pair_width();
        for (feature, &x) in self.pair[i * p..][..p].iter().enumerate() {
            add(x, &self.pair_weights[feature * h..][..h]);
        }
        for (weights, bias) in &self.layers {
            let mut next: Vec<f64> = bias.iter().map(|&b| f64::from(b)).collect();
            for (&x, weights) in first.iter().zip(weights.chunks_exact(bias.len())) {
                next.iter_mut()
                    .zip(weights)
                    .for_each(|(sum, &w)| *sum += x.max(0.0) * f64::from(w));
            }
            first = next;
        }
        first
    }
}
