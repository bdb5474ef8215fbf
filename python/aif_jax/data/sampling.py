"""Sampled negatives of a log that holds only what people did, by one rule in every part.

A share of the items is drawn by popularity: the item of a random row of the same part, or of the same day.
So popularity alone does not tell a sampled item from a real one, and items that are new in a part are drawn
there as often as they occur. The rest is drawn uniformly from all items that occur in the part or before it.
An item that the user meets at the time of the row or later in the part is drawn again; after a few draws it
is left out. Where the log shows that people come back to items, an item that the user met before is a
negative like any other, because the user did not come back to it. If none were, all that training knows of
items in a history would be positives, and a model would put them first. Where people do not come back, items
met before are drawn again too: with them as negatives a model finds less of what is new.

What lies after the part excludes nothing. Otherwise the items that are never drawn for a user would be those
of the test part, and training would know its answers. So a pair can be a negative in training and a positive
in test: that is a label which was true at its time, and no leak.
"""

import dataclasses

import numpy as np

from aif_jax.checks import check, check_types, whole
from aif_jax.data.splits import TEST
from aif_jax.lookup import find

_TRIES = 6
_MOST = 1_000
_CHUNK = 1 << 20

COMING_BACK = 0.05
"""Share of rows of items met before from which people come back to items. Rarer, such rows are mostly events
that were logged twice, and retrieval mostly offers what is new."""


@dataclasses.dataclass(frozen=True)
class Negatives:
    """A rule by which items are sampled for each row that is real, in training, validation and test.

    Attributes:
        count: items for each row; their labels are all 0.
        popularity: share of them that is drawn by how often an item occurs in the rows of the part; the rest
            is uniform.
        same_day: draw that share from rows of the same day (UTC), for items that live for a short time.
        met: draw items that the user met before, too. Without them the model learns from new items alone, and
            puts those of a history first, which serving must leave out then. ``None``: as the log says, if at
            least `COMING_BACK` of the training rows are of items that their user met before.
        seed: of the draw.

    >>> print(Negatives(2))
    2 a row, 50% by popularity in the part, the rest uniform, met ones as the log says
    """

    count: int = 4
    popularity: float = 0.5
    same_day: bool = False
    met: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        whole("count", self.count, 1)
        check("count", self.count, self.count <= _MOST, f"at most {_MOST:,}")
        whole("seed", self.seed, 0)
        check("popularity", self.popularity, 0 <= self.popularity <= 1, "a share in [0, 1]")

    def __str__(self) -> str:
        where = "on the day" if self.same_day else "in the part"
        met = {None: "met ones as the log says", True: "none that the user meets then or later"}
        rest = met.get(self.met, "none that the user has met")
        return f"{self.count} a row, {self.popularity:.0%} by popularity {where}, the rest uniform, {rest}"


@dataclasses.dataclass(frozen=True)
class Met:
    """Pairs of a user and an item, and where each pair occurs last by the end of each part.

    Attributes:
        keys: int64 ``[P]`` ascending, ``user * n_items + item``.
        first: int ``[P]``, index of the first event of the pair.
        last: int ``[P, 3]``, index of the last event of the pair in each part or one before it; -1 without.
        n_items: number of items.
    """

    keys: np.ndarray
    first: np.ndarray
    last: np.ndarray
    n_items: int

    @classmethod
    def of(cls, user: np.ndarray, item: np.ndarray, part: np.ndarray, n_items: int) -> "Met":
        """Collect the pairs of events ``[E]``, in order of time for each user, with the part of each."""
        keys = user.astype(np.int64) * n_items + item
        order = np.argsort(keys, kind="stable")
        keys, part = keys[order], part[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.intp)
        size = np.int32 if len(keys) < 1 << 31 else np.int64
        last = np.full((len(starts), TEST + 1), -1, size)
        for end in range(TEST + 1 if len(starts) else 0):
            last[:, end] = np.maximum.reduceat(np.where(part <= end, order, -1), starts)
        return cls(keys[starts], order[starts].astype(size), last, n_items)

    def before(self, user: np.ndarray, item: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return whether a user meets an item before the event ``start``."""
        place, found = find(self.keys, user.astype(np.int64) * self.n_items + item)
        return found & (self.first[place] < start) if len(self.keys) else found

    def since(self, user: np.ndarray, item: np.ndarray, part: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return whether a user meets an item in the part or one before it, from the event ``start`` on."""
        place, found = find(self.keys, user.astype(np.int64) * self.n_items + item)
        return found & (self.last[place, part] >= start) if len(self.keys) else found


def draw(
    rule: Negatives,
    *,
    user: np.ndarray,
    item: np.ndarray,
    part: np.ndarray,
    start: np.ndarray,
    day: np.ndarray,
    met: Met,
    first_part: np.ndarray,
) -> np.ndarray:
    """Draw items for real rows.

    Args:
        rule: see `Negatives`.
        user: int32 ``[P]`` ascending, user of each real row.
        item: int32 ``[P]``.
        part: int8 ``[P]``.
        start: int64 ``[P]``, index of the first event at the time of the row, where its history ends.
        day: int64 ``[P]``, day of each row; only compared.
        met: pairs of all events.
        first_part: int8 ``[n_items]``, first part in which each item occurs; over 2 for never.

    Returns:
        int32 ``[P, count]``, -1 where no item was found.
    """
    random = np.random.default_rng(rule.seed)
    start = start if rule.met else np.zeros_like(start)
    group = part
    if rule.same_day:
        _, day = np.unique(day, return_inverse=True)
        group = part + 3 * day.astype(np.int64)
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    catalogue = np.argsort(first_part, kind="stable").astype(np.int32)
    known = np.searchsorted(first_part[catalogue], np.arange(3), side="right")
    source = np.concatenate([item[np.argsort(group, kind="stable")], catalogue])

    def some(rows: np.ndarray) -> np.ndarray:
        spread = random.random(len(rows))
        popular = starts[group[rows]] + (spread * sizes[group[rows]]).astype(np.int64)
        uniform = len(item) + (spread * known[part[rows]]).astype(np.int64)
        return source[np.where(random.random(len(rows)) < rule.popularity, popular, uniform)]

    drawn = np.empty((len(user), rule.count), np.int32)
    for first in range(0, len(user), _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, len(user)))
        block = drawn[rows[0] : rows[-1] + 1]
        for column in range(rule.count):
            wanted = rows
            for _ in range(_TRIES):
                items = some(wanted)
                block[wanted - first, column] = items
                bad = met.since(user[wanted], items, part[wanted], start[wanted])
                for other in range(column):
                    bad |= block[wanted - first, other] == items
                wanted = wanted[bad]
                if not len(wanted):
                    break
            block[wanted - first, column] = -1
    return drawn
