"""The highest of many scores, in order."""

import jax
import jax.numpy as jnp

from aif_jax.errors import ConfigError
from aif_jax.kernels import ffi
from aif_jax.kernels.checks import expect_array
from aif_jax.kernels.choice import Implementation, dispatch


def top_k(
    scores: jax.Array, k: int, *, implementation: Implementation = "auto"
) -> tuple[jax.Array, jax.Array]:
    """Return the ``k`` highest scores, the highest first, and their positions.

    Equal scores come in the order of their positions. 0.0 and -0.0 are equal, and returned as 0.0. No score
    may be NaN.

    Args:
        scores: float32 ``[..., N]``.
        k: number of scores to return, from 0 to ``N``.
        implementation: see `aif_jax.kernels.use`. The reference is `jax.lax.top_k`; all return the same.

    Returns:
        The best scores, float32 ``[..., k]``, and their positions, int32 ``[..., k]``.

    Raises:
        ConfigError: ``scores`` are not as above, or ``k`` is out of its range.
    """
    expect_array("scores", scores, jnp.float32, 1)
    *lead, n = scores.shape
    if k < 0 or (isinstance(n, int) and k > n):
        raise ConfigError(f"top_k: k is {k}, expected 0 to {n}, the number of scores.")

    def native(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        best, order = ffi.call(
            "aif_top_k",
            [jax.ShapeDtypeStruct((*lead, k), jnp.float32), jax.ShapeDtypeStruct((*lead, k), jnp.int32)],
            scores,
        )
        return best, order

    def reference(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        best, order = jax.lax.top_k(scores, k)
        return best, order

    # Both put -0.0 after 0.0, by the total order of IEEE 754. (To add 0.0 would do, but XLA leaves that out.)
    return dispatch(implementation, native, reference, jnp.where(scores == 0, jnp.zeros_like(scores), scores))
