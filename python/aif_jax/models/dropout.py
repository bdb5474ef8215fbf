"""Dropping of blocks in training: each is hidden from whole requests at random."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.errors import ConfigError

Keep: TypeAlias = Mapping[str, jax.Array]
"""For each droppable thing bool ``[B]``, whether the request keeps it; a name that is absent is kept."""

RUNGS = ("long_history", "user")
"""Parts that the deadline ladder hides as a whole: the long sequence; everything known of the user."""


def draw_keep(rate: float, names: Iterable[str], n: int, key: jax.Array) -> dict[str, jax.Array]:
    """Draw which requests keep each of ``names``: independently, each dropped with probability ``rate``."""
    names = sorted(names)
    kept = jax.random.bernoulli(key, 1.0 - rate, (len(names), n))
    return {name: kept[row] for row, name in enumerate(names)}


def shown(keep: Keep, name: str, present: jax.Array) -> jax.Array:
    """Return where a block's input is present and the request keeps it; ``present`` is bool ``[B, ...]``."""
    if name not in keep:
        return present
    kept = keep[name]
    return present & kept.reshape(kept.shape + (1,) * (present.ndim - kept.ndim))


def hidden(inputs: Mapping[str, jax.Array], keep: jax.Array) -> dict[str, jax.Array]:
    """Return encoded features with the rows that are not kept set to missing, which is zero in every kind.

    Args:
        inputs: encoded features ``[*rows, ...]``.
        keep: bool ``[*rows]``.
    """
    return {
        name: jnp.where(
            keep.reshape(keep.shape + (1,) * (values.ndim - keep.ndim)), values, jnp.zeros_like(values)
        )
        for name, values in inputs.items()
    }


def random_key(rngs: nnx.Rngs | jax.Array | None) -> jax.Array:
    """Return the key of this training step.

    Raises:
        ConfigError: training with dropout, but without random keys.
    """
    if rngs is None:
        raise ConfigError(
            "train=True draws which blocks to drop and needs rngs=nnx.Rngs(seed) or a jax.random.key; "
            "for a model without dropout set block_dropout=0 and item_id_dropout=0."
        )
    return rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
