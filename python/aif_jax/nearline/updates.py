"""What a stream of changes says, and what applying it came to."""

import dataclasses
from collections import Counter
from typing import Any, TypeAlias

from aif_jax.types import ItemRecords


@dataclasses.dataclass(frozen=True, slots=True)
class Upsert(ItemRecords):
    """Items that are new or have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Items that are gone: no candidates any more. They still count in the histories of users."""

    ids: Any


Update: TypeAlias = Upsert | Delete


@dataclasses.dataclass(slots=True)
class FollowReport:
    """What came of a stream of updates.

    Attributes:
        upserted: rows computed and stored.
        deleted: rows deleted.
        ignored: ids of deletions that the table keeps on purpose, or never had.
        failed: updates that could not be applied, by the name of the error.
    """

    upserted: int = 0
    deleted: int = 0
    ignored: int = 0
    failed: Counter[str] = dataclasses.field(default_factory=Counter)
