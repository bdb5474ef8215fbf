"""A user source in memory."""

import threading
from collections.abc import Mapping
from typing import Any

from aif_jax.features.copies import copied
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
        self, user: UserId, features: Mapping[str, Any] | None = None, items: Any = (), types: Any = (),
        times: Any = (),
    ) -> UserRecord:  # fmt: skip
        """Add or replace a user; the revision counts up, so that no state of the old record is used."""
        with self._lock:
            known = getattr(self._records.get(user), "revision", None)
            # Copied: under this revision nothing may change any more.
            revision = known + 1 if isinstance(known, int) else 0
            given = copied(items), copied(types), revision, copied(times)
            self._records[user] = record = UserRecord(copied(features or {}), *given)
        return record
