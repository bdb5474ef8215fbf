"""Sampled negatives of a log that holds only what people did, by one rule in every part.

A share of the items is drawn by popularity: the item of a random row of the same part, or of the same day.
So popularity alone does not tell a sampled item from a real one, and items that are new in a part are drawn
there as often as they occur. The rest is drawn uniformly from all items that occur in the part or before it.
An item that the user met in the part or before it is drawn again; after a few draws it is left out.
"""

import dataclasses

import numpy as np

from aif_jax.checks import check, check_types, whole
from aif_jax.lookup import find

_TRIES = 6
_MOST = 1_000
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Negatives:
    """A rule by which items are sampled for each row that is real, in training, validation and test.

    Attributes:
        count: items for each row; their labels are all 0.
        popularity: share of them that is drawn by how often an item occurs in the rows of the part; the rest
            is uniform.
        same_day: draw that share from rows of the same day (UTC), for items that live for a short time.
        seed: of the draw.

    >>> print(Negatives(2))
    2 a row, 50% by popularity in the part, the rest uniform, none that the user has met
    """

    count: int = 4
    popularity: float = 0.5
    same_day: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        whole("count", self.count, 1)
        check("count", self.count, self.count <= _MOST, f"at most {_MOST:,}")
        whole("seed", self.seed, 0)
        check("popularity", self.popularity, 0 <= self.popularity <= 1, "a share in [0, 1]")

    def __str__(self) -> str:
        where = "on the day" if self.same_day else "in the part"
        return (
            f"{self.count} a row, {self.popularity:.0%} by popularity {where}, the rest uniform, none that "
            "the user has met"
        )


@dataclasses.dataclass(frozen=True)
class Met:
    """Pairs of a user and an item, and the first part in which each pair occurs.

    Attributes:
        keys: int64 ``[P]`` ascending, ``user * n_items + item``.
        part: int8 ``[P]``.
        n_items: number of items.
    """

    keys: np.ndarray
    part: np.ndarray
    n_items: int

    @classmethod
    def of(cls, user: np.ndarray, item: np.ndarray, part: np.ndarray, n_items: int) -> "Met":
        """Collect the pairs of events ``[E]`` with the part of each."""
        keys = user.astype(np.int64) * n_items + item
        order = np.argsort(keys, kind="stable")
        keys, part = keys[order], part[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.intp)
        return cls(keys[starts], np.minimum.reduceat(part, starts) if len(starts) else part, n_items)

    def by(self, user: np.ndarray, item: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Return whether the user met the item in the part or before it, of the broadcast shape."""
        place, found = find(self.keys, user.astype(np.int64) * self.n_items + item)
        return found & (self.part[place] <= part) if len(self.keys) else found


def draw(
    rule: Negatives,
    *,
    user: np.ndarray,
    item: np.ndarray,
    part: np.ndarray,
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
        day: int64 ``[P]``, day of each row; only compared.
        met: pairs of all events.
        first_part: int8 ``[n_items]``, first part in which each item occurs; over 2 for never.

    Returns:
        int32 ``[P, count]``, -1 where no item was found.
    """
    random = np.random.default_rng(rule.seed)
    group = part.astype(np.int64)
    if rule.same_day:
        _, day = np.unique(day, return_inverse=True)
        group = group + 3 * day.astype(np.int64)
    _, group = np.unique(group, return_inverse=True)
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    pool = item[np.argsort(group, kind="stable")]
    catalogue = np.argsort(first_part, kind="stable").astype(np.int32)
    known = np.searchsorted(first_part[catalogue], np.arange(3), side="right")

    def some(rows: np.ndarray) -> np.ndarray:
        spread = random.random(len(rows))
        popular = pool[starts[group[rows]] + (spread * sizes[group[rows]]).astype(np.int64)]
        uniform = catalogue[(spread * known[part[rows]]).astype(np.int64)]
        return np.where(random.random(len(rows)) < rule.popularity, popular, uniform)

    drawn = np.empty((len(user), rule.count), np.int32)
    for start in range(0, len(user), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(user)))
        block = drawn[rows[0] : rows[-1] + 1]
        for column in range(rule.count):
            wanted = rows
            for _ in range(_TRIES):
                items = some(wanted)
                block[wanted - start, column] = items
                bad = met.by(user[wanted], items, part[wanted])
                for other in range(column):
                    bad |= block[wanted - start, other] == items
                wanted = wanted[bad]
                if not len(wanted):
                    break
            block[wanted - start, column] = -1
    return drawn
