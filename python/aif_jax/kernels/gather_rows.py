"""Rows of an embedding cache by key, read from inside a compiled program on the CPU."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.errors import ConfigError
from aif_jax.kernels import ffi
from aif_jax.kernels.checks import expect_array


class Layout(Protocol):
    """Columns of a row layout, each a name, a dtype's name and a shape in one row."""

    @property
    def columns(self) -> Sequence[tuple[str, str, tuple[int, ...]]]:
        """Columns in the order of the row."""
        ...


def gather_rows(handle: jax.Array, ids: jax.Array, layout: Layout) -> tuple[dict[str, jax.Array], jax.Array]:
    """Read the rows of some keys from an `EmbeddingCache`.

    There is no reference: a cache is host memory, and only the native kernel reaches it from inside a
    program. Elsewhere gather on the host (``cache.gather``) and pass the columns in.

    Args:
        handle: `handle_operand` of the cache, uint32 ``[2]``. An operand, so another cache of the same
            layout can be passed without compiling again. The caller keeps the cache alive. Zeros name no
            cache: nothing is found.
        ids: keys as pairs of 32-bit halves, lower half first, uint32 ``[..., N, 2]``: 64-bit integers do not
            pass through JAX unharmed.
        layout: layout of the cache's rows, a constant of the program.

    Returns:
        Columns ``[..., N, *shape]`` by name, zero where a key is missing, and ``found`` bool ``[..., N]``.
        Each row is whole, of one version; rows of a call may be of different moments. The program reads
        the cache when it runs: equal calls inside one program may be merged into one.

    Raises:
        ConfigError: a shape or dtype is not as above, or the native kernels are not registered.
        jax.errors.JaxRuntimeError: when the program runs, if the cache is gone or its layout is not
            ``layout``; where JAX runs a program synchronously, the same text comes as a `ValueError`.
    """
    expect_array("handle", handle, np.uint32, 1)
    expect_array("ids", ids, np.uint32, 2)
    if handle.shape != (2,):
        raise ConfigError(f"gather_rows: handle has shape {handle.shape}, expected (2,); see handle_operand.")
    if ids.shape[-1] != 2:
        raise ConfigError(
            f"gather_rows: ids has shape {ids.shape}, expected [..., N, 2], the halves of 64-bit keys."
        )
    ffi.require()
    rows = ids.shape[:-1]
    results = [jax.ShapeDtypeStruct((*rows, *shape), jnp.dtype(dtype)) for _, dtype, shape in layout.columns]
    names = [name for name, _, _ in layout.columns]
    *columns, found = ffi.call(
        "aif_gather_rows",
        [*results, jax.ShapeDtypeStruct(rows, jnp.bool_)],
        handle.reshape((1,) * (ids.ndim - 2) + (2,)),
        ids,
        columns=",".join(names),
    )
    return dict(zip(names, columns, strict=True)), found


def handle_operand(cache: Any) -> np.ndarray:
    """Return a cache's handle as the operand of `gather_rows`, uint32 ``[2]``, lower half first."""
    handle = int(cache.handle)
    return np.asarray([handle & 0xFFFF_FFFF, handle >> 32], np.uint32)
