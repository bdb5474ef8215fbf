"""Row store: named columns in an embedding cache, including columns of zero size."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np

from aif_jax import _native

ColumnSpecs: TypeAlias = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Dtype and shape within one row, by column name."""


def row_layout(columns: ColumnSpecs) -> _native.RowLayout:
    """Return the layout of rows of these columns, those without any bytes left out."""
    return _native.RowLayout(
        [(name, dtype.name, shape) for name, (dtype, shape) in columns.items() if 0 not in shape]
    )


def row_bytes(columns: ColumnSpecs) -> int:
    """Return the bytes of a row of these columns, without what a cache keeps beside it."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in columns.values())


class RowStore:
    """Rows of named columns by 64-bit key.

    A row layout has no place for columns of zero size, such as the categories of a schema without a category;
    they are removed on the way in and added on the way out.

    Args:
        columns: columns of a row.
        **options: of the `EmbeddingCache`: ``capacity_bytes``, ``ttl_s``, ``initial_keys``.
    """

    def __init__(self, columns: ColumnSpecs, **options: Any):
        self._hold(columns, _native.EmbeddingCache(row_layout(columns), **options))

    @classmethod
    def over_file(
        cls, columns: ColumnSpecs, path: Path, offset: int, keys: np.ndarray, *, prefault: bool
    ) -> Self:
        """Make a store over rows of a mapped file; see `EmbeddingCache.over_file`."""
        store = cls.__new__(cls)
        layout = row_layout(columns)
        store._hold(columns, _native.EmbeddingCache.over_file(layout, path, offset, keys, prefault=prefault))
        return store

    def _hold(self, columns: ColumnSpecs, cache: _native.EmbeddingCache) -> None:
        self.columns = dict(columns)
        self._empty = {name: spec for name, spec in self.columns.items() if 0 in spec[1]}
        self.cache = cache

    def upsert(self, keys: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Store rows ``[n, ...]`` under keys uint64 ``[n]``."""
        stored = {name: array for name, array in columns.items() if name not in self._empty}
        self.cache.upsert(np.ascontiguousarray(keys), stored)

    def gather(
        self, keys: np.ndarray, out: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Copy rows out.

        Args:
            keys: uint64 ``[n]``.
            out: C-contiguous arrays ``[n, ...]`` to write to, from `buffers`; ``None`` for new ones.

        Returns:
            Columns ``[n, ...]``, zeros where there is no row, and which rows were found, bool ``[n]``.
        """
        stored = None if out is None else {n: array for n, array in out.items() if n not in self._empty}
        columns, found = self.cache.gather(np.ascontiguousarray(keys), stored)
        for name, (dtype, shape) in self._empty.items():
            columns[name] = np.zeros((len(keys), *shape), dtype)
        return columns, found
