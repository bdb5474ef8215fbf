"""Copies of what others hand over and may change later, and revisions of user records by their content."""

import contextlib
import copy
import hashlib
import marshal
import os
import pickle
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from aif_jax.errors import RequestError, UserSourceError
from aif_jax.inputs import read_column
from aif_jax.strict_json import shortened, text_of
from aif_jax.types import UserId, UserRecord

_FIXED = frozenset({bool, bytes, float, int, str, type(None)})
"""Types whose values nobody can change."""

_BY_VALUE = 2
"""Version of marshal's format that writes values alone, not which of them are one object."""


def copied(value: Any) -> Any:
    """Return a copy of a value, a column or a table that stays as it is when its owner changes the original.

    Raises:
        RequestError: it cannot be copied.
    """
    kind = type(value)
    if kind in _FIXED or (kind is tuple and set(map(type, value)) <= _FIXED):
        return value
    if kind is np.ndarray and not value.dtype.hasobject:
        return value.copy()
    if kind in (list, tuple):
        return value.copy() if set(map(type, value)) <= _FIXED else kind(copied(each) for each in value)
    if isinstance(value, Mapping):
        return {name: copied(each) for name, each in value.items()}
    if kind.__module__.partition(".")[0] == "pyarrow":  # nobody changes these, and readers cannot be copied
        return value
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise RequestError(
            f"got a {kind.__name__} that cannot be copied ({type(error).__name__}), though it is read after "
            "the call; give a NumPy array or a list."
        ) from error


def own_record(user: UserId, record: UserRecord, names: Collection[str], longest: int) -> UserRecord:
    """Return a copy of a record, with a revision of its content if it has none.

    Args:
        user: whose it is, for messages.
        record: from a user source, which may change it afterwards.
        names: user features that the model reads; others change no revision.
        longest: behaviours that the model reads; of older ones only their number counts.

    Raises:
        UserSourceError: a value cannot be copied.
    """
    try:
        features = copied(record.features)
        items, types, times = (_ids(column) for column in (record.items, record.types, record.times))
    except RequestError as error:
        raise UserSourceError(f"user {shortened(text_of(user))}: the user source {error}") from error
    revision = record.revision
    if revision is None:
        parts: list[Any] = [len(items), _plain(items[:longest]), _plain(types[:longest])]
        if len(times):
            parts.append(_plain(times[: longest + 1]))
        for name in sorted(names & features.keys()):
            parts += name, _plain(features[name])
        revision = hashlib.sha1(_written(parts), usedforsecurity=False).hexdigest()
    return UserRecord(features, items, types, revision, times)


def _ids(column: Any) -> Any:
    return column.copy() if type(column) is list else copied(column)  # whose elements nobody changes


def _plain(value: Any) -> Any:
    if type(value) not in _FIXED:
        with contextlib.suppress(RequestError):  # of what is no column
            value = read_column(value, "column")
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.hasobject:
        return value.tolist()
    mask = np.ma.getmaskarray(value).tobytes() if isinstance(value, np.ma.MaskedArray) else b""
    return value.dtype.str, value.shape, value.tobytes(), mask


def _written(parts: list[Any]) -> bytes:
    """Return values as bytes: of equal ones of the same types the same."""
    try:
        return marshal.dumps(parts, _BY_VALUE)
    except ValueError:
        pass
    try:
        return pickle.dumps(parts)
    # What cannot be written is taken for new each time: its state is computed again, and never out of date.
    except Exception:
        return os.urandom(16)
