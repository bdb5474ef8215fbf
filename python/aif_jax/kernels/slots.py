"""Categories in slots: which of an item's categories a user has pooled sub-sequences of."""

import jax
import jax.numpy as jnp

FIRST_CATEGORY = 2
"""Encoded categories from here on name something: 0 is missing, and unknown ones (1) need not be the same."""

NO_CATEGORY = -1
"""Fills slots that the user has no category for."""


def in_slot(category: jax.Array, slot: jax.Array) -> jax.Array:
    """Return bool ``[..., C, C_max]``: which slot holds which of the categories ``[..., C]``.

    Args:
        category: int32 ``[..., C]``.
        slot: int32 ``[..., C_max]``, broadcastable to the leading axes.
    """
    real = category >= FIRST_CATEGORY
    return (category[..., :, None] == slot[..., None, :]) & real[..., None]


def slot_weights(category: jax.Array, slot: jax.Array) -> jax.Array:
    """Return how an item's categories average the slots: ``[..., C_max]``.

    Each of the item's categories weighs the same; one that has no slot contributes nothing.
    """
    hits = jnp.sum(in_slot(category, slot), axis=-2).astype(jnp.float32)
    n = jnp.sum(category >= FIRST_CATEGORY, axis=-1).astype(jnp.float32)
    return hits / jnp.maximum(n, 1.0)[..., None]
