"""User records as input of the user program: encoded features, behaviours as keys and type numbers."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from aif_jax.errors import SchedulerError, SchemaError, UserSourceError
from aif_jax.features.gaps import gap_steps
from aif_jax.features.report import EncodeReport
from aif_jax.features.schema import Schema
from aif_jax.inputs import read_flat, read_ids, read_numbers
from aif_jax.shown import shown
from aif_jax.strict_json import shortened, text_of
from aif_jax.types import UserId, UserRecord


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """Behaviours of a user by key and type number, most recent first.

    Attributes:
        keys: uint64 ``[L]``.
        types: int32 ``[L]``.
        gaps: int32 ``[L]``, see `gap_steps`.
        truncated: behaviours beyond the longest history that the model reads.
    """

    keys: np.ndarray
    types: np.ndarray
    gaps: np.ndarray
    truncated: int


class ReadRecord(NamedTuple):
    """A record that was checked.

    Attributes:
        features: encoded, ``[1, ...]`` each.
        history: its behaviours.
        report: what encoding left out.
    """

    features: dict[str, np.ndarray]
    history: History
    report: EncodeReport


def read_record(
    user: UserId, record: UserRecord, schema: Schema, longest: int | None = None
) -> ReadRecord | Exception:
    """Return a record that was checked, or the error of one that is malformed; see `read_history`."""
    report = EncodeReport()
    try:
        features = read_features(user, record, schema, report)
        return ReadRecord(features, read_history(user, record, schema, longest), report)
    except Exception as error:
        return error


def fetch_record(source: Callable[[Any], UserRecord | None], user: UserId) -> UserRecord | None:
    """Return a user's record from a source, its columns read; ``None`` for an unknown user.

    Raises:
        UserSourceError: the source raised, or returned something else.
        SchedulerError: it raised that, for example because it ranked on its own engine.
    """
    try:
        record = source(user)
    except SchedulerError:  # it used its own engine in a way that would wait for ever
        raise
    except Exception as error:
        raise UserSourceError(
            f"user {shortened(text_of(user))}: the user source raised {type(error).__name__}: "
            f"{shortened(text_of(error))}"
        ) from error
    return None if record is None else _checked(user, record)


def _checked(user: UserId, record: Any) -> UserRecord:
    """Read the columns in what a user source returned; their values are checked when they are used.

    Returns:
        The record, with items, types and times as `read_flat` returns them; itself if they are so already.

    Raises:
        UserSourceError: it is not a `UserRecord`, or a field has another type than documented there.
    """
    if not isinstance(record, UserRecord):
        advice = "."
        if inspect.iscoroutine(record):
            record.close()
            advice = "; give the engine the coroutine function itself, which it awaits."
        raise UserSourceError(
            f"user {user!r}: the user source returned a {type(record).__name__}, expected a UserRecord "
            f"or None{advice}"
        )
    features = record.features
    if type(features) is not dict and not isinstance(features, Mapping):
        raise UserSourceError(
            f"user {user!r}: the source's features: got a {type(features).__name__} ({shown(features)}), "
            "expected a mapping from names to values; {} for a user without features."
        )
    columns = {
        name: read_flat(getattr(record, name), f"user {user!r}: the source's {name}", error=UserSourceError)
        for name in ("items", "types", "times")
    }
    if all(column is getattr(record, name) for name, column in columns.items()):
        return record
    return dataclasses.replace(record, **columns)


def read_history(user: UserId, record: UserRecord, schema: Schema, longest: int | None = None) -> History:
    """Check the behaviours of a record, and cut them to the longest history, if one is given.

    Raises:
        UserSourceError: items, types and times are not of one length, a type is unknown, an id malformed, or
            a time no number.
    """
    record = _checked(user, record)
    total = len(record.items)
    if len(record.types) != total:
        raise UserSourceError(
            f"user {user!r}: the source gave {total} items and {len(record.types)} types; "
            "expected one type for each item."
        )
    if len(record.times) not in (0, total):
        raise UserSourceError(
            f"user {user!r}: the source gave {total} items and {len(record.times)} times; expected one time "
            "for each item, or none."
        )
    items = read_ids(record.items[:longest], f"user {user!r}: the source's items", error=UserSourceError)
    n, types = len(items.keys), _type_numbers(user, record.types[:longest], schema)
    gaps = np.zeros(n, np.int32)
    if len(record.times):  # with the one before the oldest that is read
        given = record.times[: n + 1]
        gaps = gap_steps(read_numbers(given, f"user {user!r}: the source's times", error=UserSourceError))[:n]
    return History(items.keys, types, gaps, total - n)


def read_features(
    user: UserId, record: UserRecord, schema: Schema, report: EncodeReport
) -> dict[str, np.ndarray]:
    """Encode the features of a record, ``[1, ...]`` each; those that the schema does not name are counted.

    Raises:
        UserSourceError: a value is of the wrong kind.
    """
    columns = {name: [value] for name, value in record.features.items()}
    try:
        return schema.encode("user", columns, 1, report=report, strict=False)
    except SchemaError as error:
        raise UserSourceError(f"user {user!r}: the source's features: {error}") from error


def _type_numbers(user: UserId, types: Any, schema: Schema) -> np.ndarray:
    """Return the numbers of behaviour types, given by name or by number in what `read_flat` returned."""
    names = schema.behaviour_types
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or np.ma.isMaskedArray(types):
        number = {name: index for index, name in enumerate(names)}
        values = types.tolist() if isinstance(types, np.ndarray) else types
        numbers = np.array([_type_number(value, number) for value in values], np.int64)
    else:
        numbers = types
    if len(wrong := np.flatnonzero((numbers < 0) | (numbers >= len(names)))):
        row = int(wrong[0])
        raise UserSourceError(
            f"user {user!r}: the behaviour type in row {row} is {shown(types[row])}, expected one of "
            f"{', '.join(map(repr, names))}, or a number from 0 to {len(names) - 1}."
        )
    return numbers.astype(np.int32)


def _type_number(value: Any, number: Mapping[str, int]) -> int:
    if isinstance(value, str):
        return number.get(value, -1)
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return int(value) if whole and 0 <= value < len(number) else -1
