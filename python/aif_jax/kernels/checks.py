"""Checks of operands that the kernels share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.errors import ConfigError


def expect_array(name: str, value: Any, dtype: Any, min_axes: int) -> None:
    """Check that an operand has the dtype and at least the number of axes that its kernel needs.

    Raises:
        ConfigError: it does not; nothing is converted silently.
    """
    shape, given = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or given is None:
        raise ConfigError(f"{name}: got a {type(value).__name__}, expected an array of {np.dtype(dtype)}.")
    if given != np.dtype(dtype):
        raise ConfigError(f"{name}: got dtype {given}, expected {np.dtype(dtype)}; convert it with `astype`.")
    if len(shape) < min_axes:
        raise ConfigError(f"{name}: got shape {shape}, expected at least {min_axes} axes.")


def batch_axes(kernel: str, shapes: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the batch axes that operands have in common; an operand may have none.

    Raises:
        ConfigError: two operands have different batch axes.
    """
    present = {name: shape for name, shape in shapes.items() if shape}
    if len(set(present.values())) > 1:
        raise ConfigError(
            f"{kernel}: batch axes differ, {present}; give all operands the same ones, or use jax.vmap."
        )
    return next(iter(present.values()), ())
