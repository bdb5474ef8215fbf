"""COLD: features of user, item, context and pair, weighted by an SE block, then an MLP (arXiv 2007.16122).

Embeddings are looked up ahead: those of the item are in its row, those of the user in the state. The
interaction is what depends on the pair: the weights of the fields, and the MLP.
"""

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import shared
from flax import nnx

import aif_jax as aif

WIDTH = 8


class Fields(nnx.Module):
    """One vector for each feature of a group."""

    def __init__(self, features: tuple[aif.features.Feature, ...], rngs: nnx.Rngs):
        self.tables = nnx.Dict()
        for feature in features:
            numeric = isinstance(feature, aif.Numeric)
            self.tables[feature.name] = (
                nnx.Linear(2, WIDTH, rngs=rngs) if numeric else nnx.Embed(feature.size, WIDTH, rngs=rngs)
            )
        self.several = tuple(feature.name for feature in features if isinstance(feature, aif.MultiValued))

    def __call__(self, given: Any) -> jax.Array:
        """Return ``[..., fields, d]``."""
        vectors = {name: table(given[name]) for name, table in self.tables.items()}
        for name in self.several:  # the mean of the values that there are; 0 is none
            mask = (given[name] > 0)[..., None]
            vectors[name] = (vectors[name] * mask).sum(-2) / jnp.maximum(mask.sum(-2), 1)
        return jnp.stack([vectors[name] for name in sorted(vectors)], axis=-2)


class Cold(nnx.Module):
    """SE block: the mean of each field, squeezed and excited, weights the fields."""

    def __init__(self, rngs: nnx.Rngs):
        schema = shared.SCHEMA
        self.groups = nnx.Dict(
            {name: Fields(schema.features(name), rngs) for name in ("user", "item", "context", "pair")}
        )
        n = sum(len(schema.features(name)) for name in self.groups)
        self.squeeze = nnx.Linear(n, n // 2, rngs=rngs)
        self.excite = nnx.Linear(n // 2, n, rngs=rngs)
        self.hidden = nnx.Linear(n * WIDTH + WIDTH, 32, rngs=rngs)
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def item(self, features: Any) -> dict[str, jax.Array]:
        """Return the vectors of the item's features."""
        return {"fields": self.groups["item"](features)}

    def user(self, features: Any, histories: Any) -> dict[str, jax.Array]:
        """Return the vectors of the user's features; this model reads no history."""
        return {"fields": self.groups["user"](features)}

    def interact(self, state: Any, context: Any, rows: Any, pair: Any) -> dict[str, jax.Array]:
        """Return the logit: fields weighted by their importance for this pair, then an MLP."""
        n = rows["fields"].shape[0]
        alike = [state["fields"], self.groups["context"](context)]
        shares = [jnp.broadcast_to(x[None], (n, *x.shape)) for x in alike]
        fields = jnp.concatenate([rows["fields"], *shares, self.groups["pair"](pair)], axis=1)
        weights = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(fields.mean(-1)))))
        weighted = fields * weights[..., None]
        crossed = rows["fields"].sum(1) * state["fields"].sum(0)
        x = jnp.concatenate([weighted.reshape(n, -1), crossed], axis=-1)
        return {"ctr": self.out(nnx.relu(self.hidden(x)))[:, 0]}


def main(folder: str, epochs: int = 2, **given: int) -> dict[str, float]:
    """Train, export and compare."""
    own = shared.trained(Cold(nnx.Rngs(0)), epochs, long_length=0)
    bundle = aif.export(own.model, shared.SCHEMA, f"{folder}/cold", k_max=shared.K)
    sequential = shared.Sequential(lambda batch, items: own(batch, items)[..., 0])
    return shared.compare(bundle, sequential, **given)


if __name__ == "__main__":
    print(main(tempfile.mkdtemp()))
