"""Signatures: compact codes of content embeddings, for counting similarities."""

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.errors import ConfigError
from aif_jax.kernels.simtier import INT8_SCALE

# Projections are sums of whole numbers below 2^24, exact in float32 in any order of addition: an
# item has the same bits in any batch, on any platform. |content| <= 2^11 and |plane| <= 2^8 sqrt(d_m) bound
# every partial sum (Cauchy-Schwarz) for d_m up to 1024, and rounding to these steps turns a vector by far
# less than the 5 degrees or so that a 256-bit signature resolves.
_CONTENT_STEPS = 2048.0
_PLANE_STEPS = 64.0
_PLANE_LIMIT = 256.0


def hyperplanes(seed: int, content_width: int, bits: int) -> np.ndarray:
    """Return the random hyperplanes of a model: normal vectors, rounded to 1/64 and held as whole numbers.

    Args:
        seed: seed of the generator (PCG64); the planes are part of the model.
        content_width: ``d_m``, width of the content embedding.
        bits: ``b``, bits of a signature, a multiple of 8.

    Returns:
        float32 ``[d_m, b]``.

    Raises:
        ConfigError: bits is not a multiple of 8.
    """
    if bits < 8 or bits % 8:
        raise ConfigError(f"hyperplanes: bits is {bits}, expected a multiple of 8.")
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal((content_width, bits))
    return np.clip(np.rint(normal * _PLANE_STEPS), -_PLANE_LIMIT, _PLANE_LIMIT).astype(np.float32)


def simhash(content: jax.Array, planes: jax.Array) -> jax.Array:
    """Return the packed sign bits of a content embedding's projections (Charikar, STOC 2002).

    The share of equal bits of two signatures estimates ``1 - angle / π``. The bits do not depend on the
    batch or the platform. A zero row, an item without content, has all bits set: mask it out.

    Args:
        content: unit-norm rows, float32 ``[..., d_m]``; rounded to 1/2048 and cut to [-1, 1].
        planes: from `hyperplanes`, float32 ``[d_m, b]``.

    Returns:
        uint8 ``[..., b/8]``; bit ``j`` of byte ``i`` is the sign of projection ``8i + j``.
    """
    steps = jnp.rint(jnp.clip(content, -1.0, 1.0) * np.float32(_CONTENT_STEPS))
    return pack_signs(jnp.matmul(steps, jnp.asarray(planes), precision=jax.lax.Precision.HIGHEST))


def pack_signs(values: jax.Array) -> jax.Array:
    """Pack the signs of floats into bits, 1 for ``>= 0``.

    Args:
        values: float ``[..., b]``, ``b`` a multiple of 8.

    Returns:
        uint8 ``[..., b/8]``, lowest bit first.

    Raises:
        ConfigError: ``b`` is not a multiple of 8.
    """
    if values.shape[-1] % 8:
        raise ConfigError(f"pack_signs: last axis is {values.shape[-1]}, expected a multiple of 8.")
    return jnp.packbits(values >= 0, axis=-1, bitorder="little")


def quantize_int8(content: jax.Array) -> jax.Array:
    """Return a content embedding in steps of 1/127, as the bytes of int8.

    Args:
        content: unit-norm rows, float ``[..., d_m]``; components outside [-1, 1] are cut.

    Returns:
        uint8 ``[..., d_m]``; viewed as int8 it is ``round(127 content)``.
    """
    steps = jnp.rint(jnp.clip(content, -1.0, 1.0) * np.float32(INT8_SCALE)).astype(jnp.int8)
    return jax.lax.bitcast_convert_type(steps, jnp.uint8)
