"""DIN: exact attention of every candidate over the last 50 behaviours (arXiv 1706.06978).

The user's state holds the behaviours themselves, so all attention is left for the interaction.
"""

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import shared
from flax import nnx

import aif_jax as aif

WIDTH = 16


class Din(nnx.Module):
    """Attention by a small network over candidate, behaviour and their product, then an MLP."""

    blocks = ("profile", "attention")

    def __init__(self, rngs: nnx.Rngs):
        size = {feature.name: feature.size for feature in (*shared.SCHEMA.item, *shared.SCHEMA.user)
                if not isinstance(feature, aif.Numeric)}  # fmt: skip
        self.item_id = nnx.Embed(size["item_id"], WIDTH, rngs=rngs)
        self.category = nnx.Embed(size["category"], WIDTH, rngs=rngs)
        self.segment = nnx.Embed(size["segment"], WIDTH, rngs=rngs)
        self.kind = nnx.Embed(3, WIDTH, rngs=rngs)
        self.attention = nnx.Linear(3 * WIDTH, 16, rngs=rngs)
        self.weight = nnx.Linear(16, 1, rngs=rngs)
        self.hidden = nnx.Linear(4 * WIDTH + 2, 32, rngs=rngs)
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def item(self, features: Any) -> dict[str, jax.Array]:
        """Return one vector an item."""
        return {"vector": self.item_id(features["item_id"]) + self.category(features["category"])}

    def behaviour(self, features: Any) -> dict[str, jax.Array]:
        """Return the same vector for histories."""
        return self.item(features)

    def user(self, features: Any, histories: Any) -> dict[str, jax.Array]:
        """Return the profile, and the behaviours as keys."""
        long = histories["long"]
        keys = (long["vector"] + self.kind(long["type"])) * long["mask"][..., None]
        return {
            "profile": self.segment(features["segment"]),
            "keys": keys,
            "mask": long["mask"].astype("uint8"),
        }

    def interact(self, state: Any, context: Any, rows: Any, pair: Any) -> dict[str, jax.Array]:
        """Return the logit of every candidate."""
        items, keys = rows["vector"], state["keys"]
        n, length = items.shape[0], keys.shape[0]
        query = jnp.broadcast_to(items[:, None], (n, length, WIDTH))
        key = jnp.broadcast_to(keys[None], (n, length, WIDTH))
        both = jnp.concatenate([query, key, query * key], axis=-1)
        weights = self.weight(nnx.sigmoid(self.attention(both)))[..., 0] * state["mask"]
        attended = weights @ keys / jnp.maximum(state["mask"].sum(), 1)
        profile = jnp.broadcast_to(state["profile"], items.shape)
        x = jnp.concatenate([items, attended, items * attended, profile, pair["retrieval_score"]], axis=-1)
        return {"ctr": self.out(nnx.relu(self.hidden(x)))[:, 0]}


def main(folder: str, epochs: int = 2, **given: int) -> dict[str, float]:
    """Train, export and compare."""
    own = shared.trained(Din(nnx.Rngs(0)), epochs)
    bundle = aif.export(own.model, shared.SCHEMA, f"{folder}/din", k_max=shared.K, long_length=shared.LENGTH)
    sequential = shared.Sequential(lambda batch, items: own(batch, items)[..., 0])
    return shared.compare(bundle, sequential, **given)


if __name__ == "__main__":
    print(main(tempfile.mkdtemp()))
