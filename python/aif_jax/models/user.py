"""The user side: profile, short sequence, and what the interaction needs of them."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.features import Schema
from aif_jax.models.blocks import Keep, shown
from aif_jax.models.embedder import FeatureEmbedder
from aif_jax.models.initial import constant, linear, normal
from aif_jax.models.layers import Mlp, attend, masked_mean


class UserTokens(NamedTuple):
    """What the user module gives: ``vector`` ``[B, d]``; ``keys`` ``[B, K, d]``, ``mask`` bool ``[B, K]``."""

    vector: jax.Array
    keys: jax.Array
    mask: jax.Array


class UserModule(nnx.Module):
    """Profile ``P``, short sequence ``X``, self-attention and profile attention.

    ``e_u = MLP([P, pool(FFN(softmax(X Xᵀ/√d) X)), softmax(P Xᵀ/√d) X])``, where an attention that is dropped
    or has nothing to attend to is its learned vector ``absent``. A token of ``X`` is its item's token plus a
    vector of the behaviour's type and one of its position.

    Args:
        config: widths.
        schema: user features and behaviour types.
        blocks: the model's active blocks.
        rngs: random keys of the initial weights.
    """

    def __init__(
        self, config: ModelConfig, schema: Schema, blocks: frozenset[str], *, rngs: nnx.Rngs
    ) -> None:
        d = config.width
        self.short_length = config.short_length
        self.embed = FeatureEmbedder(schema.user, config.embedding_width, rngs=rngs) if schema.user else None
        self.profile = None if self.embed is None else linear(self.embed.width, d, rngs=rngs)
        # Without user features everybody has the same profile, which is still a token to attend to.
        self.anyone = normal((d,), 1.0, rngs=rngs) if self.embed is None else None

        def vectors(n: int) -> nnx.Param:
            return normal((n, d), d**-0.5, rngs=rngs)

        attends = blocks & {"self_attention", "profile_attention"}
        reads = attends or "bridge" in blocks
        self.types = vectors(len(schema.behaviour_types)) if reads else None
        self.positions = vectors(config.short_length) if reads else None
        self.ffn = Mlp((d, 2 * d, d), rngs=rngs) if "self_attention" in blocks else None
        self.absent_self_attention = constant(0.0, (d,)) if "self_attention" in blocks else None
        self.absent_profile_attention = constant(0.0, (d,)) if "profile_attention" in blocks else None
        self.summary = linear(config.value_width, d, rngs=rngs) if "bridge" in blocks else None
        self.out = Mlp(((1 + len(attends)) * d, 2 * d, d), rngs=rngs)

    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        short_token: jax.Array | None,
        short_type: jax.Array,
        long_mean: jax.Array | None,
        long_given: jax.Array,
        keep: Keep,
    ) -> UserTokens:
        """Compute the user side.

        Args:
            inputs: encoded user features ``[B, ...]``.
            short_token: tokens of the short sequence's items ``[B, S, d]``; ``None`` if no block reads them.
            short_type: int32 ``[B, S]``, -1 where there is no behaviour.
            long_mean: mean value of the long sequence ``[B, d_v]``; ``None`` without bridges.
            long_given: bool ``[B]``, whether the long sequence holds anything.
            keep: what this request keeps, in training.

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
            if self.ffn is not None and self.absent_self_attention is not None:
                pooled = masked_mean(self.ffn(attend(tokens, tokens, mask)), mask)
                there = shown(keep, "self_attention", given)
                parts.append(jnp.where(there[:, None], pooled, self.absent_self_attention[...]))
            if self.absent_profile_attention is not None:
                seen = attend(profile[:, None], tokens, mask)[:, 0]
                there = shown(keep, "profile_attention", given)
                parts.append(jnp.where(there[:, None], seen, self.absent_profile_attention[...]))
            keys.append(tokens)
            masks.append(mask)
        if self.summary is not None and long_mean is not None:
            keys.append(self.summary(long_mean)[:, None])
            masks.append(long_given[:, None])
        return UserTokens(
            self.out(jnp.concatenate(parts, axis=-1)),
            jnp.concatenate(keys, axis=1),
            jnp.concatenate(masks, axis=1),
        )

    def _profile(self, inputs: Mapping[str, jax.Array], n: int) -> jax.Array:
        if self.embed is not None and self.profile is not None:
            return self.profile(self.embed(inputs))
        assert self.anyone is not None
        return jnp.broadcast_to(self.anyone[...], (n, self.anyone[...].shape[0]))
