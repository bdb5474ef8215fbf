"""Embedding of encoded features into one dense vector."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.features import Categorical, Feature, MultiValued, Numeric
from aif_jax.models.initial import normal


def embedded_width(features: tuple[Feature, ...], embedding_width: int) -> int:
    """Return the width of embedded features."""
    return sum(2 if isinstance(feature, Numeric) else embedding_width for feature in features)


def embedded_labels(group: str, features: tuple[Feature, ...], embedding_width: int) -> list[tuple[str, ...]]:
    """Return a label of each column of embedded features: group and name of the feature, and its place."""
    return [
        (f"{group}.{feature.name}", str(place))
        for feature in features
        for place in range(embedded_width((feature,), embedding_width))
    ]


class FeatureEmbedder(nnx.Module):
    """Looks up, averages and concatenates a group of encoded features.

    A categorical value is its row of the table, missing (0) and unknown (1) being rows like others. A
    multi-valued one is the mean of the rows of its values, zeros if it has none. A numeric one is the pair
    (standardised value, whether it is present).

    Args:
        features: what to embed, in the order of concatenation; fitted, since tables need their size.
        embedding_width: width of one categorical or multi-valued feature.
        rngs: random keys of the initial tables.
    """

    def __init__(self, features: tuple[Feature, ...], embedding_width: int, *, rngs: nnx.Rngs) -> None:
        self.kinds = tuple((feature.name, type(feature)) for feature in features)
        self.shapes = tuple(feature.shape for feature in features)
        self.width = embedded_width(features, embedding_width)
        for feature in features:
            if not isinstance(feature, Numeric):
                table = normal((feature.size, embedding_width), embedding_width**-0.5, rngs=rngs)
                setattr(self, f"table_{feature.name}", table)

    def __call__(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Map encoded features ``{name: [..., *feature.shape]}`` to ``[..., width]``."""
        parts = []
        for name, kind in self.kinds:
            values = inputs[name]
            if kind is Numeric:
                parts.append(values)
            elif kind is Categorical:
                parts.append(self._rows(name, values))
            elif kind is MultiValued:
                weights = (values != 0).astype(jnp.float32)
                total = jnp.sum(self._rows(name, values) * weights[..., None], axis=-2)
                parts.append(total / jnp.maximum(jnp.sum(weights, axis=-1), 1.0)[..., None])
        return jnp.concatenate(parts, axis=-1)

    def _rows(self, name: str, ids: jax.Array) -> jax.Array:
        # An id beyond the table gives NaN, which is noticed, and not some other value's row, which is not.
        return jnp.take(getattr(self, f"table_{name}")[...], ids, axis=0, mode="fill")

    def given(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Return bool ``[...]``: whether any feature of the row has a value."""
        anything = []
        for (name, kind), shape in zip(self.kinds, self.shapes, strict=True):
            values = inputs[name]
            found = values[..., 1] > 0 if kind is Numeric else values != 0
            anything.append(jnp.any(found, axis=-1) if kind is MultiValued and shape else found)
        return jnp.any(jnp.stack(anything), axis=0)
