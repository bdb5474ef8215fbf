"""The plain dictionary of the soak: what was said so far, and what an answer or a table may therefore be."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aif_jax.integrations.redis_stream import position_of
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.table import RowTable
from soak.world import FIRST_ID, ITEMS, LONG, NOBODY, NOTHING, SHORT, USERS, VERSIONS, K, digests

RANKABLE, HIDDEN, DELETED = 0, 1, 2
"""Flags of an item in the index."""

TOLERANCE = 1e-4
"""Largest difference of scores from the definition."""

_WRITING: Position = (2**62, 0)


class Truth:
    """Every change of an item and a user, kept while some table may lack it. Safe to use from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.items: list[list[list[Any]]] = [[[(0, 0), 0, RANKABLE]] for _ in range(ITEMS)]
        """By item its states, oldest first: position in the stream, version, flag."""
        self.users: list[list[int]] = [[0] for _ in range(USERS)]
        """By user its versions, oldest first."""
        self.settled = [0] * USERS
        """By user the place of the first version that a request which begins now may see."""
        self.malformed: list[Position] = []
        self.floor: Position = (0, 0)
        """A position that every table has reached."""

    def say(self, rows: Sequence[int], version: int | None, flag: int, send: Callable[[], str]) -> Position:
        """Write to the stream, and note it, before: it may be seen before the server's answer is here.

        Without a version, items keep theirs.
        """
        with self.lock:
            said = []
            for row in rows:
                states = self.items[row]
                reached = [place for place, state in enumerate(states) if state[0] <= self.floor]
                del states[: reached[-1] if reached else 0]
                said.append([_WRITING, states[-1][1] if version is None else version, flag])
                states.append(said[-1])
            position = position_of(send())
            for state in said:
                state[0] = position
        return position

    def may(self, rows: np.ndarray, position: Position) -> np.ndarray:
        """Return states that items may have in a table complete up to a position, bool ``[n, V, flags]``."""
        found = np.zeros((len(rows), VERSIONS, 3), bool)
        with self.lock:
            for place, row in enumerate(rows.tolist()):
                for at, version, flag in reversed(self.items[row]):
                    found[place, version, flag] = True
                    if at <= position:
                        break
        return found

    def rows_of(self, user: int, versions: Sequence[int], rung: int) -> list[int]:
        """Return the rows of right scores of a user in some versions."""
        if rung >= 2:
            return [NOBODY if rung == 2 else NOTHING]
        return [(LONG, SHORT)[rung] + user * VERSIONS + version for version in dict.fromkeys(versions)]

    def wrong(
        self, scores: np.ndarray, rows: list[int], asked: np.ndarray, position: Position, ranking: Any
    ) -> str:
        """Return the fault of an answer, or nothing.

        Args:
            scores: right scores of the generation.
            rows: those rows of them that may be the user's.
            asked: the candidates.
            position: a position that the tables had reached when the request began.
            ranking: the answer.
        """
        given, found = (ranking.ids - np.uint64(FIRST_ID)).astype(np.int64), np.asarray(ranking.scores)
        if (
            len({*given.tolist()}) != len(given)
            or not np.isin(given, asked).all()
            or (np.diff(found) > 0).any()
        ):
            return "not candidates, each once, best first"
        states, order = self.may(asked, position), np.argsort(asked)
        shown, hidden = states[:, :, RANKABLE], states[:, :, HIDDEN:].any((1, 2))
        at = order[np.searchsorted(asked, given, sorter=order)]
        left = np.setdiff1d(np.arange(len(asked)), at)
        most = found[-1] + 2 * TOLERANCE if len(found) == K else -np.inf
        faults = []
        for row in rows:
            right = scores[row][:, asked].T
            wrong = ~(shown[at] & (np.abs(right[at] - found[:, None]) <= TOLERANCE)).any(1)
            better = ~(hidden[left] | (shown[left] & (right[left] <= most)).any(1))
            if not wrong.any() and not better.any():
                return ""
            faults.append(f"{wrong.sum()} of {len(found)} scores wrong, {better.sum()} better ones left out")
        return " or ".join(faults)

    def differing(self, table: RowTable, hashes: np.ndarray, position: Position) -> list[int]:
        """Return the items whose rows in a table, complete up to a position, are of no state that may be."""
        found, flags = digests(table)  # before the states: what it shows was said by then
        states = self.may(np.arange(ITEMS), position)
        same = (hashes == found).T
        if table.keeps_deleted:
            return np.flatnonzero(~((same & states.any(2)).any(1) & (flags != DELETED))).tolist()
        as_flagged = states[np.arange(ITEMS), :, flags]
        return np.flatnonzero(~((same | (flags == DELETED)[:, None]) & as_flagged).any(1)).tolist()


def fitting(scores: np.ndarray, rows: list[int], ranking: Any) -> int:
    """Return the number of an answer's scores that a generation could have given."""
    given = (ranking.ids - np.uint64(FIRST_ID)).astype(np.int64)
    return int((np.abs(scores[rows][:, :, given] - ranking.scores) <= TOLERANCE).any((0, 1)).sum())
