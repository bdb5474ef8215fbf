"""SIM-hard: a candidate sees the user's behaviours in its own categories (Pi et al. 2020, arXiv 2006.05639).

``x = G_u[cat(i)]``: the sub-sequences of the user's ``C_max`` most recent categories are pooled ahead of the
request, ``G_u``; the candidate averages those of its categories. Folded, the slots hold ``G_u W_s``.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.features import Schema
from aif_jax.kernels import Slots, slot_weights
from aif_jax.kernels.slots import FIRST_CATEGORY, NO_CATEGORY, in_slot
from aif_jax.models.blocks import base
from aif_jax.models.initial import linear

HALVES = (4.0, 20.0, math.inf)
"""Numbers of behaviours after which the weight of one in a count is halved."""

COUNTS = len(HALVES) + 1
"""Counts of a slot's behaviours."""


class Pooled(NamedTuple):
    """The pooled sub-sequences of users.

    Attributes:
        category: int32 ``[B, C_max]``, the category of each slot.
        rows: ``G_u`` ``[B, C_max, d_s]``.
        overflow: int32 ``[B]``, how much found no slot, see `recent_categories`.
    """

    category: jax.Array
    rows: jax.Array
    overflow: jax.Array

    @property
    def present(self) -> jax.Array:
        """Bool ``[B, 1]``: users with any category."""
        return jnp.any(self.category >= 0, axis=1, keepdims=True)


class SimHard(base.InteractionBlock):
    """Sub-sequences by category; absent where the history has no category."""

    name = "sim_hard"

    def _declare(self) -> None:
        self.width = self.config.sim_width
        self.behaviour_columns = self.shared("value", "category")
        self.row_columns = self.shared("category")
        self.narrowed = ("sim",)
        self.weights = base.Weights(user=("pool.*", "first.sim_hard.*", "first.absent_sim_hard"))

    @classmethod
    def exists(cls, schema: Schema) -> bool:
        """Return whether the schema names a category."""
        return schema.category is not None

    def state_columns(self, length: Any) -> base.ColumnShapes:
        """Return ``sim_category``, ``sim`` and ``sim_overflow``."""
        slots = self.config.sim_slots
        return {
            "sim_category": ((slots,), base.I4),
            "sim": ((slots, self.config.hidden), base.F4),
            "sim_overflow": ((), base.I4),
        }

    def modules(self, rngs: nnx.Rngs) -> base.Entries:
        """Return ``pool``."""
        return {"pool": CategoryPool(self.config.value_width, self.config.sim_width, rngs=rngs)}

    def user(self, model: Any, side: base.UserSide) -> Any:
        """Return the pooled sub-sequences."""
        categories, valid = side.long["category"], side.long_type >= 0
        slot, overflow = recent_categories(categories, valid, self.config.sim_slots)
        return Pooled(slot, model.pool(side.value, categories, valid, slot), overflow)

    def input(
        self, model: Any, candidates: base.Candidates, side: base.UserSide
    ) -> tuple[jax.Array, jax.Array]:
        """Return the average of the candidates' slots ``[B, G, d_s]``, and which users have any."""
        pooled: Pooled = side.own[self.name]
        weights = slot_weights(self.schema.category_ids(candidates.item), pooled.category[:, None])
        return weights @ pooled.rows, pooled.present

    def state(self, model: Any, side: base.UserSide) -> dict[str, jax.Array]:
        """Return ``G_u W_s`` ``[B, C_max, h]`` with its categories."""
        pooled: Pooled = side.own[self.name]
        return {
            "h_u": model.first.instead(self.name, pooled.present[:, 0]),
            "sim_category": pooled.category,
            "sim": pooled.rows @ model.first.weight(self.name),
            "sim_overflow": pooled.overflow,
        }

    def operands(
        self, model: Any, weights: base.Arrays, state: base.Arrays, context: base.Arrays, pair: base.Arrays
    ) -> base.Entries:
        """Return ``slots``."""
        return {"slots": Slots(state["sim_category"], state["sim"])}

    def flops(self, length: int) -> tuple[int, int]:
        """``2 C_max h`` a candidate; a user ``2 C_max (L d_v + (d_v + 4) d_s + d_s h)``."""
        config = self.config
        h, d_v, d_s = config.hidden, config.value_width, config.sim_width
        user = length * d_v + (d_v + COUNTS) * d_s + d_s * h
        return 2 * config.sim_slots * h, 2 * config.sim_slots * user


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
    """``G_u = relu([mean value, counts] W + b)`` for the behaviours of each slot's category.

    The counts are the logarithms of ``1 + Σ_l 2^(-l / h)`` over the positions ``l`` of the behaviours, one
    for each ``h`` of `HALVES`, and the share of the history. A share alone hardly tells one behaviour from
    none, nor those of the last session from older ones.
    """

    def __init__(self, value_width: int, sim_width: int, *, rngs: nnx.Rngs) -> None:
        self.linear = linear(value_width + COUNTS, sim_width, rngs=rngs)

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
        sums = jnp.einsum("blc,lh->bch", weights, faded(weights.shape[1]))
        count = sums[..., -1:]
        mean = jnp.einsum("blc,blv->bcv", weights, value) / jnp.maximum(count, 1.0)
        length = jnp.sum(valid, axis=1).astype(jnp.float32)
        share = count / jnp.maximum(length, 1.0)[:, None, None]
        pooled = jax.nn.relu(self.linear(jnp.concatenate([mean, jnp.log1p(sums), share], axis=-1)))
        return jnp.where((slot >= 0)[..., None], pooled, 0.0)


def faded(length: Any) -> jax.Array:
    """Return the weights float32 ``[L, len(HALVES)]`` of behaviours in counts, the most recent one first."""
    position = jnp.arange(length, dtype=jnp.float32)[:, None]
    return jnp.exp(-position * jnp.asarray([math.log(2.0) / half for half in HALVES], jnp.float32))
