"""The native kernels as XLA custom calls: the only file that registers them and calls them by name."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from aif_jax import _native
from aif_jax.errors import ConfigError

CUSTOM_CALLS = ("aif_simtier", "aif_table_sum", "aif_gather_rows", "aif_interaction", "aif_top_k")
"""Names of the custom calls, to be allowed when a function that uses them is exported
(``jax.export.DisabledSafetyCheck.custom_call(name)``) and registered before it is run."""


@functools.cache
def _registration() -> tuple[bool, str]:
    """Register the targets once per process; return whether that worked, and why not."""
    # An impossible AIF_JAX_KERNELS is an error of the user, to be reported and not worked around.
    try:
        _native.chosen_kernels()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        # A target that is refused before the first use of the backend leaves JAX without a CPU backend;
        # afterwards it is only an exception.
        jax.devices("cpu")
        targets = _native.ffi_targets()
        for name in CUSTOM_CALLS:
            jax.ffi.register_ffi_target(name, targets[name], platform="cpu", api_version=1)
    except Exception as error:  # any refusal by XLA; the reference still runs
        return False, f"XLA refused the native kernels: {error}"
    return True, "registered with XLA on the CPU"


def register() -> bool:
    """Register the custom calls, once; call it before running a program that holds them.

    Returns:
        True if the native kernels can be used in this process; `why` returns the reason.

    Raises:
        ConfigError: the environment variable ``AIF_JAX_KERNELS`` names kernels that this CPU cannot run.
    """
    return _registration()[0]


def why() -> str:
    """Return in words why the native kernels are, or are not, registered."""
    return _registration()[1]


def require() -> None:
    """Raise unless the native kernels are registered.

    Raises:
        ConfigError: with the reason why they are not.
    """
    if not register():
        raise ConfigError(
            f"implementation='native' was asked for, but {why()}. "
            "Use implementation='auto' to fall back to the reference."
        )


def call(
    name: str,
    result: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    *operands: jax.Array,
    **attributes: int | str,
) -> Any:
    """Call a registered custom call.

    Operands may differ in leading (batch) axes of equal rank where one of them has size 1: the handlers
    broadcast those, so that `jax.vmap` copies nothing.

    Args:
        name: one of `CUSTOM_CALLS`.
        result: shape and dtype of its results.
        *operands: arrays, leading batch axes first.
        **attributes: constants of the call; integers travel as int64.
    """
    constants = {k: np.int64(v) if isinstance(v, int) else v for k, v in attributes.items()}
    return jax.ffi.ffi_call(name, result, vmap_method="expand_dims")(*operands, **constants)
