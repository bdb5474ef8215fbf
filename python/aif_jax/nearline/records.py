"""Selection and concatenation of raw item records."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from aif_jax.errors import ItemIndexError
from aif_jax.inputs import Ragged, read_column, read_flat, read_matrix, read_table, table_columns, take_rows
from aif_jax.types import ItemRecords

_R = TypeVar("_R", bound=ItemRecords)


def read_records(records: _R) -> _R:
    """Return records whose columns are by position, as `read_column` returns them; values are not checked.

    Raises:
        ItemIndexError: something is no column.
    """
    content, rankable = records.content, records.rankable
    if content is not None:
        frame = table_columns(content, "content", error=ItemIndexError)
        if frame is not None:
            content = read_matrix(frame, "content")
        content = read_column(content, "content", error=ItemIndexError)
    return dataclasses.replace(
        records,
        ids=read_flat(records.ids, "ids"),
        columns=read_table(records.columns, "columns", error=ItemIndexError),
        content=content,
        rankable=None if rankable is None else read_flat(rankable, "rankable", error=ItemIndexError),
    )


def take(records: _R, places: np.ndarray) -> _R:
    """Return the items at some places, int ``[m]``, in that order.

    Raises:
        ItemIndexError: something is no column, or a column is not as long as the ids.
    """
    records = read_records(records)
    n = len(records.ids)

    def pick(name: str, column: Any) -> Any:
        if column is None:
            return None
        if len(column) != n:
            raise ItemIndexError(f"{name}: got {len(column)} rows for {n} ids, expected one for each.")
        return take_rows(column, places)

    return dataclasses.replace(
        records,
        ids=take_rows(records.ids, places),
        columns={name: pick(name, column) for name, column in records.columns.items()},
        content=pick("content", records.content),
        rankable=pick("rankable", records.rankable),
    )


def concatenated(parts: Sequence[Any]) -> Any:
    """Concatenate columns: to an array if all are of one dtype, else to a list."""
    parts = [read_column(part, "column", error=ItemIndexError) for part in parts]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts) and len({(part.dtype, part.shape[1:]) for part in arrays}) == 1:
        return np.concatenate(arrays)
    return [value for part in parts for value in _values(part)]


def _values(column: Any) -> Any:
    if isinstance(column, Ragged):
        return (column.values[start:end] for start, end in itertools.pairwise(column.offsets))
    return column
