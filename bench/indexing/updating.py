"""How soon an update is seen, how many a second there can be, and what readers notice of it."""

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.nearline import Archive, Delivery, Follower, ItemIndex, Upsert
from aif_jax.nearline.change_log import Position
from workload import Built

PAUSES_S = (0.0, 0.02, 0.1)


class Arrivals:
    """A source to which updates are given while it is read."""

    def __init__(self, limit: int = 256):
        self._queue: queue.Queue[Delivery | None] = queue.Queue()
        self._limit = limit
        self._given = 0

    def give(self, update: Upsert, time_s: float) -> None:
        """Have an update arrive."""
        self._given += 1
        self._queue.put(Delivery((self._given,), update, time_s))

    def end(self) -> None:
        """Say that no more will come."""
        self._queue.put(None)

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery] | None:
        """See `aif_jax.nearline.UpdateSource`."""
        try:
            first = self._queue.get(timeout=wait_s)
        except queue.Empty:
            return ()
        some = []
        while first is not None:
            some.append(first)
            if len(some) == self._limit or self._queue.empty():
                return some
            first = self._queue.get_nowait()
        if some:
            self._queue.put(None)
        return some or None

    def acknowledge(self, position: Position) -> None:
        """Nothing to let go of."""


def single(built: Built, row: int, price: float) -> Upsert:
    """Return an update of one item's price."""
    source = built.source
    columns = {name: column[row : row + 1] for name, column in source.columns.items()}
    return Upsert(source.ids[row : row + 1], {**columns, "price": [price]}, source.content[row : row + 1])


def follow(
    built: Built, folder: Path, rate: float, pause_s: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Give single updates at a rate, Poisson in time, with and without a reader beside; see `measure`."""
    rng = np.random.default_rng(seed)
    index = ItemIndex.open(built.bundle, folder / "items.aifrows", verify=False)
    reads: list[int] = []
    stop = threading.Event()

    def read() -> None:
        local = np.random.default_rng(1)
        keys = [local.choice(built.source.ids, len(built.candidates), replace=False) for _ in range(8)]
        out = {name: np.array(column) for name, column in index.gather(keys[0])[0].items()}
        while not stop.is_set():
            began_s = time.perf_counter()
            count = 0
            while time.perf_counter() - began_s < 0.25:
                index.gather(keys[count % 8], out)
                count += 1
            reads.append(count)

    with Archive(folder / f"archive-{rate:g}-{seed}") as archive:
        index.warm()
        archive.start(index)
        arrivals = Arrivals()
        follower = Follower(arrivals, [archive], pause_s=pause_s)
        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(seconds / 2)
        alone = reads[1:]
        n = int(rate * seconds)
        due_s = np.cumsum(rng.exponential(1 / rate, n)) if n else np.empty(0)
        updates = [
            single(built, int(rng.integers(len(built.source.ids))), float(rng.normal())) for _ in range(n)
        ]
        follower.start()
        began_s, before = time.perf_counter(), len(reads)
        for update, at_s in zip(updates, due_s.tolist(), strict=True):
            wait_s = began_s + at_s - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            arrivals.give(update, time.time() - max(-wait_s, 0.0))
        during = reads[before + 1 :]
        arrivals.end()
        assert follower._thread is not None
        follower._thread.join(120)
        took_s = time.perf_counter() - began_s
        stop.set()
        reader.join()
        stats = follower.stats()
        assert (stats["updates"], stats["failure"], stats["bad"]) == (n, None, {})
        last = {int(update.ids[0]): update for update in updates}
        keys = np.array(list(last)[:200], np.uint64)
        expected = ItemIndex(built.bundle)
        for key in keys.tolist():
            expected.apply(last[key])
        rows, wanted = index.gather(keys)[0], expected.gather(keys)[0]
        assert all(np.array_equal(rows[name], wanted[name]) for name in wanted)
    return {
        "offered_per_s": rate, "pause_ms": 1e3 * pause_s, "done_per_s": n / took_s,
        "delay_ms": stats["delay_ms"], "batch": n / max(stats["batches"], 1),
        "readers": float(np.median(during) / np.median(alone)),
    }  # fmt: skip


def measure(built: Built, folder: Path, rates: Sequence[float], seconds: float) -> list[dict[str, Any]]:
    """Follow at each rate: updates a second, delay from arrival until readers see it, and readers' speed
    beside."""
    plans = [(rate, pause_s) for rate in rates for pause_s in PAUSES_S]
    return [follow(built, folder, *plan, seconds, number) for number, plan in enumerate(plans)]
