"""SimTier: how many behaviours of each type lie in each tier of similarity (arXiv 2407.19467)."""

from itertools import pairwise

import jax
import jax.numpy as jnp


def channels_of(kind: jax.Array, has_content: jax.Array) -> jax.Array:
    """Return int32 ``[..., L]``: the channel a behaviour is counted in, its type; -1 if it has no content.

    Args:
        kind: int32 ``[..., L]``, type of each behaviour, -1 where there is none.
        has_content: float32 ``[..., L, 1]``.
    """
    return jnp.where(has_content[..., 0] > 0, kind, -1)


def channel_lengths(channel: jax.Array, channels: int) -> jax.Array:
    """Return float32 ``[..., channels]``: how many behaviours ``[..., L]`` each channel counts."""
    return jnp.sum(jax.nn.one_hot(channel, channels), axis=-2)


def float_tiers(
    similarity: jax.Array, channel: jax.Array, edges: tuple[float, ...], channels: int
) -> jax.Array:
    """Return SimTier counts int32 ``[B, G, channels, T]`` over float similarities.

    Args:
        similarity: ``[B, G, L]``.
        channel: int32 ``[B, L]``, -1 where a behaviour does not count.
        edges: ascending thresholds; the tier is the number of them that are ``<=`` the similarity.
        channels: number of channels.
    """
    member = jax.nn.one_hot(channel, channels)
    reached = [jnp.broadcast_to(jnp.sum(member, axis=1)[:, None], (*similarity.shape[:2], channels))]
    reached += [(similarity >= edge).astype(jnp.float32) @ member for edge in edges]
    reached.append(jnp.zeros_like(reached[0]))
    counts = [low - high for low, high in pairwise(reached)]
    return jnp.stack(counts, axis=-1).astype(jnp.int32)
