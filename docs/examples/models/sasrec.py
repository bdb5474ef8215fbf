"""SASRec: self-attention over the behaviours makes one vector, which candidates meet by a dot product.

All of the sequence model is on the user side, which runs while retrieval does (arXiv 1808.09781).
"""

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import shared
from flax import nnx

import aif_jax as aif

WIDTH, HEADS, LAYERS = 32, 2, 2


class Layer(nnx.Module):
    """One layer of attention to behaviours that are not later, and of a network."""

    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.parts = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.joined = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Return the sequence ``[B, L, d]`` after attention; ``mask`` bool ``[B, L]``."""
        length, shape = x.shape[1], (*x.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (part.reshape(shape) for part in jnp.split(self.parts(self.norms[0](x)), 3, axis=-1))
        scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / (WIDTH // HEADS) ** 0.5
        # The most recent comes first: a behaviour sees itself and what follows it.
        earlier = jnp.arange(length)[:, None] <= jnp.arange(length)[None]
        weights = jax.nn.softmax(jnp.where(earlier & mask[:, None, None], scores, -1e9), axis=-1)
        x += self.joined(jnp.einsum("bhlm,bmhd->blhd", weights, v).reshape(x.shape))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class SasRec(nnx.Module):
    """Item vectors, positions by recency, some layers, and the vector of the latest behaviour."""

    blocks = ("sequence",)

    def __init__(self, rngs: nnx.Rngs):
        features = shared.SCHEMA.item
        size = {feature.name: feature.size for feature in features if not isinstance(feature, aif.Numeric)}
        self.items = nnx.Embed(size["item_id"], WIDTH, rngs=rngs)
        self.categories = nnx.Embed(size["category"], WIDTH, rngs=rngs)
        self.kinds = nnx.Embed(3, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(shared.LENGTH, WIDTH, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def item(self, features: Any) -> dict[str, jax.Array]:
        """Return the item's vector."""
        return {"vector": self.items(features["item_id"]) + self.categories(features["category"])}

    def behaviour(self, features: Any) -> dict[str, jax.Array]:
        """Return the same vector for histories."""
        return self.item(features)

    def user(self, features: Any, histories: Any) -> dict[str, jax.Array]:
        """Return the sequence's vector; zeros for an empty history."""
        long = histories["long"]
        x = long["vector"] + self.kinds(long["type"]) + self.positions(jnp.arange(long["mask"].shape[1]))
        for layer in self.layers:
            x = layer(x, long["mask"])
        return {"vector": self.norm(x[:, 0]) * long["mask"][:, :1]}

    def interact(self, state: Any, context: Any, rows: Any, pair: Any) -> dict[str, jax.Array]:
        """Return the dot product."""
        return {"ctr": rows["vector"] @ state["vector"]}


def main(folder: str, epochs: int = 2, **given: int) -> dict[str, float]:
    """Train, export and compare."""
    own = shared.trained(SasRec(nnx.Rngs(0)), epochs)
    bundle = aif.export(
        own.model, shared.SCHEMA, f"{folder}/sasrec", k_max=shared.K, long_length=shared.LENGTH
    )
    sequential = shared.Sequential(lambda batch, items: own(batch, items)[..., 0])
    return shared.compare(bundle, sequential, **given)


if __name__ == "__main__":
    print(main(tempfile.mkdtemp()))
