"""Coverage: the share of one generation's rows that the tables of another have."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from aif_jax.inputs import item_keys
from aif_jax.machine import throttled
from aif_jax.nearline.item_index import RANKABLE_COLUMN, ItemIndex
from aif_jax.nearline.table import RowTable

_CHUNK = 65_536
"""Keys that are looked up between two rests."""

_MAX_NAMED = 5
"""Missing ids of each table that an error names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of one pair of tables that another pair has too.

    Attributes:
        items: share of the rankable items that are in the other index and rankable there; 1 if there are
            none.
        behaviours: share of the behaviour rows that are in the other behaviour table; 1 if there are none.
        missing_items: number of these items that the other index lacks.
        missing_behaviours: number of these rows that the other behaviour table lacks.
    """

    items: float
    behaviours: float
    missing_items: int
    missing_behaviours: int


class MissingKeys(NamedTuple):
    """Keys that one table has and another lacks.

    Attributes:
        total: number of keys that the one has.
        keys: those of them that the other lacks, uint64 ``[n]``.
    """

    total: int
    keys: np.ndarray

    @classmethod
    def of(cls, old: RowTable, new: RowTable, keys: np.ndarray) -> "MissingKeys":
        """Look up keys of one table in another; a million of them take 0.3 s of computing."""
        total, missing = 0, [np.empty(0, np.uint64)]
        for start in range(0, len(keys), _CHUNK):
            with throttled():
                chunk = keys[start : start + _CHUNK]
                present = chunk[_present(old, chunk)]
                total += len(present)
                missing.append(present[~_present(new, present)])
        return cls(total, np.concatenate(missing))

    @property
    def share(self) -> float:
        """Share of the keys that the other has."""
        return 1.0 - len(self.keys) / self.total if self.total else 1.0

    def again(self, old: RowTable, new: RowTable) -> "MissingKeys":
        """Look up the missing keys again. Those that the running table has lost since do not count."""
        found = MissingKeys.of(old, new, self.keys)
        return MissingKeys(self.total - (len(self.keys) - found.total), found.keys)

    def shown(self) -> str:
        """Return the share in words, rounded down: 99.99 % is not all."""
        return f"{math.floor(self.share * 1e4) / 1e2:.2f} % of the {self.total:,}"

    def named(self, noun: str, table: RowTable) -> str:
        """Return the ids of a few of the keys in words."""
        if not len(self.keys):
            return f"no {noun}"
        ids, named = table.ids(), np.sort(self.keys)[:_MAX_NAMED]
        if ids.dtype == object:
            named = ids[np.isin(item_keys(ids), named)]
        more = len(self.keys) - len(named)
        return f"{noun} {', '.join(map(str, named.tolist()))}" + (f" and {more:,} more" if more else "")


def _present(table: RowTable, keys: np.ndarray) -> np.ndarray:
    """Return a mask of the keys whose row can be ranked, or read in histories, bool ``[n]``."""
    if not isinstance(table, ItemIndex):
        return table.store.cache.contains(keys)
    rankable, found = table.store.cache.gather_column(keys, RANKABLE_COLUMN)
    return found & (rankable[:, 0] != 0)


def coverage_of(items: MissingKeys, behaviours: MissingKeys) -> Coverage:
    """Return the coverage of two tables."""
    return Coverage(
        items=items.share, behaviours=behaviours.share, missing_items=len(items.keys),
        missing_behaviours=len(behaviours.keys),
    )  # fmt: skip
