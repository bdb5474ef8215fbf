//! Kernels over signatures: the `SimTier` histogram ([`SimTier`]) and the sum of table rows
//! ([`table_sum()`]).
//!
//! # Dispatch
//! Every kernel has a portable form, which the compiler vectorises for its target (NEON on aarch64), and
//! forms for AVX2, AVX-VNNI and AVX-512 (with VBMI, VNNI and VPOPCNTDQ: Ice Lake, Zen 4 and later).
//! [`Level::chosen`] picks the best that the CPU has, once; the environment variable `AIF_JAX_KERNELS`
//! forces one. All forms return the same bits, floats included, because floats are added in one order
//! everywhere.
//!
//! # Trade-offs
//! A sequence is grouped by channel and packed for the vector units once per call ([`SimTier::new`]), so
//! that the loop over pairs has no branches; for sign bits that is a table of 3.4 times their size. It
//! costs about as much as 150 candidates, which is negligible for thousands.

mod arch;
mod bits;
mod dots;
mod edges;
mod level;
mod pack;
mod simtier;
mod table_sum;

pub use level::{ENVIRONMENT_VARIABLE, Level};
pub use simtier::{Kind, MAX_EDGES, Sequence, SimTier};
pub use table_sum::table_sum;
