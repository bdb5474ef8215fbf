"""Rows of several columns as rows of 32-bit words: how they lie in device memory.

One wide table instead of one for each column: a row is one piece of memory, so one gather reads it and one
scatter writes it. On a TPU it is more than that: XLA stores a narrow table by columns, and to gather rows
copies all of it into another layout, for every request (512 of 1,200 MB with a million rows of the standard
workload, as compiled for a TPU v5e). A table whose rows are a multiple of 128 words is stored by rows.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.nearline.store import ColumnSpecs

_WORD = 4
_MULTIPLE = {"tpu": 128}
_OTHERS = 16
"""Words of a row come in multiples of 128 on a TPU, its lanes, and of 16 elsewhere, a cache line."""


class RowPacking:
    """Where each column lies in a row of words.

    Args:
        columns: dtype (of 1, 2 or 4 bytes) and shape within one row, by column name.
        platform: of the devices that the rows are for.

    Attributes:
        columns: as given.
        words: 32-bit words of a row, padding included.
    """

    def __init__(self, columns: ColumnSpecs, platform: str):
        self.columns = dict(columns)
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (dtype, shape) in self.columns.items():
            size = -(-int(np.prod(shape)) * dtype.itemsize // _WORD)
            self._places[name] = (end, size)
            end += size
        multiple = _MULTIPLE.get(platform, _OTHERS)
        self.words = -(-end // multiple) * multiple

    def pack(self, rows: Mapping[str, np.ndarray], size: int) -> np.ndarray:
        """Return columns ``[n, ...]`` as words, int32 ``[size, words]``, zeros from n on."""
        words = np.zeros((size, self.words), np.int32)
        in_bytes = words.view(np.uint8)
        for name, (dtype, shape) in self.columns.items():
            n, n_bytes = len(rows[name]), int(np.prod(shape)) * dtype.itemsize
            start = self._places[name][0] * _WORD
            column = np.ascontiguousarray(rows[name]).view(np.uint8).reshape(n, n_bytes)
            in_bytes[:n, start : start + n_bytes] = column
        return words

    def unpack(self, words: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns ``[n, ...]`` of words ``[n, words]``, copied."""
        in_bytes, n = np.ascontiguousarray(words).view(np.uint8), len(words)
        rows = {}
        for name, (dtype, shape) in self.columns.items():
            start, n_bytes = self._places[name][0] * _WORD, int(np.prod(shape)) * dtype.itemsize
            column = np.array(in_bytes[:, start : start + n_bytes], order="C")
            rows[name] = column.view(dtype).reshape(n, *shape)
        return rows

    def unpack_traced(self, words: jax.Array) -> dict[str, jax.Array]:
        """Return the columns ``[n, ...]`` of words int32 ``[n, words]`` inside a program: the same bits."""
        return {name: self._column(words, name) for name in self.columns}

    def _column(self, words: jax.Array, name: str) -> jax.Array:
        dtype, shape = self.columns[name]
        start, size = self._places[name]
        n = words.shape[0]
        values: Any = jax.lax.bitcast_convert_type(words[:, start : start + size], jnp.dtype(dtype))
        # A word is several narrower values, on an axis of its own, the lowest bits first.
        return values.reshape(n, -1)[:, : int(np.prod(shape))].reshape(n, *shape)
