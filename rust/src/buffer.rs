//! Aligned memory whose allocation can fail.
