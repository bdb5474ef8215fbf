"""Small pieces that the modules share: an MLP, masked attention, masked means."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.models.initial import linear

_TINY = 1e-30
"""Stands in for a sum of weights that is zero, so that nothing attended to gives zeros and not NaN."""


class Mlp(nnx.Module):
    """Linear layers with ReLU between them, and none after the last.

    Args:
        sizes: widths from the input to the output, two or more.
        rngs: random keys of the initial weights.
    """

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs) -> None:
        self.depth = len(sizes) - 1
        for number, (n_in, n_out) in enumerate(pairwise(sizes)):
            setattr(self, f"layer_{number}", linear(n_in, n_out, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[..., sizes[0]]`` to ``[..., sizes[-1]]``."""
        for number in range(self.depth):
            if number:
                x = jax.nn.relu(x)
            x = getattr(self, f"layer_{number}")(x)
        return x


def as_arrays(columns: Mapping[str, jax.Array | np.ndarray]) -> dict[str, jax.Array]:
    """Return columns as JAX arrays."""
    return {name: jnp.asarray(values) for name, values in columns.items()}


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the softmax over the last axis where ``mask`` holds; rows without any are zeros.

    Args:
        logits: ``[..., K]``.
        mask: bool, broadcastable to ``logits``.
    """
    logits = jnp.where(mask, logits, -1e30)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - top), 0.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), _TINY)


def attend(queries: jax.Array, keys: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``softmax(Q Kᵀ / √d) K``, the attention of queries over keys that are their own values.

    Args:
        queries: ``[..., Q, d]``.
        keys: ``[..., K, d]``.
        mask: bool ``[..., K]``, which keys exist; without any the result is zeros.

    Returns:
        ``[..., Q, d]``.
    """
    logits = jnp.matmul(queries, jnp.swapaxes(keys, -1, -2)) / jnp.sqrt(jnp.float32(keys.shape[-1]))
    return jnp.matmul(masked_softmax(logits, mask[..., None, :]), keys)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean over axis -2 where ``mask`` holds, zeros where it holds nowhere.

    Args:
        values: ``[..., K, d]``.
        mask: bool ``[..., K]``.

    Returns:
        ``[..., d]``.
    """
    weights = mask.astype(values.dtype)
    total = jnp.sum(values * weights[..., None], axis=-2)
    return total / jnp.maximum(jnp.sum(weights, axis=-1), 1.0)[..., None]
