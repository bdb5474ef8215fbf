"""The item side: what depends on an item alone, as a candidate and as a behaviour in a history."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.features import Schema
from aif_jax.models.embedder import FeatureEmbedder
from aif_jax.models.initial import constant, linear
from aif_jax.models.layers import Mlp

STATISTICS = "#statistics"
"""Column of a training catalogue: the statistics of items from other users than those who read it. It is not
an identifier, so no feature can have this name."""


def statistics_labels(config: ModelConfig, schema: Schema) -> list[tuple[str, ...]]:
    """Return a label of each statistic of an item, see `aif_jax.training.item_statistics`."""
    if not config.item_statistics or schema.item_id is None:
        return []
    heads, types = config.heads, schema.behaviour_types
    return [*((f"head {h}", "rate") for h in heads), *((f"type {t}", "share") for t in types), ("count",)]


class ItemModule(nnx.Module):
    """Embeds items; candidates and behaviours share the feature tables and part after them.

    Statistics of items are rows of a table by item id, so that they go with the weights and nobody has to
    give them; they are counted before training, which does not change them.

    Args:
        config: widths.
        schema: item features.
        columns: the behaviour columns that the model's blocks read; what they do not need is not built.
        rngs: random keys of the initial weights.
    """

    def __init__(
        self, config: ModelConfig, schema: Schema, columns: Collection[str], *, rngs: nnx.Rngs
    ) -> None:
        self.embed = FeatureEmbedder(schema.item, config.embedding_width, rngs=rngs)
        statistics, name = len(statistics_labels(config, schema)), schema.item_id or ""
        self.item_id = name
        ids = schema.id_size if statistics else 0
        self.statistics = constant(0.0, (ids, statistics)) if statistics else None
        n_in = self.embed.width + config.content_width + 1 + statistics
        self.mlp = Mlp((n_in, *config.item_layers, config.width), rngs=rngs)
        self.as_token = linear(n_in, config.width, rngs=rngs) if "token" in columns else None
        self.as_event = linear(n_in, config.encoder_width, rngs=rngs) if "event" in columns else None
        self.as_value = linear(n_in, config.value_width, rngs=rngs) if "value" in columns else None

    def __call__(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Return ``e`` ``[..., d]`` of items.

        Args:
            inputs: encoded item features ``[..., *feature.shape]``, ``content`` ``[..., d_m]`` and
                ``has_content`` ``[..., 1]``; in training `STATISTICS` ``[..., n]``, in place of the table's.
        """
        return self.mlp(self._dense(inputs))

    def behaviour(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return ``token`` ``[..., d]``, ``value`` ``[..., d_v]`` and ``event`` ``[..., w]``, if needed."""
        dense = self._dense(inputs)
        layers = {"token": self.as_token, "value": self.as_value, "event": self.as_event}
        return {name: layer(dense) for name, layer in layers.items() if layer is not None}

    def event(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Return ``event`` ``[..., w]`` of a model whose blocks read it."""
        assert self.as_event is not None
        return self.as_event(self._dense(inputs))

    def _dense(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        parts = [self.embed(inputs), inputs["content"], inputs["has_content"]]
        if STATISTICS in inputs:
            parts.append(inputs[STATISTICS])
        elif self.statistics is not None:
            parts.append(jnp.take(self.statistics[...], inputs[self.item_id], axis=0, mode="fill"))
        return jnp.concatenate(parts, axis=-1)
