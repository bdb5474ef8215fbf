"""BEA: user and item attend to each other through a few learned bridges instead of directly.

``w_i V_u`` stands for the attention of item ``i`` over the user's tokens ``K``. With ``n`` bridge vectors
``B``, ``w_i = softmax(e_i Bᵀ/√d)`` belongs to the item alone, ``V_u = softmax(B Kᵀ/√d) K`` to the user. The
abstract of AIF (arXiv 2511.12934) names bridge embedding approximation without its formula; this is our
reading of it, close to attention through inducing points (Lee et al. 2019, arXiv 1810.00825).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.models.blocks.base import F4, Arrays, Candidates, Entries, InteractionBlock, UserSide, Weights
from aif_jax.models.initial import linear, normal
from aif_jax.models.layers import attend, masked_mean


class Bridges(nnx.Module):
    """``n`` bridge vectors of width ``d``."""

    def __init__(self, bridges: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.vectors = normal((bridges, width), 1.0, rngs=rngs)

    def user(self, keys: jax.Array, mask: jax.Array) -> jax.Array:
        """Return ``V_u = softmax(B Kᵀ/√d) K`` ``[..., n, d]`` of keys ``[..., K, d]`` under their mask."""
        return attend(self.vectors[...], keys, mask)

    def item(self, e: jax.Array) -> jax.Array:
        """Return ``w_i = softmax(e_i Bᵀ/√d)`` ``[..., n]`` of item vectors ``[..., d]``."""
        vectors = self.vectors[...]
        return jax.nn.softmax(e @ vectors.T / jnp.sqrt(jnp.float32(vectors.shape[-1])), axis=-1)


class Bridge(InteractionBlock):
    """Attention through bridges over profile, short sequence and the mean of the long one; always present."""

    name = "bridge"

    def _declare(self) -> None:
        self.width = self.config.width
        self.behaviour_columns = self.shared("token", "value")
        self.row_columns = {"bridge": ((self.config.bridges,), F4)}
        self.factored = "bridge"
        self.narrowed = ("bridge",)
        self.weights = Weights(item=("bridges.vectors",), user=("bridges.vectors", "first.bridge.*"))

    def user_modules(self, rngs: nnx.Rngs) -> Entries:
        """Return ``summary``, from the mean value of the long sequence to a token."""
        return {"summary": linear(self.config.value_width, self.config.width, rngs=rngs)}

    def modules(self, rngs: nnx.Rngs) -> Entries:
        """Return ``bridges``."""
        return {"bridges": Bridges(self.config.bridges, self.config.width, rngs=rngs)}

    def user(self, model: Any, side: UserSide) -> Any:
        """Return ``V_u`` ``[B, n, d]``."""
        return model.bridges.user(*self.keys(model, side))

    def keys(self, model: Any, side: UserSide) -> tuple[jax.Array, jax.Array]:
        """Return the user's tokens ``K`` ``[B, S + 2, d]``, and bool ``[B, S + 2]``, which of them exist."""
        valid = side.long_type >= 0
        summary = model.user.summary(masked_mean(side.value, valid))[:, None]
        mask = jnp.concatenate([side.key_mask, jnp.any(valid, axis=1, keepdims=True)], axis=1)
        return jnp.concatenate([side.keys, summary], axis=1), mask

    def input(self, model: Any, candidates: Candidates, side: UserSide) -> tuple[jax.Array, None]:
        """Return ``w_i V_u`` ``[B, G, d]``."""
        return model.bridges.item(candidates.e) @ side.own[self.name], None

    def row(self, model: Any, e: jax.Array, items: Arrays) -> dict[str, jax.Array]:
        """Return ``bridge``: ``w_i`` ``[M, n]``."""
        return {"bridge": model.bridges.item(e)}

    def state(self, model: Any, side: UserSide) -> dict[str, jax.Array]:
        """Return ``M``: ``V_u W_b`` ``[B, n, h]``."""
        return {"M": side.own[self.name] @ model.first.weight(self.name)}

    def flops(self, length: int) -> tuple[int, int]:
        """``2 n h`` a candidate; a user ``4 n (S+2) d`` for ``V_u``, ``2 n d h``, ``2 L d_v + 2 d_v d``."""
        config = self.config
        n, d, d_v = config.bridges, config.width, config.value_width
        keys = config.short_length + 2
        user = 4 * n * keys * d + 2 * n * d * config.hidden + 2 * length * d_v + 2 * d_v * d
        return 2 * n * config.hidden, user


class ExactBridge(Bridge):
    """The attention that bridges approximate: ``softmax(e_i Kᵀ/√d) K``."""

    def modules(self, rngs: nnx.Rngs) -> Entries:
        """Return nothing."""
        return {}

    def user(self, model: Any, side: UserSide) -> Any:
        """Return the tokens and which of them exist."""
        return self.keys(model, side)

    def input(self, model: Any, candidates: Candidates, side: UserSide) -> tuple[jax.Array, None]:
        """Return the attention of the candidates over the tokens ``[B, G, d]``."""
        return attend(candidates.e, *side.own[self.name]), None
