"""Tests run with a strict JAX: what would be a silent conversion in production is an error here."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")

pytest_plugins = ("served",)
