"""Leased buffers into which item rows are gathered as operands of a compiled call."""

import threading

import numpy as np

from aif_jax.nearline.store import ColumnSpecs

_ALIGN = 64


class Lease:
    """Buffers of one call, on loan.

    On a CPU, JAX reads an aligned NumPy array in place, possibly after the call has returned. So a buffer is
    on loan from before it is filled until the results of the call are ready, and only `RowBuffers.give_back`
    frees it; a lease that is never given back (its call failed) is forgotten, and JAX's own reference keeps
    it alive.

    Attributes:
        columns: by name, ``[n, ...]``, aligned to 64 bytes, with the values of the last call.
        size: ``n``.
    """

    __slots__ = ("columns", "size")

    def __init__(self, specs: ColumnSpecs, size: int):
        self.size = size
        self.columns = {name: aligned((size, *shape), dtype) for name, (dtype, shape) in specs.items()}


class RowBuffers:
    """Free leases by size. Their number is the maximum of calls that ran at once."""

    def __init__(self, specs: ColumnSpecs):
        self._specs = dict(specs)
        self._free: dict[int, list[Lease]] = {}
        self._lock = threading.Lock()

    def lend(self, size: int) -> Lease:
        """Return a lease of ``size`` rows that nobody else holds."""
        with self._lock:
            free = self._free.setdefault(size, [])
            if free:
                return free.pop()
        return Lease(self._specs, size)

    def give_back(self, lease: Lease) -> None:
        """Make a lease free again. Only after the results of the call that reads it are ready."""
        with self._lock:
            self._free[lease.size].append(lease)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array whose data starts at a multiple of 64 bytes."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(n_bytes + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + n_bytes].view(dtype).reshape(shape)
