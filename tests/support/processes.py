"""Processes of a test's own."""

import jax


def shared_compilations() -> dict[str, str]:
    """Return environment variables by which a process finds the programs that this one has compiled."""
    directory = jax.config.jax_compilation_cache_dir
    if directory is None:
        return {}
    return {
        "JAX_COMPILATION_CACHE_DIR": directory,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
