"""Slices of a part: impressions by history length, item popularity, new users, and values of features."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.errors import DataError
from aif_jax.features import Ragged

HISTORY = (0, 1, 10, 50, 200)
"""Behaviours before an impression from which a bucket of history lengths begins."""

POPULARITY = (0, 1, 11, 101, 1001)
"""Training impressions of an item from which a bucket of popularity begins; up to 10 an item is cold."""

VALUES = 10
"""Most values of a feature that have slices of their own, those of most impressions; the rest is together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """Some impressions.

    Attributes:
        dimension: what they are cut by.
        name: which of its slices.
        rows: bool ``[I]`` over the impressions that were asked about.
    """

    dimension: str
    name: str
    rows: np.ndarray


def slices_of(dataset: Dataset, rows: np.ndarray, features: Sequence[str] = ()) -> list[Slice]:
    """Cut impressions into slices; slices without an impression are left out.

    Impressions of several values of a feature stand in the slice of each.

    Args:
        dataset: holds them; its training part gives the counts of items and users.
        rows: which impressions, int64 ``[I]``.
        features: names of categorical or multi-valued columns of users, items or contexts.

    Raises:
        DataError: there is no such column, or it holds real numbers.
    """
    every = dataset.impressions
    trained = every.split == TRAIN
    shown = np.bincount(every.item[trained], minlength=dataset.n_items)
    met = np.bincount(every.user[trained], minlength=dataset.n_users) > 0
    user, item = every.user[rows], every.item[rows]
    lengths = every.history_end[rows] - dataset.events.offsets[user]
    found = [
        *_buckets("history length", HISTORY, lengths),
        *_buckets("training impressions of the item", POPULARITY, shown[item]),
        Slice("user", "new", ~met[user]),
        Slice("user", "in training", met[user]),
    ]
    for name in features:
        found += _by_value(dataset, rows, name)
    return [each for each in found if each.rows.any()]


def _buckets(dimension: str, starts: Sequence[int], values: np.ndarray) -> Iterator[Slice]:
    place = np.searchsorted(starts, values, side="right") - 1
    for number, start in enumerate(starts):
        last = number + 1 == len(starts)
        end = start if last else starts[number + 1] - 1
        name = f"{start:,} and more" if last else f"{start:,}" if start == end else f"{start:,} to {end:,}"
        yield Slice(dimension, name, place == number)


def _by_value(dataset: Dataset, rows: np.ndarray, feature: str) -> list[Slice]:
    every = dataset.impressions
    groups = (
        ("user", dataset.users, every.user), ("item", dataset.items, every.item),
        ("context", every.context, np.arange(len(every))),
    )  # fmt: skip
    having = [each for each in groups if feature in each[1] and feature != "ids"]
    if not having:
        known = [f"{group} {name}" for group, columns, _ in groups for name in columns if name != "ids"]
        raise DataError(
            f"slice: {dataset.name} has no column {feature!r}, expected one of {', '.join(known)}."
        )
    group, columns, index = having[0]
    owner, values = _flat(columns[feature], feature)
    names, codes = np.unique(values, return_inverse=True)
    wanted, size = index[rows], int(index.max(initial=0)) + 1
    shown = np.bincount(codes, weights=np.bincount(wanted, minlength=size)[owner], minlength=names.size)
    most = np.argsort(-shown, kind="stable")[:VALUES]

    def having_one_of(entries: np.ndarray, name: str) -> Slice:
        has = np.zeros(size, bool)
        has[owner[entries]] = True
        return Slice(f"{group} {feature}", name, has[wanted])

    found = [having_one_of(codes == place, str(names[place])) for place in most]
    found.append(having_one_of(~np.isin(codes, most), "other values"))
    known = having_one_of(np.ones(codes.size, bool), "missing")
    return [*found, dataclasses.replace(known, rows=~known.rows)]


def _flat(column: Any, feature: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the row and the text of each value of a column; missing ones have none."""
    if isinstance(column, Ragged):
        owner = np.repeat(np.arange(len(column)), np.diff(column.offsets))
        return owner, np.asarray(column.values).astype(str)
    if isinstance(column, np.ma.MaskedArray):
        present = np.flatnonzero(~np.ma.getmaskarray(column))
        return _flat_of(np.asarray(column.data)[present], present, feature)
    if isinstance(column, (list, tuple)):
        rows = [each if isinstance(each, (list, tuple, np.ndarray)) else [each] for each in column]
        pairs = [(row, value) for row, each in enumerate(rows) for value in each if value is not None]
        return np.array([row for row, _ in pairs], np.int64), np.array([str(value) for _, value in pairs])
    return _flat_of(np.asarray(column), np.arange(len(column)), feature)


def _flat_of(values: np.ndarray, rows: np.ndarray, feature: str) -> tuple[np.ndarray, np.ndarray]:
    if np.issubdtype(values.dtype, np.floating):
        raise DataError(
            f"slice: column {feature!r} holds real numbers, expected categories; cut them into bins first."
        )
    present = np.array([value is not None for value in values], bool)
    return rows[present], values[present].astype(str)
