"""BEA: user and item attend to each other through a few learned bridges instead of directly."""

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.models.initial import normal
from aif_jax.models.layers import attend


class Bridges(nnx.Module):
    """``n`` bridge vectors of width ``d``;
    ``w_i V_u`` stands for the attention of item i over the user's keys.

    The abstract of AIF (arXiv 2511.12934) names bridge embedding approximation without its formula; this
    is our reading of it, close to attention through inducing points (Lee et al. 2019, arXiv 1810.00825).
    """

    def __init__(self, bridges: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.vectors = normal((bridges, width), 1.0, rngs=rngs)

    def user(self, keys: jax.Array, mask: jax.Array) -> jax.Array:
        """Return ``V_u = softmax(B Kᵀ/√d) K`` ``[..., n, d]`` of keys ``[..., K, d]`` under their mask."""
        return attend(self.vectors[...], keys, mask)

    def item(self, e: jax.Array) -> jax.Array:
        """Return ``w_i = softmax(e_i Bᵀ/√d)`` ``[..., n]`` of item vectors ``[..., d]``."""
        vectors = self.vectors[...]
        return jax.nn.softmax(e @ vectors.T / jnp.sqrt(jnp.float32(vectors.shape[-1])), axis=-1)
