"""Features that arrive with a request: context, the same for all its candidates, and pair features.

``x`` is the embedded features of the group: categorical values looked up, numeric ones standardised. A block
is absent where none of its features is given. ``e_c W_c`` is computed once for a request; ``x_ui W_p`` is
left for the stage.
"""

from typing import Any

import jax
import jax.numpy as jnp

from aif_jax.features import Schema
from aif_jax.models.blocks.base import (
    Arrays,
    Candidates,
    Entries,
    InteractionBlock,
    Labels,
    UserSide,
    Weights,
)
from aif_jax.models.embedder import embedded_labels, embedded_width


class RequestFeatures(InteractionBlock):
    """The features of the group that has the block's name."""

    def _declare(self) -> None:
        self.features = getattr(self.schema, self.name)
        self.width = embedded_width(self.features, self.config.embedding_width)
        first = (f"first.{self.name}.*", f"first.embed_{self.name}.*", f"first.absent_{self.name}")
        self.weights = Weights(stage=first)

    @classmethod
    def exists(cls, schema: Schema) -> bool:
        """Return whether the schema has features of the group."""
        return bool(getattr(schema, cls.name))

    def labels(self) -> dict[str, Labels]:
        """Return the features of the rows of its weight."""
        rows = embedded_labels(self.name, self.features, self.config.embedding_width)
        return {f"first.{self.name}.kernel": {0: rows}}

    def input(self, model: Any, candidates: Candidates, side: UserSide) -> tuple[jax.Array, jax.Array]:
        """Return the input ``[B, G, width]``, and where any feature is given ``[B, G]``."""
        return model.first.features(self.name, getattr(candidates, self.name))


class Context(RequestFeatures):
    """Context features of the request."""

    name = "context"

    def operands(self, model: Any, weights: Arrays, state: Arrays, context: Arrays, pair: Arrays) -> Entries:
        """Return ``shared``: ``e_c W_c`` ``[h]``."""
        return {"shared": model.first.contribution(self.name, *model.first.features(self.name, context))}

    def flops(self, length: int) -> tuple[int, int]:
        """``2 width h`` for each request."""
        return 0, 2 * self.width * self.config.hidden


class Pair(RequestFeatures):
    """Pair features of each candidate."""

    name = "pair"

    def operands(self, model: Any, weights: Arrays, state: Arrays, context: Arrays, pair: Arrays) -> Entries:
        """Return ``pair`` ``[N, width + 1]`` and ``pair_weights`` ``[width + 1, h]``."""
        first = model.first
        # One more feature says that there are none, and its weights are what stands in for them.
        features, given = first.features(self.name, pair)
        absent = jnp.where(given, 0.0, 1.0)[:, None]
        return {
            "pair": jnp.concatenate([jnp.where(given[:, None], features, 0.0), absent], axis=1),
            "pair_weights": jnp.concatenate([first.weight(self.name), first.absent(self.name)[None]]),
        }

    def flops(self, length: int) -> tuple[int, int]:
        """``2 (width + 1) h`` for each candidate."""
        return 2 * (self.width + 1) * self.config.hidden, 0
