"""Row computation: one of a bundle's item programs, run over a fixed number of rows at a time."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.features import EncodeReport, pad_to
from aif_jax.nearline.store import ColumnSpecs
from aif_jax.types import named_dtype

BATCH = 256
"""Rows that one call of the program computes, however few are wanted: XLA adds in another order for another
number of rows, and a row must have the same bits in every batch and process."""


class RowProgram:
    """Computes rows of items.

    Args:
        bundle: the model.
        stage: its program: ``item`` or ``behaviour``.
    """

    def __init__(self, bundle: Bundle, stage: Literal["item", "behaviour"]):
        self._bundle = bundle
        self._stage: Literal["item", "behaviour"] = stage
        self.columns: ColumnSpecs = {
            operand.path: (named_dtype(operand.dtype), tuple(int(size) for size in operand.shape[1:]))
            for operand in bundle.signature(stage).outputs
        }
        """Dtype and shape within one row of each computed column."""

    def encode(self, columns: Any, n: int, report: EncodeReport | None = None) -> dict[str, np.ndarray]:
        """Encode raw item features by the schema, ``[n, ...]`` each.

        Raises:
            SchemaError: a column does not fit the schema.
        """
        return self._bundle.schema.encode("item", columns, n, report=report)

    def content(self, content: Any, n: int) -> np.ndarray:
        """Return raw content embeddings as the program takes them, see `ContentSpace.apply`."""
        return self._bundle.content_space.apply(content, n)[0]

    def run(self, encoded: Mapping[str, np.ndarray], content: np.ndarray) -> dict[str, np.ndarray]:
        """Compute up to `BATCH` rows.

        Args:
            encoded: item features, ``[n, ...]``.
            content: float32 ``[n, d_m]``.

        Returns:
            The columns of the rows, ``[n, ...]``.
        """
        return self.start(encoded, content)()

    def start(
        self, encoded: Mapping[str, np.ndarray], content: np.ndarray
    ) -> Callable[[], dict[str, np.ndarray]]:
        """Begin to compute up to `BATCH` rows; the returned function waits for them. See `run`."""
        n = len(content)
        inputs = {f"item/{name}": pad_to(array, BATCH) for name, array in encoded.items()}
        inputs["item/content"] = pad_to(content, BATCH)
        inputs["item/has_content"] = pad_to(
            np.any(content != 0, axis=1, keepdims=True).astype(np.float32), BATCH
        )
        outputs = self._bundle.call(self._stage, m=BATCH)(inputs)
        return lambda: {name: np.ascontiguousarray(np.asarray(a)[:n]) for name, a in outputs.items()}


def batches(n: int) -> Iterator[slice]:
    """Cut n rows into the batches for which the program is compiled."""
    for start in range(0, n, BATCH):
        yield slice(start, min(start + BATCH, n))
