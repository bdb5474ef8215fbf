"""Reduced precision of item rows and user states: how their columns are narrowed, and widened in the stage.

==========  =====================================  ==================================  ===================
precision   item rows: columns of REDUCED_COLUMNS  user state: M, sim, factor          table of long
                                                                                       attention
==========  =====================================  ==================================  ===================
float32     float32                                float32                             float32
bfloat16    bfloat16                               bfloat16                            rounded to bfloat16
int8        int8, and a float32 scale for each     bfloat16                            rounded to bfloat16
==========  =====================================  ==================================  ===================

Everything else of rows and states keeps its dtype. Widened, ``e``, ``bridge``, ``content``, ``event``,
``M``, ``sim`` and the table hold numbers of bfloat16 in either reduced precision, so that their products are
exact in float32: implementations of the stage differ by the order of summation only. ``h``, which is only
added, keeps all bits of ``q * scale``. All rounding is to the nearest, halves to even.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.config import REDUCED_COLUMNS, Precision

SCALE = "scale"
"""The column of scales in an int8 row, float32 ``[number of quantised columns]``."""

_ADDED = "h"
_LARGEST = 127


def row_dtype(precision: Precision) -> np.dtype:
    """Return the dtype of the item columns in `REDUCED_COLUMNS`."""
    return np.dtype(jnp.dtype(precision))


def state_dtype(precision: Precision) -> np.dtype:
    """Return the dtype of ``M`` and of those entries of a user state that blocks narrow."""
    return np.dtype(np.float32) if precision == "float32" else np.dtype(jnp.bfloat16)


def reduced_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of a row's columns that are narrowed, in the order of their scales."""
    present = set(names)
    return tuple(name for name in REDUCED_COLUMNS if name in present)


def narrow_rows(precision: Precision, columns: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return item rows in a precision.

    A row of a column ``x`` becomes ``q = clip(round(x / s), -127, 127)`` with ``s = max|x| / 127``, so that
    ``|x - q s| <= s / 2``; zeros stay zeros, under ``s = 0``. A row that is not finite gets ``q = 0`` under
    an ``s`` that is not finite either, and so does its score.

    Args:
        precision: which.
        columns: float32 ``[M, ...]`` as computed, and others, which stay as they are.

    Returns:
        The columns; for int8 also ``scale`` float32 ``[M, k]``, one for each quantised column.
    """
    narrowed = dict(columns)
    names = reduced_columns(columns)
    if precision == "bfloat16":
        narrowed |= {name: columns[name].astype(jnp.bfloat16) for name in names}
    elif precision == "int8":
        each = {name: quantised(columns[name]) for name in names}
        narrowed |= {name: q for name, (q, _) in each.items()}
        narrowed[SCALE] = jnp.concatenate([scale for _, scale in each.values()], axis=1)
    return narrowed


def narrow_state(
    state: Mapping[str, jax.Array], spec: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Return user states with every entry in the dtype that ``spec`` gives it."""
    return {name: values.astype(spec[name].dtype) for name, values in state.items()}


def widen_rows(precision: Precision, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return item rows as the stage computes with them: narrowed columns in float32, without ``scale``."""
    wide = {name: values for name, values in rows.items() if name != SCALE}
    for place, name in enumerate(reduced_columns(rows)):
        values = rows[name].astype(jnp.float32)
        if precision == "int8":
            values *= rows[SCALE][:, place : place + 1]
            if name != _ADDED:
                values = rounded(precision, values)
        wide[name] = values
    return wide


def widen_state(state: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return a user state with its narrowed entries in float32."""
    return {
        name: values.astype(jnp.float32) if values.dtype == jnp.bfloat16 else values
        for name, values in state.items()
    }


def rounded(precision: Precision, values: jax.Array) -> jax.Array:
    """Round float32 values to those of bfloat16 in either reduced precision; they stay float32."""
    if precision == "float32":
        return values
    # Not by a cast there and back: XLA may leave such a pair out, as more precise than asked.
    return jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return rows ``[M, n]`` as ``q`` int8 ``[M, n]`` and ``s`` float32 ``[M, 1]``; see `narrow_rows`."""
    scale = jnp.max(jnp.abs(x), axis=1, keepdims=True) / jnp.float32(_LARGEST)
    usable = (scale > 0) & jnp.isfinite(scale)
    steps = jnp.round(x / jnp.where(usable, scale, 1.0))
    kept = jnp.where(usable, jnp.clip(steps, -_LARGEST, _LARGEST), 0.0)
    return kept.astype(jnp.int8), scale
