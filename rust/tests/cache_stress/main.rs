//! Threads against each other over the embedding cache: every row says in all its bytes whose it is, what
//! readers see is held against what writers did, and what went in is counted out.
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
