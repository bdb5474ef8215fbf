"""Signatures of a catalogue: computed once, since content embeddings and hyperplanes are frozen."""

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.kernels import hyperplanes, integer_edges, quantize_int8, simhash
from aif_jax.types import Array, Columns

# Compiled once for all catalogues of a shape.
_SIMHASH, _QUANTIZE = jax.jit(simhash), jax.jit(quantize_int8)


def signature_of(config: ModelConfig, content: jax.Array, planes: Array | None) -> jax.Array:
    """Return uint8 ``[..., signature_bytes]`` of content embeddings ``[..., d_m]``.

    Args:
        config: which kind of signature.
        content: unit-norm rows; zeros without content, whose signature means nothing and must be masked.
        planes: from `planes_of`.
    """
    if config.signature == "int8":
        return quantize_int8(content)
    return simhash(content, jnp.asarray(planes))


def planes_of(config: ModelConfig) -> np.ndarray | None:
    """Return the model's hyperplanes ``[d_m, b]``; ``None`` for ``int8`` signatures, which need none."""
    if config.signature == "int8":
        return None
    return hyperplanes(config.seed, config.content_width, config.signature_bits)


def edges_of(config: ModelConfig) -> np.ndarray:
    """Return the SimTier thresholds in the signature's integer scores: int32 ``[T-1]``."""
    size = config.signature_bits if config.signature == "simhash" else config.content_width
    return integer_edges(config.tier_edges, config.signature, size)


def add_signatures(config: ModelConfig, catalogue: Columns) -> dict[str, Array]:
    """Return the catalogue with a column ``signature`` uint8 ``[n_items, signature_bytes]``.

    Args:
        config: kind and size of the signatures, seed of the hyperplanes.
        catalogue: encoded items, with ``content`` float32 ``[n_items, d_m]``.

    Raises:
        ConfigError: the content embeddings are not as wide as the config says.
    """
    content = catalogue["content"]
    if content.ndim != 2 or content.shape[1] != config.content_width:
        raise ConfigError(
            f"content_width is {config.content_width}, but the catalogue's content is {content.shape}; "
            f"set content_width={content.shape[-1]}, or project the content to the width of the config."
        )
    planes = planes_of(config)
    signature = _QUANTIZE(content) if planes is None else _SIMHASH(content, planes)
    return {**catalogue, "signature": np.asarray(signature)}
