"""Slots of categories: the match of an item's categories with the user's pooled sub-sequences."""

import jax
import jax.numpy as jnp

FIRST_CATEGORY = 2
"""First encoded category that is known: 0 is missing, and two unknown ones (1) may differ."""

NO_CATEGORY = -1
"""Value of slots without a category."""


def in_slot(category: jax.Array, slot: jax.Array) -> jax.Array:
    """Return a mask of the slots that hold each of the categories ``[..., C]``, bool ``[..., C, C_max]``.

    Args:
        category: int32 ``[..., C]``.
        slot: int32 ``[..., C_max]``, broadcastable to the leading axes.
    """
    real = category >= FIRST_CATEGORY
    return (category[..., :, None] == slot[..., None, :]) & real[..., None]


def slot_weights(category: jax.Array, slot: jax.Array) -> jax.Array:
    """Return the weights of an item's average over slots: ``[..., C_max]``.

    Each of the item's categories weighs the same; one that has no slot contributes nothing.
    """
    hits = jnp.sum(in_slot(category, slot), axis=-2).astype(jnp.float32)
    n = jnp.sum(category >= FIRST_CATEGORY, axis=-1).astype(jnp.float32)
    return hits / jnp.maximum(n, 1.0)[..., None]
