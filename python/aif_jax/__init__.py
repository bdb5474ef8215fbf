"""AIF: asynchronous inference for pre-ranking, in JAX with a Rust extension."""
