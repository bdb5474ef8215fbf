"""The native half of aif_jax: embedding cache, scheduler and CPU kernels, written in Rust.

Import these names from `aif_jax`, not from here.
"""

__version__: str
