"""User sources: one in memory, and the checks of the records that any source returns."""

import threading
from collections.abc import Mapping
from typing import Any

from aif_jax.errors import RequestError
from aif_jax.types import UserId, UserRecord


class InMemoryUsers:
    """A user source that is a dictionary: for tests, demos and catalogues of users that fit.

    >>> users = InMemoryUsers()
    >>> users.put("ann", {"country": "de"}, items=[17, 42], types=["click", "like"]).revision
    0
    >>> users("bob") is None
    True
    """

    def __init__(self, records: Mapping[UserId, UserRecord] | None = None):
        self._records: dict[UserId, UserRecord] = dict(records or {})
        self._lock = threading.Lock()

    def __call__(self, user: UserId, /) -> UserRecord | None:
        """Return the user's record, or ``None``."""
        return self._records.get(user)

    def __len__(self) -> int:
        return len(self._records)

    def put(
        self,
        user: UserId,
        features: Mapping[str, Any] | None = None,
        items: Any = (),
        types: Any = (),
    ) -> UserRecord:
        """Add or replace a user; the revision counts up, so that no state of the old record is used."""
        with self._lock:
            before = self._records.get(user)
            record = UserRecord(
                features=dict(features or {}),
                items=items,
                types=types,
                revision=0 if before is None else before.revision + 1,
            )
            self._records[user] = record
        return record


def checked_record(user: UserId, record: Any) -> UserRecord:
    """Check the types in what a user source returned; values are checked when they are read.

    Raises:
        RequestError: it is not a `UserRecord`, or a field is not what the record's documentation says.
    """
    if not isinstance(record, UserRecord):
        raise RequestError(
            f"user {user!r}: the user source returned a {type(record).__name__}, expected a UserRecord "
            "or None."
        )
    if not isinstance(record.features, Mapping):
        raise RequestError(
            f"user {user!r}: the source's features: got {_shown(record.features)}, expected a mapping from "
            "names to values; {} for a user without features."
        )
    for name in ("items", "types"):
        column = getattr(record, name)
        try:
            len(column)
            column[:0]
        except (TypeError, KeyError):
            raise RequestError(
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
