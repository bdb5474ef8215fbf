//! The native core of `aif_jax`: what a pre-ranker needs outside the compiled model.
//!
//! - [`cache`]: a concurrent store of fixed-size rows under 64-bit keys, lock-free for readers;
//! - [`sched`]: a two-lane thread pool with deadlines, for request graphs;
//! - [`lsh`]: kernels over signatures (`SimTier` histograms, table sums);
//! - [`dense`]: products of blocks of rows with small weights;
//! - [`interaction`]: from item ids to logits, all of the real-time stage that depends on the pair;
//! - [`mod@top_k`]: the best of many scores;
//! - [`mod@distinct`]: which of many keys had come before;
//! - [`standard`]: columns of numbers, standardised;
//! - [`mapping`]: files as memory;
//! - [`pool`]: buffers for batches of rows, lent and taken back;
//! - [`xla`]: the C ABI by which XLA calls those kernels from inside a compiled program.
//!
//! Nothing here knows Python. Imports run one way:
//! `sync, error, bf16 -> mapping -> buffer -> {cache, sched, lsh -> dense, distinct, pool, standard, top_k} -> interaction -> xla`.

pub mod bf16;
pub mod buffer;
pub mod cache;
pub mod dense;
pub mod distinct;
pub mod error;
pub mod interaction;
pub mod lsh;
pub mod mapping;
pub mod metrics;
pub mod pool;
pub mod sched;
pub mod standard;
pub mod sync;
pub mod top_k;
pub mod xla;
