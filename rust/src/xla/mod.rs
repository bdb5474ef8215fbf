//! xla.
