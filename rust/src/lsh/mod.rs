//! lsh.
