"""The architectures that `aif` is held against, trained by the same loop, and `build_model` for all.

- ``exact``: the same blocks with softmax attention and float similarities throughout
- ``cold``: without the long-sequence blocks (COLD, arXiv 2007.16122)
- ``two_tower``: a dot product of a user vector and an item vector
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.checks import typed
from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.features import ContentSpace, Schema
from aif_jax.features.score import score_of
from aif_jax.models.aif import Aif, Tower
from aif_jax.models.blocks.base import Block
from aif_jax.models.blocks.bridge import ExactBridge
from aif_jax.models.blocks.long_attention import ExactLongAttention
from aif_jax.models.blocks.simtier import ExactSimTier
from aif_jax.models.initial import constant, linear
from aif_jax.types import Columns


class Exact(Aif):
    """Full softmax attention in place of BEA and of the long-sequence attention; SimTier over float cosines.

    Nothing of it can be multiplied out ahead of the request, so it does not fold.
    """

    instead: ClassVar[Sequence[type[Block]]] = (ExactBridge, ExactLongAttention, ExactSimTier)


class TwoTower(Tower):
    """Logits ``e_u[head] · e_i / √d + bias[head]``: what retrieval can serve from a vector index."""

    def __init__(self, config: ModelConfig, schema: Schema, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, schema, rngs=rngs)
        self.project = linear(config.width, config.width * len(config.heads), rngs=rngs)
        self.bias = constant(0.0, (len(config.heads),))

    def __call__(
        self,
        batch: Mapping[str, Any],
        catalogue: Columns,
        *,
        train: bool,
        rngs: nnx.Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Return logits ``[B, G, n_heads]``; arguments as of `Aif`."""
        inputs = self.read(batch, catalogue, train, rngs)
        side = self.user_side(*inputs[:5], inputs.keep)
        logits = self.item(inputs.item) @ self.head_vectors(side.vector) + self.bias[...]
        return logits + self._train_only_term(batch, inputs.keep, train)

    def head_vectors(self, vector: jax.Array) -> jax.Array:
        """Return ``[..., d, n_heads]`` of user vectors ``[..., d]``, scaled by ``1/√d``."""
        heads = self.project(vector) / jnp.sqrt(jnp.float32(self.config.width))
        return heads.reshape(*vector.shape[:-1], self.config.width, len(self.config.heads))

    def user_vector(self, batch: Mapping[str, Any], catalogue: Columns) -> jax.Array:
        """Return ``[B, d]``: its dot product with `item_vector` orders items as the first head does."""
        inputs = self.read({**batch, "item": jnp.zeros((len(batch["short_item"]), 1), jnp.int32)}, catalogue)
        return self.head_vectors(self.user_side(*inputs[:5], {}).vector)[..., 0]

    def item_vector(self, item_inputs: Columns) -> jax.Array:
        """Return ``[M, d]`` of encoded items with ``content`` and ``has_content``."""
        return self.item({name: jnp.asarray(values) for name, values in item_inputs.items()})


Model = Aif | Exact | TwoTower
"""Any of the architectures."""


@typed
def build_model(
    config: ModelConfig, schema: Schema, *, seed: int = 0, content_space: ContentSpace | None = None
) -> Model:
    """Build a model with initial weights.

    Args:
        config: architecture, sizes and switches.
        schema: a fitted schema, since feature tables are as large as its vocabularies.
        seed: seed of the initial weights. (The seed of the hyperplanes is ``config.seed``.)
        content_space: of the content embeddings; by default `ContentSpace.declared`.

    Raises:
        ConfigError: the schema is not fitted, the score expression does not fit heads and schema, or the
            content space has another width than the config's content_width.
    """
    model = _built(config, schema, nnx.Rngs(seed))
    if content_space is not None:
        model.set_content_space(content_space)
    return model


def model_shapes(config: ModelConfig, schema: Schema) -> Model:
    """Return the model with shapes in place of weights; raises as `build_model` does."""
    return nnx.eval_shape(lambda: _built(config, schema, cast("nnx.Rngs", _OneKey())))


class _OneKey:
    """Random keys for tracing, all the same: an `nnx.Rngs` counts what it draws, which triples the time."""

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self._key


def _built(config: ModelConfig, schema: Schema, rngs: nnx.Rngs) -> Model:
    if not schema.fitted:
        raise ConfigError("the schema is not fitted yet; call schema.fit(...) on training data first.")
    score_of(config, schema)
    kinds = {"aif": Aif, "cold": Aif, "exact": Exact, "two_tower": TwoTower}
    return kinds[config.architecture](config, schema, rngs=rngs)
