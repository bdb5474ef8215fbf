"""Rows of several sizes: a catalogue in the embedding cache and as an array, and batches of its keys."""

import dataclasses

import numpy as np

from aif_jax import _native


@dataclasses.dataclass(frozen=True)
class Size:
    """Rows of one size: as many as make about 1 GB, and a batch that a request would ask for."""

    columns: tuple[tuple[str, str, tuple[int, ...]], ...]
    rows: int
    batch: int

    @property
    def row_bytes(self) -> int:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, dtype, shape in self.columns)


ITEM_ROW = (
    ("h", "float32", (128,)), ("e", "float32", (64,)), ("m", "float32", (64,)), ("w", "float32", (16,)),
    ("signature", "uint8", (32,)), ("categories", "int32", (4,)),
)  # fmt: skip
"""An item row of the standard workload."""

SIZES = {
    "256 bytes": Size((("row", "uint8", (256,)),), 1_000_000, 4096),
    "1,024 bytes": Size((("row", "uint8", (1024,)),), 1_000_000, 4096),
    "131,072 bytes": Size((("row", "uint8", (131_072,)),), 8_000, 64),
    "item row in 6 columns": Size(ITEM_ROW, 1_000_000, 4096),
}


class Rows:
    """One catalogue twice: in the cache, and as an array of whole rows."""

    def __init__(self, size: Size):
        rng = np.random.default_rng(0)
        self.size = size
        self.keys = rng.permutation(np.arange(size.rows, dtype=np.uint64) * np.uint64(2_654_435_761))
        self.array = rng.integers(0, 256, (size.rows, size.row_bytes), np.uint8)
        self.cache = _native.EmbeddingCache(_native.RowLayout(size.columns), initial_keys=size.rows)
        for start in range(0, size.rows, 8192):
            part = slice(start, start + 8192)
            self.cache.upsert(self.keys[part], self.split(self.array[part]))
        # Batches take turns, so that none finds its own rows in the processor's cache.
        self.batches = [rng.choice(size.rows, size.batch, replace=False) for _ in range(16)]
        self.asked = [np.ascontiguousarray(self.keys[batch]) for batch in self.batches]

    def split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of whole rows uint8 ``[n, row_bytes]``."""
        columns, start = {}, 0
        for name, dtype, shape in self.size.columns:
            end = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
            column = np.ascontiguousarray(rows[:, start:end]).view(dtype)
            columns[name], start = column.reshape(len(rows), *shape), end
        return columns
