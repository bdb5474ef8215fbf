"""Selection and concatenation of raw item records."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from aif_jax.features import Ragged
from aif_jax.types import ItemRecords

_R = TypeVar("_R", bound=ItemRecords)


def take(records: _R, places: np.ndarray) -> _R:
    """Return the items at some places, int ``[m]``, in that order.

    Raises:
        IndexError: a column is too short.
    """

    def pick(column: Any) -> Any:
        if isinstance(column, Ragged):
            return column.take(places)
        if isinstance(column, np.ndarray):
            return column[places]
        return [column[place] for place in places.tolist()]

    return dataclasses.replace(
        records,
        ids=pick(records.ids),
        columns={name: pick(column) for name, column in records.columns.items()},
        content=None if records.content is None else pick(np.asarray(records.content)),
        rankable=None if records.rankable is None else pick(np.asarray(records.rankable)),
    )


def concatenated(parts: Sequence[Any]) -> Any:
    """Concatenate columns: to an array if all are of one dtype, else to a list."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts) and len({(part.dtype, part.shape[1:]) for part in arrays}) == 1:
        return np.concatenate(arrays)
    return [value for part in parts for value in _values(part)]


def _values(column: Any) -> Any:
    if isinstance(column, Ragged):
        return (column.values[start:end] for start, end in itertools.pairwise(column.offsets))
    return column
