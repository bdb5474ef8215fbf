"""Initial weights, drawn by NumPy: the same on every platform, and without a program to compile per shape."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx


def linear(n_in: int, n_out: int, *, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """Return a linear layer with normal weights of variance ``1 / n_in`` and a bias of zero."""
    return nnx.Linear(n_in, n_out, use_bias=use_bias, kernel_init=_by_fan_in, bias_init=_zeros, rngs=rngs)


def normal(shape: Sequence[int], scale: float, *, rngs: nnx.Rngs) -> nnx.Param:
    """Return a parameter drawn from a normal distribution of standard deviation ``scale``."""
    return nnx.Param(_normal(rngs.params(), tuple(shape), scale))


def constant(value: float, shape: Sequence[int] = ()) -> nnx.Param:
    """Return a parameter that starts as ``value`` everywhere."""
    return nnx.Param(_on_device(np.full(tuple(shape), value, np.float32)))


def _by_fan_in(key: jax.Array, shape: Sequence[int], dtype: Any = None, *_: Any) -> jax.Array:
    return _normal(key, tuple(shape), 1.0 / shape[0] ** 0.5)


def _zeros(key: jax.Array, shape: Sequence[int], dtype: Any = None, *_: Any) -> jax.Array:
    return _on_device(np.zeros(tuple(shape), np.float32))


def _normal(key: jax.Array, shape: tuple[int, ...], scale: float) -> jax.Array:
    if isinstance(key, jax.core.Tracer):  # only the shape is asked for, as under nnx.eval_shape
        return jnp.zeros(shape, jnp.float32)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return _on_device(scale * rng.standard_normal(shape, np.float32))


def _on_device(values: np.ndarray) -> jax.Array:
    """Return values as `jnp.asarray` does, which compiles a program for each shape since jax 0.10."""
    return jax.device_put(values)
