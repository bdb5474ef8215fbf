"""The product of user vector and item embedding, element by element.

``x = e_u * e_i``, the crossing of generalised matrix factorisation (He et al. 2017, arXiv 1708.05031). Its
weight folds onto the user side: ``(e_u * e_i) W_x = e_i (diag(e_u) W_x)``.
"""

from typing import Any

import jax

from aif_jax.models.blocks.base import Candidates, InteractionBlock, UserSide, Weights


class ProfileItem(InteractionBlock):
    """Profile x item; always present."""

    name = "profile_item"

    def _declare(self) -> None:
        self.width = self.config.width
        self.row_columns = self.shared("e")
        self.factored = "e"
        self.narrowed = ("e",)
        self.weights = Weights(user=("first.profile_item.*",))

    def input(self, model: Any, candidates: Candidates, side: UserSide) -> tuple[jax.Array, None]:
        """Return the input ``[B, G, d]``."""
        return candidates.e * side.vector[:, None], None

    def state(self, model: Any, side: UserSide) -> dict[str, jax.Array]:
        """Return ``M``: ``diag(e_u) W_x`` ``[B, d, h]``."""
        return {"M": side.vector[:, :, None] * model.first.weight(self.name)}

    def flops(self, length: int) -> tuple[int, int]:
        """``2 d h`` for each candidate, ``d h`` for each user."""
        d, h = self.config.width, self.config.hidden
        return 2 * d * h, d * h
