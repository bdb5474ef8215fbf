"""How much of what the running generation can rank and read of histories the tables of the next one have.

Only keys and the column that says what may be ranked are read, in pieces with rests between them: a million
ids in each table take 0.3 seconds of computing, and six times that in all.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from aif_jax.errors import PublishError, RequestError
from aif_jax.features import item_keys
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.nearline.item_index import RANKABLE
from aif_jax.nearline.table import RowTable
from aif_jax.serving.unhurried import unhurried

_PIECE = 65_536
"""Keys that are looked up between two rests."""

_POLL_S = 0.05
_POLL_REST = 10.0
"""A wait looks again after so many seconds, or so many times as long as the last look took."""

_NAMED = 5
"""Missing ids that an error names, of each table."""


class Tables(NamedTuple):
    """The tables of one generation."""

    items: ItemIndex
    behaviours: BehaviourTable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What the tables of one generation have of another's.

    Attributes:
        items: share of the other's rankable items that are in the index and rankable; 1 if it has none.
        behaviours: share of the other's behaviour rows that are in the behaviour table; 1 if it has none.
        missing_items: how many of the items are not.
        missing_behaviours: how many of the behaviour rows are not.
    """

    items: float
    behaviours: float
    missing_items: int
    missing_behaviours: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Lack:
    """Of how many keys of one table which ones another lacks, uint64 ``[n]``."""

    of: int
    keys: np.ndarray

    @property
    def share(self) -> float:
        return 1.0 - len(self.keys) / self.of if self.of else 1.0

    def within(self, least: float) -> bool:
        return self.of - len(self.keys) >= least * self.of


class CoverageGate:
    """Lets tables pass that have enough of the running generation's, at once or in time.

    Args:
        tables: of the next generation; they may still be filling.
        least: share that each of them must have.
        within_s: seconds from now in which it must.

    Raises:
        RequestError: a bound cannot be met.
    """

    def __init__(self, tables: Tables, least: float, within_s: float):
        if not 0 <= least <= 1 or not within_s >= 0:
            raise RequestError(
                f"least_coverage, coverage_within_s: got {least} and {within_s}, expected a share from 0 to "
                "1, and 0 or more seconds."
            )
        self._tables = tables
        self._least = least
        self._within_s = within_s
        self._began_s = time.monotonic()

    @property
    def open(self) -> bool:
        """Whether everything passes."""
        return self._least == 0

    @property
    def left_s(self) -> float:
        """Seconds that are left to wait."""
        return self._began_s + self._within_s - time.monotonic()

    def wait(self, running: Callable[[], Tables], stopped: Callable[[], bool]) -> None:
        """Return as soon as the tables have enough, or the time is up.

        Args:
            running: returns the tables to compare with, those of the moment.
            stopped: whether to give up.
        """
        while self.left_s > 0 and not stopped():
            tables = running()
            lacks = self._lacks(tables)
            if all(lack.within(self._least) for lack in lacks):
                return
            took_s = 0.0
            # Only what was missing is looked up again. What was there may be gone: so all is, in the end.
            while not all(lack.within(self._least) for lack in lacks) and running() == tables:
                time.sleep(max(0.0, min(max(_POLL_S, _POLL_REST * took_s), self.left_s)))
                if self.left_s <= 0 or stopped():
                    return
                began_s = time.monotonic()
                lacks = [self._again(*pair) for pair in zip(tables, self._tables, lacks, strict=True)]
                took_s = time.monotonic() - began_s

    def passed(self, running: Tables, *, last: bool = False) -> Coverage | None:
        """Return what the tables have of the running ones; ``None`` if it is not enough yet.

        Args:
            running: the tables to compare with.
            last: whether waiting longer is out of the question, though there is time left.

        Raises:
            PublishError: it is not enough, and the time is up.
        """
        items, behaviours = lacks = self._lacks(running)
        if not all(lack.within(self._least) for lack in lacks):
            if self.left_s > 0 and not last:
                return None
            raise self._refused(running, items, behaviours)
        return Coverage(
            items=items.share, behaviours=behaviours.share, missing_items=len(items.keys),
            missing_behaviours=len(behaviours.keys),
        )  # fmt: skip

    def _lacks(self, running: Tables) -> list[_Lack]:
        return [
            _lack(old, new, old.store.cache.keys()) for old, new in zip(running, self._tables, strict=True)
        ]

    @staticmethod
    def _again(old: RowTable, new: RowTable, lack: _Lack) -> _Lack:
        """Look again for what was missing; what the running table has lost meanwhile counts no more."""
        again = _lack(old, new, lack.keys)
        return _Lack(lack.of - (len(lack.keys) - again.of), again.keys)

    def _refused(self, running: Tables, items: _Lack, behaviours: _Lack) -> PublishError:
        in_vain = self._within_s > 0 and self.left_s <= 0
        waited = f" after {self._within_s:g} s of waiting" if in_vain else ""
        return PublishError(
            f"the item index of bundle {self._tables.items.version} has {_shown(items)} rankable items of "
            f"the running bundle {running.items.version}, and its behaviour table {_shown(behaviours)} "
            f"behaviour rows{waited}; least_coverage={self._least:g} is wanted of each. Missing are "
            f"{_named('items', running.items, items.keys)}, and "
            f"{_named('behaviour rows', running.behaviours, behaviours.keys)}. Nothing was changed: upsert "
            "them, wait longer (coverage_within_s), or lower the bound if they are gone for good."
        )


def _lack(old: RowTable, new: RowTable, keys: np.ndarray) -> _Lack:
    """Return how many of these keys one table has, and which of these another lacks."""
    of, lacking = 0, [np.empty(0, np.uint64)]
    for start in range(0, len(keys), _PIECE):
        piece = keys[start : start + _PIECE]
        with unhurried():
            here = piece[_has(old, piece)]
            of += len(here)
            lacking.append(here[~_has(new, here)])
    return _Lack(of, np.concatenate(lacking))


def _has(table: RowTable, keys: np.ndarray) -> np.ndarray:
    """Return which keys can be ranked, or read in histories, bool ``[n]``."""
    if not isinstance(table, ItemIndex):
        return table.store.cache.contains(keys)
    rankable, found = table.store.cache.gather_column(keys, RANKABLE)
    return found & (rankable[:, 0] != 0)


def _shown(lack: _Lack) -> str:
    # Rounded down: 99.99 % is not all.
    return f"{np.floor(lack.share * 1e4) / 1e2:.2f} % of the {lack.of:,}"


def _named(what: str, table: RowTable, keys: np.ndarray) -> str:
    """Name a few of the keys by their ids."""
    if not len(keys):
        return f"no {what}"
    ids, shown = table.ids(), np.sort(keys)[:_NAMED]
    if ids.dtype == object:
        shown = ids[np.isin(item_keys(ids), shown)]
    more = f" and {len(keys) - len(shown):,} more" if len(keys) > len(shown) else ""
    return f"{what} {', '.join(map(str, shown.tolist()))}{more}"
