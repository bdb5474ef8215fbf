//! C ABI by which XLA calls the kernels from inside a compiled program.
//!
//! XLA's foreign function interface is a plain C header (`xla/ffi/api/c_api.h`, version 0.1 and later):
//! `api` is the part of it that is used here, `call` checks and decodes one call, `handlers` holds the
//! functions registered with XLA, and `parallel` shares one call's work with XLA's own threads.
//!
//! A handler never unwinds into XLA and never trusts a size: an error is returned as an XLA error with a
//! message, which JAX raises as an exception.
//!
//! # Consistency
//! `aif_gather_rows` reads a cache while others write it. Each row is one whole version; rows of one call
//! may be of different moments. The cache's handle is an operand, so that a program can be given another
//! cache without being compiled again.

mod api;
mod call;
#[cfg(not(aif_loom))]
mod handlers;
#[cfg(not(aif_loom))]
mod interaction;
mod parallel;

pub use api::Handler;
#[cfg(not(aif_loom))]
pub use handlers::TARGETS;
