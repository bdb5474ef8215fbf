"""A process that follows a stream into an archive until it is killed; see test_killed.py.

Called with the bundle, the archive's directory, and a seed for how many updates it takes at a time. Prints
each position once it is acknowledged.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.nearline import Archive, Delete, Delivery, Follower, ItemIndex, IterableUpdates, Update, Upsert
from aif_jax.nearline.change_log import Position
from support.served import make_items

ITEMS, PRICES = 40, 5
CATALOGUE = make_items()
UPDATES = int(os.environ.get("AIF_UPDATES", "400"))


def upsert(row: int, price: int) -> Upsert:
    """Return what gives an item one of a few prices."""
    ids, columns, content = CATALOGUE
    own = {name: column[row : row + 1] for name, column in columns.items()}
    return Upsert(ids[row : row + 1], {**own, "price": [float(price)]}, content[row : row + 1])


def changes() -> list[tuple[int, int | None]]:
    """Return what the stream says: an item, and its new price or that it is gone."""
    rng = np.random.default_rng(0)
    return [
        (int(rng.integers(ITEMS)), None if rng.random() < 0.2 else int(rng.integers(PRICES)))
        for _ in range(UPDATES)
    ]


def updates() -> list[Update]:
    """Return the stream."""
    ids, _, _ = CATALOGUE
    every = {(row, price): upsert(row, price) for row in range(ITEMS) for price in range(PRICES)}
    return [Delete(ids[row : row + 1]) if price is None else every[row, price] for row, price in changes()]


def rows_by_price(bundle: Bundle) -> dict[tuple[int, int], bytes]:
    """Return the rows of all items by item and price."""
    ids, columns, content = CATALOGUE[0][:ITEMS], CATALOGUE[1], CATALOGUE[2][:ITEMS]
    own = {name: column[:ITEMS] for name, column in columns.items()}
    found: dict[tuple[int, int], bytes] = {}
    for price in range(PRICES):
        index = ItemIndex.build(bundle, ids, {**own, "price": [float(price)] * ITEMS}, content)
        rows = index.gather(ids)[0]["h"]
        found |= {(row, price): rows[row].tobytes() for row in range(ITEMS)}
    return found


class Told(IterableUpdates):
    """Delivers different numbers of updates at a time, and says what is acknowledged."""

    def __init__(self, seed: int):
        super().__init__(updates())
        self._rng = np.random.default_rng(seed)

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery] | None:
        self._limit = int(self._rng.integers(1, 30))
        return super().read(after, wait_s)

    def acknowledge(self, position: Position) -> None:
        print(position[0], flush=True)


if __name__ == "__main__":
    bundle = Bundle.load(sys.argv[1])
    with Archive(sys.argv[2]) as archive:
        if any(Path(sys.argv[2]).glob("*.rows")):
            archive.open(ItemIndex, bundle)
        else:
            archive.start(ItemIndex(bundle))
        print("ready", flush=True)
        Follower(Told(int(sys.argv[3])), [archive], checkpoint_bytes=30_000).run()
