//! Core errors as the exceptions of `aif_jax.errors`.
