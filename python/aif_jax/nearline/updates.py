"""What a stream of changes says, and what applying it came to."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Upsert:
    """Items that are new or have changed.

    Attributes:
        ids: integers or strings, ``[n]``.
        columns: raw item features by name, each with n rows; an absent one counts as missing.
        content: content embeddings, float ``[n, d_m]``; ``None`` if these items have none.
        rankable: bool ``[n]``, whether each may be a candidate; ``None`` for all.
    """

    ids: Any
    columns: Mapping[str, Any]
    content: np.ndarray | None = None
    rankable: np.ndarray | None = None


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
