"""Two towers with a cross head, as IntTower has one (arXiv 2210.09890).

Each tower gives some vectors, and every user vector meets every item vector. The logit is a dot product and
a small network over the best match of each vector.
"""

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import shared
from flax import nnx

import aif_jax as aif

WIDTH, PARTS = 32, 4


class TwoTowerCross(nnx.Module):
    """Towers of one hidden layer; the head sees the maximal products of their parts."""

    blocks = ("dot", "cross")

    def __init__(self, rngs: nnx.Rngs):
        size = {feature.name: feature.size for feature in (*shared.SCHEMA.item, *shared.SCHEMA.user)
                if not isinstance(feature, aif.Numeric)}  # fmt: skip
        names = ("item_id", "category", "segment", "region")
        self.tables = nnx.Dict({name: nnx.Embed(size[name], WIDTH, rngs=rngs) for name in names})
        self.item_tower = nnx.Linear(2 * WIDTH + 2, PARTS * WIDTH, rngs=rngs)
        self.user_tower = nnx.Linear(3 * WIDTH + 2, PARTS * WIDTH, rngs=rngs)
        self.cross = nnx.Linear(2 * PARTS, 8, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def item(self, features: Any) -> dict[str, jax.Array]:
        """Return the parts of the item's vector."""
        x = [self.tables[name](features[name]) for name in ("item_id", "category")]
        parts = nnx.relu(self.item_tower(jnp.concatenate([*x, features["price"]], axis=-1)))
        return {"parts": parts.reshape(-1, PARTS, WIDTH)}

    def behaviour(self, features: Any) -> dict[str, jax.Array]:
        """Return what the user tower pools."""
        return {"category": self.tables["category"](features["category"])}

    def user(self, features: Any, histories: Any) -> dict[str, jax.Array]:
        """Return the parts of the user's vector: profile, and the mean of the categories used."""
        long = histories["long"]
        mask = (long["mask"] & (long["type"] < 2))[..., None]  # clicks and likes
        pooled = (long["category"] * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
        x = [self.tables[name](features[name]) for name in ("segment", "region")]
        parts = self.user_tower(jnp.concatenate([*x, pooled, features["activity"]], axis=-1))
        return {"parts": parts.reshape(-1, PARTS, WIDTH)}

    def interact(self, state: Any, context: Any, rows: Any, pair: Any) -> dict[str, jax.Array]:
        """Return the logit: products of all parts, the largest of each side, a network over them."""
        products = jnp.einsum("npw,qw->npq", rows["parts"], state["parts"]) / WIDTH
        best = jnp.concatenate([products.max(1), products.max(2)], axis=-1)
        dot = jnp.trace(products, axis1=1, axis2=2)
        return {"ctr": dot + self.out(nnx.relu(self.cross(best)))[:, 0]}


def main(folder: str, epochs: int = 2, **given: int) -> dict[str, float]:
    """Train, export and compare."""
    own = shared.trained(TwoTowerCross(nnx.Rngs(0)), epochs)
    bundle = aif.export(
        own.model, shared.SCHEMA, f"{folder}/cross", k_max=shared.K, long_length=shared.LENGTH
    )
    sequential = shared.Sequential(lambda batch, items: own(batch, items)[..., 0])
    return shared.compare(bundle, sequential, **given)


if __name__ == "__main__":
    print(main(tempfile.mkdtemp()))
