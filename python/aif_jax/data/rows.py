"""Behaviours of users and rows to score, as arrays; users and items are row numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.data.moments import UNITS
from aif_jax.errors import DataError
from aif_jax.inputs import read_table, take_rows


@dataclasses.dataclass(frozen=True)
class Events:
    """Behaviours, grouped by user, oldest first within a user.

    Attributes:
        offsets: int64 ``[n_users + 1]``; user ``u`` did ``offsets[u]:offsets[u + 1]``.
        item: int32 ``[E]``, row of the item.
        type: int32 ``[E]``, position in ``schema.behaviour_types``.
        time: int64 ``[E]``, never falling within a user; the unit is the source's.
        training: bool ``[E]``, whether the event lies in the training part of its user's time.
        unit: of the times, ``s``, ``ms``, ``us`` or ``ns`` since 1970; or ``step``, an order without dates.
    """

    offsets: np.ndarray
    item: np.ndarray
    type: np.ndarray
    time: np.ndarray
    training: np.ndarray
    unit: str = "step"

    def __len__(self) -> int:
        return len(self.item)

    def seconds(self, events: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the times of some events in seconds since 1970, float64 ``[n]``; NaN of steps."""
        time = self.time[events]
        return time / UNITS[self.unit] if self.unit in UNITS else np.full(len(time), np.nan)

    @property
    def user(self) -> np.ndarray:
        """int32 ``[E]``, row of the user of each event."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))


@dataclasses.dataclass(frozen=True)
class Impressions:
    """Rows to score: an item shown to a user, and the outcome.

    Attributes:
        user: int32 ``[I]``, row of the user.
        item: int32 ``[I]``, row of the item.
        history_end: int64 ``[I]``; the row's history is ``events[offsets[user]:history_end]``, all strictly
            before the row, or a label leaks. `Dataset.from_events` and `from_impressions` work it out.
        labels: float32 ``[I]`` by head.
        label_mask: float32 ``[I]`` by head: 1 where the label is known.
        split: int8 ``[I]``: `TRAIN`, `VALIDATION` or `TEST`.
        request: int64 ``[I]``; rows of one request belong to one user and one split, and may be scored
            together.
        context: raw columns ``[I]`` by feature.
        pair: raw columns ``[I]`` by feature.
        train_only: raw columns ``[I]`` by feature.
        sampled: bool ``[I]``, rows that were drawn and that nobody logged; ``None`` if there are none.
        time: int64 ``[I]``, in the unit of the events; ``None`` if it is not kept. A data set refuses rows
            whose history does not end before it.
    """

    user: np.ndarray
    item: np.ndarray
    history_end: np.ndarray
    labels: Mapping[str, np.ndarray]
    label_mask: Mapping[str, np.ndarray]
    split: np.ndarray
    request: np.ndarray
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pair: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train_only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampled: np.ndarray | None = None
    time: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field in ("context", "pair", "train_only"):
            object.__setattr__(self, field, read_table(getattr(self, field), field, error=DataError))

    def __len__(self) -> int:
        return len(self.user)

    def real(self, split: int) -> np.ndarray:
        """Return the rows of a part that were logged, not sampled, int64 ``[m]``."""
        mine = self.split == split
        return np.flatnonzero(mine if self.sampled is None else mine & ~self.sampled)


@dataclasses.dataclass(frozen=True)
class Requests:
    """Rows that are scored together, padded to one width.

    Attributes:
        rows: int64 ``[R, group]``, rows of `Impressions` in order of time, -1 for padding at the end.
        user: int32 ``[R]``.
        history_end: int64 ``[R]``, that of the first row: all rows of a request share one history.
    """

    rows: np.ndarray
    user: np.ndarray
    history_end: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def take_columns(columns: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Return the chosen rows of raw columns; lists and `Ragged` columns too."""
    return {name: take_rows(column, rows) for name, column in columns.items()}
