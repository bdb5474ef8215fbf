"""Attention over the short sequence: two parts of the user vector.

- ``self_attention``: ``pool(FFN(softmax(X Xᵀ/√d) X))``, the mean over the tokens ``X`` of what each sees of
  the others (Vaswani et al. 2017, arXiv 1706.03762), with one head and without projections
- ``profile_attention``: ``softmax(P Xᵀ/√d) X``, what the profile ``P`` sees of them

Both belong to the user alone, so nothing of them is left for the stage.
"""

from typing import Any

import jax
from flax import nnx

from aif_jax.models.blocks.base import Entries, UserBlock
from aif_jax.models.layers import Mlp, attend, masked_mean


class SelfAttention(UserBlock):
    """The mean of the short sequence's tokens after they attended to each other."""

    name = "self_attention"

    def _declare(self) -> None:
        self.behaviour_columns = self.shared("token")

    def user_modules(self, rngs: nnx.Rngs) -> Entries:
        """Return ``ffn``, applied to each token."""
        d = self.config.width
        return {"ffn": Mlp((d, 2 * d, d), rngs=rngs)}

    def part(self, user: Any, profile: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Return the part ``[B, d]``."""
        return masked_mean(user.ffn(attend(tokens, tokens, mask)), mask)

    def flops(self, length: int) -> tuple[int, int]:
        """``4 S² d`` for attention, ``8 S d²`` for the layers after it, ``4 d²`` for a wider user MLP."""
        s, d = self.config.short_length, self.config.width
        return 0, 4 * s * s * d + 8 * s * d * d + 4 * d * d


class ProfileAttention(UserBlock):
    """The attention of the profile over the short sequence."""

    name = "profile_attention"

    def _declare(self) -> None:
        self.behaviour_columns = self.shared("token")

    def part(self, user: Any, profile: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Return the part ``[B, d]``."""
        return attend(profile[:, None], tokens, mask)[:, 0]

    def flops(self, length: int) -> tuple[int, int]:
        """``4 S d`` for attention, ``4 d²`` for a wider user MLP."""
        s, d = self.config.short_length, self.config.width
        return 0, 4 * s * d + 4 * d * d
