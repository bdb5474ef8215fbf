"""SIM-hard: a candidate sees the user's behaviours in its own categories (Pi et al. 2020, arXiv 2006.05639).

The sub-sequences of the user's most recent categories are pooled ahead of the request; the candidate looks
its categories up among them.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.kernels.slots import FIRST_CATEGORY, NO_CATEGORY, in_slot
from aif_jax.models.initial import linear


def recent_categories(category: jax.Array, valid: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Return the most recent distinct categories of a history.

    Args:
        category: int32 ``[B, L, C]``, encoded categories of each behaviour, most recent behaviour first.
        valid: bool ``[B, L]``, which behaviours exist.
        slots: ``C_max``, how many to return.

    Returns:
        int32 ``[B, C_max]`` in order of recency, `NO_CATEGORY` where there are fewer; and int32 ``[B]``, how
        many of the behaviours' categories (counted once per behaviour) found no slot.
    """
    flat = jnp.where(valid[..., None], category, 0).reshape(category.shape[0], -1)
    left = flat >= FIRST_CATEGORY

    def more(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        # Few histories have so many categories: without this half of the passes would find nothing.
        slot, left, _ = state
        return (slot < slots) & jnp.any(left)

    def take_one(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        slot, left, found = state
        first = jax.lax.argmax(left, 1, jnp.int32)[:, None]
        category = jnp.where(
            jnp.any(left, axis=1), jnp.take_along_axis(flat, first, axis=1)[:, 0], jnp.int32(NO_CATEGORY)
        )
        return slot + 1, left & (flat != category[:, None]), found.at[slot].set(category)

    nothing = jnp.full((slots, flat.shape[0]), NO_CATEGORY, jnp.int32)
    _, left, found = jax.lax.while_loop(more, take_one, (jnp.int32(0), left, nothing))
    return found.T, jnp.sum(left, axis=1, dtype=jnp.int32)


class CategoryPool(nnx.Module):
    """``G_u = relu([mean value, share of the history] W + b)`` for the behaviours of each slot's category."""

    def __init__(self, value_width: int, sim_width: int, *, rngs: nnx.Rngs) -> None:
        self.linear = linear(value_width + 1, sim_width, rngs=rngs)

    def __call__(self, value: jax.Array, category: jax.Array, valid: jax.Array, slot: jax.Array) -> jax.Array:
        """Pool a history by category.

        Args:
            value: ``[B, L, d_v]``.
            category: int32 ``[B, L, C]``.
            valid: bool ``[B, L]``.
            slot: int32 ``[B, C_max]``.

        Returns:
            ``[B, C_max, d_s]``, zeros in slots without a category.
        """
        member = jnp.zeros((*category.shape[:2], slot.shape[-1]), bool)
        for column in range(category.shape[-1]):  # a few; all at once would be [B, L, C, C_max]
            member |= in_slot(category[..., column, None], slot[:, None])[..., 0, :]
        weights = (member & valid[..., None]).astype(jnp.float32)
        count = jnp.sum(weights, axis=1)
        mean = jnp.einsum("blc,blv->bcv", weights, value) / jnp.maximum(count, 1.0)[..., None]
        length = jnp.sum(valid, axis=1).astype(jnp.float32)
        share = count / jnp.maximum(length, 1.0)[:, None]
        pooled = jax.nn.relu(self.linear(jnp.concatenate([mean, share[..., None]], axis=-1)))
        return jnp.where((slot >= 0)[..., None], pooled, 0.0)
