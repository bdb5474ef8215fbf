//! Native core of `aif_jax`: the parts of a pre-ranker outside the compiled model.
//!
//! - [`cache`]: concurrent store of fixed-size rows under 64-bit keys, lock-free for readers;
//! - [`sched`]: two-lane thread pool with deadlines, for request graphs;
//! - [`lsh`]: kernels over signatures (`SimTier` histograms, table sums);
//! - [`dense`]: products of blocks of rows with small weights;
//! - [`interaction`]: item ids to logits, the pair-dependent part of the real-time stage;
//! - [`mod@top_k`]: selection of the highest scores;
//! - [`mod@distinct`]: first occurrences among many keys;
//! - [`standard`]: standardisation of numeric columns;
//! - [`mapping`]: memory-mapped files;
//! - [`process`]: detection of forks;
//! - [`pool`]: pool of buffers for batches of rows;
//! - [`xla`]: C ABI by which XLA calls those kernels from inside a compiled program.
//!
//! Nothing here depends on Python. Imports run one way: `sync, error, bf16 -> process -> mapping -> buffer -> {cache,
//! sched, lsh -> dense, distinct, pool, standard, top_k} -> interaction -> xla`.

// Loom's models are of the cache, the scheduler and work sharing: the kernels, which have no threads, take most of a build.
#![cfg_attr(aif_loom, allow(dead_code))]

pub mod bf16;
pub mod buffer;
pub mod cache;
#[cfg(not(aif_loom))]
pub mod dense;
pub mod distinct;
pub mod error;
#[cfg(not(aif_loom))]
pub mod interaction;
#[cfg(not(aif_loom))]
pub mod lsh;
pub mod mapping;
pub mod metrics;
pub mod pool;
pub mod process;
pub mod sched;
pub mod standard;
pub mod sync;
#[cfg(not(aif_loom))]
pub mod top_k;
pub mod xla;
