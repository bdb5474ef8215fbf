"""The interaction module: a first layer over the concatenated blocks, a small MLP, the heads.

One weight over concatenated blocks is the sum of one weight per block, and is kept so: what belongs to one
side can then be multiplied out on that side.
"""

from collections.abc import Mapping
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.features import Schema
from aif_jax.kernels import ordered_product
from aif_jax.models.blocks.base import InteractionBlock
from aif_jax.models.embedder import FeatureEmbedder
from aif_jax.models.initial import constant, linear


class FirstLayer(nnx.Module):
    """``H``, the sum over the blocks of their input times their weight, before the activation.

    A block that was dropped, or whose input is absent, contributes its learned vector ``absent`` instead.

    Args:
        config: widths.
        blocks: the model's active blocks that are inputs of the layer.
        rngs: random keys of the initial weights.
    """

    def __init__(self, config: ModelConfig, blocks: tuple[InteractionBlock, ...], *, rngs: nnx.Rngs) -> None:
        h = config.hidden
        self.user = linear(config.width, h, rngs=rngs)  # its bias is the layer's
        self.item = linear(config.width, h, use_bias=False, rngs=rngs)
        for block in blocks:
            if block.features:
                embed = FeatureEmbedder(block.features, config.embedding_width, rngs=rngs)
                setattr(self, f"embed_{block.name}", embed)
        for block in blocks:
            setattr(self, block.name, linear(block.width, h, use_bias=False, rngs=rngs))
            setattr(self, f"absent_{block.name}", constant(0.0, (h,)))

    def weight(self, block: str) -> jax.Array:
        """Return a block's weight ``[n_in, h]``."""
        return getattr(self, block).kernel[...]

    def absent(self, block: str) -> jax.Array:
        """Return what an absent block contributes, ``[h]``."""
        return getattr(self, f"absent_{block}")[...]

    def contribution(self, block: str, x: jax.Array, present: jax.Array) -> jax.Array:
        """Return ``x W`` where ``present`` and ``absent`` elsewhere.

        Args:
            block: which one.
            x: its input ``[..., n_in]``.
            present: bool, broadcastable to ``[...]``.
        """
        return jnp.where(present[..., None], getattr(self, block)(x), self.absent(block))

    def instead(self, block: str, present: jax.Array) -> jax.Array:
        """Return ``absent`` ``[B, h]`` where ``present`` (bool ``[B]``) does not hold, else zeros."""
        return jnp.where(present[:, None], 0.0, self.absent(block))

    def features(self, block: str, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Return a block's features embedded ``[..., width]``, and bool ``[...]``, whether any is given."""
        embed = getattr(self, f"embed_{block}")
        return embed(inputs), embed.given(inputs)


class Heads(nnx.Module):
    """The layers after ``H``: ReLU, hidden layers, and a last layer summed in a fixed order."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        sizes = (config.hidden, *config.head_layers)
        self.depth = len(sizes) - 1
        for number, (n_in, n_out) in enumerate(pairwise(sizes)):
            setattr(self, f"layer_{number}", linear(n_in, n_out, rngs=rngs))
        self.out = linear(sizes[-1], len(config.heads), rngs=rngs)

    def __call__(self, first: jax.Array) -> jax.Array:
        """Map ``[..., h]`` to logits ``[..., n_heads]``."""
        *hidden, (weights, bias) = self.layers()
        x = jax.nn.relu(first)
        for kernel, shift in hidden:
            x = jax.nn.relu(x @ kernel + shift)
        return ordered_product(x, weights) + bias

    def layers(self) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """Return weights ``[n, m]`` and bias ``[m]`` of each layer, the last one to the logits."""
        layers = [*(getattr(self, f"layer_{number}") for number in range(self.depth)), self.out]
        return tuple((layer.kernel[...], layer.bias[...]) for layer in layers)


class TrainOnly(nnx.Module):
    """Features that serving lacks (position), added to the logits in training (Zhao et al., RecSys 2019).

    At serving, and where the features are missing, a learned constant takes its place: it moves every
    candidate alike.
    """

    def __init__(self, config: ModelConfig, schema: Schema, *, rngs: nnx.Rngs) -> None:
        self.embed = FeatureEmbedder(schema.train_only, config.embedding_width, rngs=rngs)
        self.linear = linear(self.embed.width, len(config.heads), use_bias=False, rngs=rngs)
        self.absent = constant(0.0, (len(config.heads),))

    def __call__(self, inputs: Mapping[str, jax.Array], kept: jax.Array) -> jax.Array:
        """Return the term ``[B, G, n_heads]``; ``kept`` is bool ``[B]``."""
        there = self.embed.given(inputs) & kept[:, None]
        return jnp.where(there[..., None], self.linear(self.embed(inputs)), self.absent[...])
