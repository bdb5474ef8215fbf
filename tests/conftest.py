"""Tests run with a strict JAX: what would be a silent conversion in production is an error here."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

pytest_plugins = ("served",)


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Half of the suite's time was compiling what a test before, or beside it, had compiled already."""
    mine = tmp_path_factory.getbasetemp()
    # Of xdist's workers each has a folder of its own in one that they share.
    shared = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
