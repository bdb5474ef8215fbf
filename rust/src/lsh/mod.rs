//! Kernels over signatures: the `SimTier` histogram ([`SimTier`]) and the sum of table rows
//! ([`table_sum()`]).
//!
//! # Dispatch
//! Every kernel exists in a portable form, which the compiler vectorises for whatever it builds for
//! (NEON on aarch64), and in forms for AVX2 and AVX-512 (with BITALG and VNNI: Ice Lake, Zen 4 and
//! later). [`Level::chosen`] picks the best that the CPU has, once; the environment variable
//! `AIF_JAX_KERNELS` forces one. All forms return the same bits, floats included, because floats are
//! added in one order everywhere.
//!
//! # Trade-offs
//! A sequence is grouped by channel and laid out for the vector units once per call ([`SimTier::new`]),
//! so that the loop over pairs has no branches. That costs about as much as four candidates, which a
//! call with hundreds of candidates does not notice.

mod arch;
mod level;
mod pack;
mod simtier;
mod table_sum;

pub use level::{ENVIRONMENT_VARIABLE, Level};
pub use simtier::{Kind, MAX_EDGES, Sequence, SimTier};
pub use table_sum::table_sum;
