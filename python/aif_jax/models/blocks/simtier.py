"""SimTier: how many behaviours of each type lie in each tier of similarity (arXiv 2407.19467).

``x = tier(s_i, S_u)``: for each behaviour type a histogram over ``T`` tiers of the similarities between the
candidate's signature and those of the long sequence, as shares of the sequence or as logarithms. It is the
only block of which the stage computes something for each candidate and behaviour: integer work, in a Rust
kernel.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from aif_jax.kernels import Tiers, simtier, tier_features
from aif_jax.models.blocks import base
from aif_jax.models.signature import edges_of


class SimTier(base.InteractionBlock):
    """The histogram of similarities; absent where no behaviour counts."""

    name = "simtier"

    def _declare(self) -> None:
        config = self.config
        self.channels = len(self.schema.behaviour_types)
        self.width = self.channels * config.tiers
        self.behaviour_columns = self.shared("has_content", "signature")
        self.row_columns = self.shared("has_content", "signature")
        self.weights = base.Weights(
            user=("first.absent_simtier",), history=("first.simtier.*", "simtier.edges")
        )
        self.constants = {"simtier.edges": edges_of(config)}
        self.form = {"kind": config.signature, "scale": config.tier_scale}

    def labels(self) -> dict[str, base.Labels]:
        """Return behaviour type and tier of the rows of its weight."""
        tiers = range(self.config.tiers)
        rows = [(f"type {name}", str(tier)) for name in self.schema.behaviour_types for tier in tiers]
        return {"first.simtier.kernel": {0: rows}}

    def state_columns(self, length: Any) -> base.ColumnShapes:
        """Return ``signature`` and ``channel`` of the behaviours, and ``tier_length``."""
        return {
            "signature": ((length, self.config.signature_bytes), base.U1),
            "channel": ((length,), base.I4),
            "tier_length": ((self.channels,), base.F4),
        }

    def user(self, model: Any, side: base.UserSide) -> Any:
        """Return ``[B, channels]``, how many behaviours each channel counts."""
        return channel_lengths(side.channel, self.channels)

    def input(
        self, model: Any, candidates: base.Candidates, side: base.UserSide
    ) -> tuple[jax.Array, jax.Array]:
        """Return the histograms ``[B, G, channels * T]``, and which users have a history."""
        counts = self.counts(candidates.item, side)
        tiers = tier_features(counts, side.own[self.name][:, None], self.config.tier_scale)
        return tiers * candidates.item["has_content"], jnp.any(side.counted, axis=1, keepdims=True)

    def counts(self, item: base.Arrays, side: base.UserSide) -> jax.Array:
        """Return counts int32 ``[B, G, channels, T]`` of candidates."""
        theirs, edges = side.long["signature"], jnp.asarray(edges_of(self.config))
        kind = self.config.signature
        return simtier(item["signature"], theirs, side.channel, edges, channels=self.channels, kind=kind)

    def state(self, model: Any, side: base.UserSide) -> dict[str, jax.Array]:
        """Return what the stage needs of the behaviours."""
        return {
            "h_u": model.first.instead(self.name, jnp.any(side.counted, axis=1)),
            "signature": side.long["signature"],
            "channel": side.channel,
            "tier_length": side.own[self.name],
        }

    def operands(
        self, model: Any, weights: base.Arrays, state: base.Arrays, context: base.Arrays, pair: base.Arrays
    ) -> base.Entries:
        """Return ``tiers``."""
        behaviours = (state["signature"], state["channel"], state["tier_length"])
        return {"tiers": Tiers(*behaviours, weights["simtier.edges"], model.first.weight(self.name))}

    def flops(self, length: int) -> tuple[int, int]:
        """``2 channels T h`` for each candidate, besides ``L b`` comparisons of bits in integers."""
        return 2 * self.width * self.config.hidden, 0


class ExactSimTier(SimTier):
    """The histogram over float cosines of content embeddings."""

    def _declare(self) -> None:
        super()._declare()
        self.behaviour_columns = self.shared("content", "has_content")

    def counts(self, item: base.Arrays, side: base.UserSide) -> jax.Array:
        """Return counts int32 ``[B, G, channels, T]`` of candidates."""
        similarity = jnp.einsum("bgm,blm->bgl", item["content"], side.long["content"])
        return float_tiers(similarity, side.channel, self.config.tier_edges, self.channels)


def channel_lengths(channel: jax.Array, channels: int) -> jax.Array:
    """Return float32 ``[..., channels]``: how many behaviours ``[..., L]`` each channel counts."""
    return jnp.sum(jax.nn.one_hot(channel, channels), axis=-2)


def float_tiers(
    similarity: jax.Array, channel: jax.Array, edges: tuple[float, ...], channels: int
) -> jax.Array:
    """Return SimTier counts int32 ``[B, G, channels, T]`` over float similarities.

    Args:
        similarity: ``[B, G, L]``.
        channel: int32 ``[B, L]``, -1 where a behaviour does not count.
        edges: ascending thresholds; the tier is the number of them that are ``<=`` the similarity.
        channels: number of channels.
    """
    member = jax.nn.one_hot(channel, channels)
    reached = [jnp.broadcast_to(jnp.sum(member, axis=1)[:, None], (*similarity.shape[:2], channels))]
    reached += [(similarity >= edge).astype(jnp.float32) @ member for edge in edges]
    reached.append(jnp.zeros_like(reached[0]))
    counts = [low - high for low, high in pairwise(reached)]
    return jnp.stack(counts, axis=-1).astype(jnp.int32)
