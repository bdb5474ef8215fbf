"""User records as input of the user program: encoded features, behaviours as keys and type numbers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aif_jax.errors import RequestError, SchemaError, UserSourceError
from aif_jax.features.ids import item_keys
from aif_jax.features.report import EncodeReport
from aif_jax.features.schema import Schema
from aif_jax.strict_json import shortened, text_of
from aif_jax.types import UserId, UserRecord


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """Behaviours of a user by key and type number, most recent first.

    Attributes:
        keys: uint64 ``[L]``.
        types: int32 ``[L]``.
        truncated: behaviours beyond the longest history that the model reads.
    """

    keys: np.ndarray
    types: np.ndarray
    truncated: int


def fetch_record(source: Callable[[Any], UserRecord | None], user: UserId) -> UserRecord | None:
    """Return a user's record from a source, its types checked; ``None`` for an unknown user.

    Raises:
        UserSourceError: the source raised, or returned something else.
    """
    try:
        record = source(user)
    except Exception as error:
        raise UserSourceError(
            f"user {shortened(text_of(user))}: the user source raised {type(error).__name__}: "
            f"{shortened(text_of(error))}"
        ) from error
    return None if record is None else _checked(user, record)


def _checked(user: UserId, record: Any) -> UserRecord:
    """Check the types in what a user source returned; values are checked when they are read.

    Raises:
        UserSourceError: it is not a `UserRecord`, or a field has another type than documented there.
    """
    if not isinstance(record, UserRecord):
        raise UserSourceError(
            f"user {user!r}: the user source returned a {type(record).__name__}, expected a UserRecord "
            "or None."
        )
    if not isinstance(record.features, Mapping):
        raise UserSourceError(
            f"user {user!r}: the source's features: got {_shown(record.features)}, expected a mapping from "
            "names to values; {} for a user without features."
        )
    for name in ("items", "types"):
        column = getattr(record, name)
        try:
            len(column)
            column[:0]
        except (TypeError, KeyError):
            raise UserSourceError(
                f"user {user!r}: the source's {name}: got {_shown(column)}, expected an array or list, most "
                "recent first; () for a user without behaviours."
            ) from None
    return record


def _shown(value: Any) -> str:
    text = repr(value)
    return (
        text
        if value is None
        else f"a {type(value).__name__} ({text if len(text) <= 60 else text[:57] + '...'})"
    )


def read_history(user: UserId, record: UserRecord, schema: Schema, longest: int) -> History:
    """Check and cut the behaviours of a record.

    Raises:
        UserSourceError: items and types are not of one length, a type is unknown, or an id is malformed.
    """
    total = len(record.items)
    if len(record.types) != total:
        raise UserSourceError(
            f"user {user!r}: the source gave {total} items and {len(record.types)} types; "
            "expected one type for each item."
        )
    try:
        keys = item_keys(record.items[:longest])
    except RequestError as error:
        raise UserSourceError(f"user {user!r}: the source's items: {error}") from error
    return History(keys, _type_numbers(user, record.types[:longest], schema), max(0, total - longest))


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
    names = schema.behaviour_types
    if len(types) and isinstance(types[0], str):
        number = {name: index for index, name in enumerate(names)}
        try:
            return np.fromiter((number[name] for name in types), np.int32, len(types))
        except KeyError as error:
            raise UserSourceError(
                f"user {user!r}: unknown behaviour type {error.args[0]!r}; the model knows "
                f"{', '.join(names)}."
            ) from None
    numbers = np.asarray(types)
    if len(numbers) == 0:
        return np.zeros(0, np.int32)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise UserSourceError(
            f"user {user!r}: behaviour types have dtype {numbers.dtype}, expected names or their numbers."
        )
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise UserSourceError(
            f"user {user!r}: behaviour types go from {numbers.min()} to {numbers.max()}, expected 0 to "
            f"{len(names) - 1} ({', '.join(names)})."
        )
    return numbers.astype(np.int32)
