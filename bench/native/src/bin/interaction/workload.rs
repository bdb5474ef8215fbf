//! The standard workload of the real-time kernel, of random numbers: sizes as in `bench/workload.py`.

use aif_core::bf16::{Bf16, Matrix};
use aif_core::cache::{CacheConfig, DType, EmbeddingCache, RowLayout};
use aif_core::interaction::{Layer, Model, PairFeatures, SlotFactors, TierScale, Tiers};
use aif_core::lsh::{Kind, Sequence};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub const CANDIDATES: usize = 4096;
/// Requests in turn, so many that their rows fit in no level of cache.
pub const REQUESTS: usize = 40;
const ITEMS: usize = 1_000_000;
const HIDDEN: usize = 128;
const FACTORED: [(&str, usize); 3] = [("e", 64), ("bridge", 16), ("content", 64)];
const SIGNATURE_BYTES: usize = 32;
const HISTORY: usize = 1024;
const CATEGORIES: i32 = 300;
const SLOTS: usize = 32;
const PAIR: usize = 3;

/// Rows written together.
const BATCH: usize = 10_000;

/// Everything that a model borrows.
pub struct Workload {
    pub cache: EmbeddingCache,
    /// Candidates of one request after the other.
    pub keys: Vec<u64>,
    pub pair: Vec<f32>,
    half: bool,
    shared: Vec<f32>,
    factors: Vec<f32>,
    slot_category: Vec<i32>,
    slots: Vec<f32>,
    sequence: Vec<u8>,
    channel: Vec<i32>,
    edges: Vec<i32>,
    tier_weights: Vec<f32>,
    pair_weights: Vec<f32>,
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Workload {
    /// Draws it, with rows and factors of 16 bits if `half`.
    pub fn new(half: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(0);
        let dtype = if half {
            DType::BFloat16
        } else {
            DType::Float32
        };
        let mut columns = vec![("h", dtype, vec![HIDDEN])];
        columns.extend(FACTORED.map(|(name, width)| (name, dtype, vec![width])));
        columns.push(("has_content", DType::Float32, vec![1]));
        columns.push(("signature", DType::UInt8, vec![SIGNATURE_BYTES]));
        columns.push(("category", DType::Int32, vec![4]));
        columns.push(("rankable", DType::UInt8, vec![1]));
        let layout = RowLayout::new(columns).expect("a layout");
        let config = CacheConfig {
            initial_keys: ITEMS,
            ..CacheConfig::default()
        };
        let cache = EmbeddingCache::new(layout, config).expect("memory for the items");
        let key_of = |item: usize| (1 << 40) + item as u64;
        let numbers = |rng: &mut StdRng, n: usize| -> Vec<u8> {
            let values = (0..n).map(|_| rng.random_range(-1.0..1.0f32));
            if half {
                values
                    .flat_map(|value| Bf16::round(value).0.to_ne_bytes())
                    .collect()
            } else {
                values.flat_map(f32::to_ne_bytes).collect()
            }
        };
        // Batches differ in signatures and categories; what floats hold changes no time.
        let mut floats: Vec<Vec<u8>> = vec![numbers(&mut rng, BATCH * HIDDEN)];
        floats.extend(FACTORED.map(|(_, width)| numbers(&mut rng, BATCH * width)));
        floats.push(1f32.to_ne_bytes().repeat(BATCH));
        for first in (0..ITEMS).step_by(BATCH) {
            let keys: Vec<u64> = (first..first + BATCH).map(key_of).collect();
            let signatures: Vec<u8> = (0..BATCH * SIGNATURE_BYTES).map(|_| rng.random()).collect();
            let categories: Vec<u8> = (0..BATCH)
                .flat_map(|_| {
                    [
                        rng.random_range(2..CATEGORIES),
                        rng.random_range(2..CATEGORIES),
                        0,
                        0,
                    ]
                })
                .flat_map(i32::to_ne_bytes)
                .collect();
            let rankable = [1u8; BATCH];
            let mut row: Vec<&[u8]> = floats.iter().map(Vec::as_slice).collect();
            row.extend([&signatures[..], &categories, &rankable]);
            cache.upsert(&keys, &row).expect("rows of the layout");
        }
        let factored: usize = FACTORED.iter().map(|(_, width)| width).sum();
        let mut draw =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-0.5..0.5)).collect() };
        let (shared, factors) = (draw(HIDDEN), draw(factored * HIDDEN));
        let (slots, tier_weights) = (draw(SLOTS * HIDDEN), draw(16 * HIDDEN));
        let (pair, pair_weights) = (draw(CANDIDATES * PAIR), draw(PAIR * HIDDEN));
        let layers = vec![(draw(HIDDEN * 64), draw(64)), (draw(64), draw(1))];
        Self {
            cache,
            keys: (0..REQUESTS * CANDIDATES)
                .map(|_| key_of(rng.random_range(0..ITEMS)))
                .collect(),
            pair,
            half,
            shared,
            factors,
            slot_category: (0..SLOTS as i32).map(|slot| 2 + slot * 9).collect(),
            slots,
            sequence: (0..HISTORY * SIGNATURE_BYTES)
                .map(|_| rng.random())
                .collect(),
            channel: vec![0; HISTORY],
            edges: (0..15).map(|tier| 96 + tier * 10).collect(),
            tier_weights,
            pair_weights,
            layers,
        }
    }

    /// The factors in 16 bits.
    pub fn halves(&self) -> Vec<Bf16> {
        self.factors
            .iter()
            .map(|&value| Bf16::round(value))
            .collect()
    }

    /// The model.
    pub fn model<'a>(&'a self, halves: &'a [Bf16]) -> Model<'a> {
        Model {
            hidden: HIDDEN,
            shared: &self.shared,
            factored: FACTORED.map(|(name, _)| name).to_vec(),
            factors: if self.half {
                Matrix::Bf16(halves)
            } else {
                Matrix::F32(&self.factors)
            },
            slots: Some(SlotFactors {
                category: &self.slot_category,
                rows: Matrix::F32(&self.slots),
                first_category: 2,
            }),
            table: None,
            tiers: Some(Tiers {
                sequence: Sequence {
                    kind: Kind::SimHash,
                    width: SIGNATURE_BYTES,
                    signatures: &self.sequence,
                    channel: &self.channel,
                    channels: 1,
                    edges: &self.edges,
                },
                lengths: &[HISTORY as f32],
                scale: TierScale::Share,
                weights: &self.tier_weights,
            }),
            pair: PairFeatures {
                width: PAIR,
                weights: &self.pair_weights,
            },
            layers: self
                .layers
                .iter()
                .map(|(weights, bias)| Layer { weights, bias })
                .collect(),
        }
    }
}
