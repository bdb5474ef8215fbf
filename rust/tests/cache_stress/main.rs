//! Stress tests of the embedding cache: every row identifies its key and version in all its bytes, reads
//! are checked against writes, and all counts must balance.
//!
//! Each test runs for a moment, or for `AIF_STRESS_SECONDS`; `make stress` runs them long and under the
//! address and thread sanitizers.

#[path = "../common/mod.rs"]
mod common;
mod history;
mod lifetimes;
mod register;
mod snapshots;
mod stage;
mod stalls;
mod totals;
mod versions;
