"""The user side: profile, short sequence, and what the interaction needs of them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.features import Schema
from aif_jax.models.blocks.base import Block, UserBlock
from aif_jax.models.dropout import Keep, shown
from aif_jax.models.embedder import FeatureEmbedder
from aif_jax.models.initial import constant, linear, normal
from aif_jax.models.layers import Mlp


class BehaviourValues(nnx.Module):
    """``Y = y_item * gate[type] + bias[type]``: what a behaviour says depends on its kind."""

    def __init__(self, types: int, width: int) -> None:
        self.gate = constant(1.0, (types, width))
        self.bias = constant(0.0, (types, width))

    def __call__(self, value: jax.Array, kind: jax.Array) -> jax.Array:
        """Return ``Y`` ``[..., d_v]``, zeros where ``kind`` (int32 ``[...]``) is -1."""
        gate, bias = self.gate[...], self.bias[...]
        chosen = jax.nn.one_hot(kind, gate.shape[0])
        # A copy of both for each history, so that their gradient is a product in each history and a sum over
        # them: one product over all behaviours would transpose what flows back, [B * L, d_v], twice.
        both = jnp.broadcast_to(
            jnp.concatenate([gate, bias], axis=-1), (*kind.shape[:-1], gate.shape[0], 2 * gate.shape[1])
        )
        gates, biases = jnp.split(chosen @ both, 2, axis=-1)
        return value * gates + biases


class UserModule(nnx.Module):
    """Profile ``P``, short sequence ``X`` and the blocks over both.

    ``e_u = MLP([P, parts])`` with one part for each `UserBlock`; one that is dropped or has no sequence to
    attend to is its learned vector ``absent``. A token of ``X`` is its item's token plus a vector of the
    behaviour's type and one of its position.

    Args:
        config: widths.
        schema: user features and behaviour types.
        blocks: the model's active blocks.
        rngs: random keys of the initial weights.
    """

    def __init__(
        self, config: ModelConfig, schema: Schema, blocks: tuple[Block, ...], *, rngs: nnx.Rngs
    ) -> None:
        d = config.width
        self.parts = tuple(block for block in blocks if isinstance(block, UserBlock))
        self.short_length = config.short_length
        self.embed = FeatureEmbedder(schema.user, config.embedding_width, rngs=rngs) if schema.user else None
        self.profile = None if self.embed is None else linear(self.embed.width, d, rngs=rngs)
        # Without user features everybody has the same profile, which is still a token to attend to.
        self.anyone = normal((d,), 1.0, rngs=rngs) if self.embed is None else None

        def vectors(n: int) -> nnx.Param:
            return normal((n, d), d**-0.5, rngs=rngs)

        reads = any("token" in block.behaviour_columns for block in blocks)
        self.types = vectors(len(schema.behaviour_types)) if reads else None
        self.positions = vectors(config.short_length) if reads else None
        for block in blocks:
            for name, module in block.user_modules(rngs).items():
                setattr(self, name, module)
        for block in self.parts:
            setattr(self, f"absent_{block.name}", constant(0.0, (d,)))
        self.out = Mlp(((1 + len(self.parts)) * d, 2 * d, d), rngs=rngs)

    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        short_token: jax.Array | None,
        short_type: jax.Array,
        keep: Keep,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Compute the user side.

        Args:
            inputs: encoded user features ``[B, ...]``.
            short_token: tokens of the short sequence's items ``[B, S, d]``; ``None`` if no block reads them.
            short_type: int32 ``[B, S]``, -1 where there is no behaviour.
            keep: what this request keeps, in training.

        Returns:
            ``e_u`` ``[B, d]``, tokens of profile and short sequence ``[B, 1 + S, d]``, and bool
            ``[B, 1 + S]``, which of them exist.

        Raises:
            ConfigError: the short sequence is longer than ``config.short_length``.
        """
        profile = self._profile(inputs, short_type.shape[0])
        parts, keys, masks = [profile], [profile[:, None]], [jnp.ones((profile.shape[0], 1), bool)]
        if short_token is not None and self.types is not None and self.positions is not None:
            length = short_type.shape[1]
            if length > self.short_length:
                raise ConfigError(
                    f"the short sequence holds {length} behaviours, config.short_length is "
                    f"{self.short_length}; cut it, keeping the most recent."
                )
            mask = short_type >= 0
            # A product with one-hot rows: the gradient of a gather of few rows would be a slow scatter.
            kinds = jax.nn.one_hot(short_type, self.types[...].shape[0]) @ self.types[...]
            tokens = short_token + kinds + self.positions[...][:length]
            given = jnp.any(mask, axis=1)
            for block in self.parts:
                there = shown(keep, block.name, given)
                absent = getattr(self, f"absent_{block.name}")[...]
                parts.append(jnp.where(there[:, None], block.part(self, profile, tokens, mask), absent))
            keys.append(tokens)
            masks.append(mask)
        vector = self.out(jnp.concatenate(parts, axis=-1))
        return vector, jnp.concatenate(keys, axis=1), jnp.concatenate(masks, axis=1)

    def _profile(self, inputs: Mapping[str, jax.Array], n: int) -> jax.Array:
        if self.embed is not None and self.profile is not None:
            return self.profile(self.embed(inputs))
        assert self.anyone is not None
        return jnp.broadcast_to(self.anyone[...], (n, self.anyone[...].shape[0]))
