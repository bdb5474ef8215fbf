"""The life of an item index: saved, opened, built out of core, and followed by updates beside readers.

`python bench/item_index.py`: five minutes at 1,000,000 items; `--quick` is over sooner and only checks
answers. Writes `result.json` and a page into a folder of its own, and the page to `--record` too.
"""

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.nearline import Archive, Delivery, Follower, ItemIndex, Upsert, build_snapshot
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.row_program import BATCH, RowProgram
from results import Result, Row, Section, arguments, row_of, sizes, steps, workload, write
from workload import Built, build

RATES, PAUSES_S = (100.0, 1000.0, 10_000.0), (0.0, 0.02, 0.1)
"""Updates a second, and pauses between batches."""

BUILD_SHARE, READERS_SHARE = 0.8, 0.9
"""Of the item program's speed that a build should reach; of their speed that readers should keep."""


def main(given_arguments: list[str] | None = None) -> Path:
    """Measure; return the folder with the results."""
    given = arguments(__doc__, "item_index", items=1_000_000).parse_args(given_arguments)
    whole, rounds = workload(given), 1 if given.quick else 7
    rates, seconds = ((200.0,), 2.0) if given.quick else (RATES, 8.0)
    with steps(4) as step, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step("the catalogue")
        built = build(whole, folder)
        step("saving and opening")
        opened = opening(built, folder, rounds)
        step("building out of core")
        items = min(len(built.source.ids), 1000 if given.quick else 100_000)
        made = building(built, folder, items, 1 if given.quick else 3)
        step("updates beside readers")
        plans = [(rate, pause_s) for rate in rates for pause_s in PAUSES_S]
        followed = [follow(built, folder, *plan, seconds, seed) for seed, plan in enumerate(plans)]
    text = (
        "Updates of single items arrive at a rate (Poisson) and are followed into an archive; then comes a "
        "pause. The delay is from arrival until the update is visible and on disk. Beside them one thread "
        f"gathers {whole.candidates:,} rows after another; of its speed without updates it should keep "
        f"{READERS_SHARE:.0%}."
    )
    result = Result(
        program="item_index", title="The life of an item index",
        question="How long does an index take to save, open and build, and how soon is an update seen?",
        plan={**sizes(whole), "row_bytes": built.tables.items.store.cache.layout.row_bytes},
        answers="Every answer is checked first; ratios are medians of turns in one run.",
        sections=[opened, made, Section("Updates", text, followed, "delay, p50")], meaningful=not given.quick,
    )  # fmt: skip
    return write(result, given.out, given.record)


def opening(built: Built, folder: Path, rounds: int) -> Section:
    """Save the workload's index, and open it with every row checked or none read."""
    path = folder / "items.aifrows"
    saved = _timed(lambda: built.tables.items.save(path))
    expected = built.tables.items.gather(built.candidates)[0]
    rows = [Row("saved, confirmed by the disk", saved, "s", also={"GB": path.stat().st_size / 1e9})]
    for name, verify in {"opened, every row checked": True, "opened, rows not read": False}.items():
        found, there = ItemIndex.open(built.bundle, path, verify=verify).gather(built.candidates)
        assert there.all()
        assert all(np.array_equal(found[column], expected[column]) for column in expected), name
        times = [_timed(lambda v=verify: ItemIndex.open(built.bundle, path, verify=v)) for _ in range(rounds)]
        rows.append(row_of(name, times, "s"))
    return Section("Saving and opening", "The file is in the system's cache when it is opened.", rows)


def building(built: Built, folder: Path, items: int, rounds: int) -> Section:
    """Time, in turns, the program alone over ready inputs, and whole builds into a file."""
    program, source = RowProgram(built.bundle, "item"), built.source
    encoded = program.encode({name: column[:items] for name, column in source.columns.items()}, items)
    content = program.content(source.content[:items], items)
    alone, whole = [], []
    for number in range(rounds):
        began_s = time.perf_counter()
        rows = None
        for start in range(0, items, BATCH):
            part = slice(start, min(start + BATCH, items))
            ahead = program.start({name: array[part] for name, array in encoded.items()}, content[part])
            if rows is not None:
                rows()
            rows = ahead
        assert rows is not None
        rows()
        alone.append(items / (time.perf_counter() - began_s))
        path = folder / f"build-{number}"
        report = build_snapshot(ItemIndex, built.bundle, _catalogue(built, items), path)
        whole.append(items / report.seconds)
        expected = built.tables.items.gather(source.ids[:items:97])[0]
        found = ItemIndex.open(built.bundle, path).gather(source.ids[:items:97])[0]
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        path.unlink()
    share = np.array(whole) / np.array(alone)
    rows = [
        row_of("snapshot on disk", whole, "/s", better="higher", ratio=float(np.median(share))),
        row_of("the item program alone, over ready inputs", alone, "/s", better="higher", ratio=1.0),
    ]
    text = f"{items:,} items become rows; the build should reach {BUILD_SHARE:.0%} of the program's speed."
    return Section("Building out of core", text, rows, "items a second (quartiles)", "of the program")


def _catalogue(built: Built, n: int, at_once: int = 16_384) -> Iterator[Upsert]:
    for start in range(0, n, at_once):
        yield _update(built, slice(start, min(start + at_once, n)))


def _update(built: Built, rows: slice, **changed: Any) -> Upsert:
    source = built.source
    columns = {name: column[rows] for name, column in source.columns.items()}
    return Upsert(source.ids[rows], {**columns, **changed}, source.content[rows])


class Arrivals:
    """A source (`aif_jax.nearline.UpdateSource`) to which updates are given while it is read."""

    def __init__(self, limit: int = 256):
        self._queue: queue.Queue[Delivery | None] = queue.Queue()
        self._limit = limit
        self._given = 0

    def give(self, update: Upsert, time_s: float) -> None:
        """Have an update arrive."""
        self._given += 1
        self._queue.put(Delivery((self._given,), update, time_s))

    def end(self) -> None:
        """Promise that no more will come."""
        self._queue.put(None)

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery] | None:
        """Return a batch, none yet, or ``None`` at the end."""
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


def follow(built: Built, folder: Path, rate: float, pause_s: float, seconds: float, seed: int) -> Row:
    """Give single updates at a rate, Poisson in time, after as long without any; a reader runs beside."""
    rng, source = np.random.default_rng(seed), built.source
    index = ItemIndex.open(built.bundle, folder / "items.aifrows", verify=False)
    reads: list[int] = []
    stop = threading.Event()

    def read() -> None:
        local = np.random.default_rng(1)
        keys = [local.choice(source.ids, len(built.candidates), replace=False) for _ in range(8)]
        out = {name: np.array(column) for name, column in index.gather(keys[0])[0].items()}
        while not stop.is_set():
            began_s, count = time.perf_counter(), 0
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
        due_s = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
        rows = rng.integers(len(source.ids), size=len(due_s)).tolist()
        updates = [_update(built, slice(row, row + 1), price=[float(rng.normal())]) for row in rows]
        began_s, before = time.perf_counter(), len(reads)
        following = threading.Thread(target=follower.run)
        following.start()
        for update, at_s in zip(updates, due_s.tolist(), strict=True):
            wait_s = began_s + at_s - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            arrivals.give(update, time.time() - max(-wait_s, 0.0))
        during = reads[before + 1 :]
        arrivals.end()
        following.join(120)
        took_s = time.perf_counter() - began_s
        stop.set()
        reader.join()
        stats = follower.stats()
        assert (stats["updates"], stats["failure"], stats["bad"]) == (len(updates), None, {})
        last = {int(update.ids[0]): update for update in updates}
        keys = np.array(list(last)[:200], np.uint64)
        expected = ItemIndex(built.bundle)
        for key in keys.tolist():
            expected.apply(last[key])
        found, wanted = index.gather(keys)[0], expected.gather(keys)[0]
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    return Row(
        f"{rate:,.0f} a second, pauses of {1e3 * pause_s:.0f} ms", stats["delay_ms"]["p50"],
        also={
            "delay, p99": stats["delay_ms"]["p99"], "done a second": len(updates) / took_s,
            "updates a batch": len(updates) / max(stats["batches"], 1),
            "readers' speed": f"{np.median(during) / np.median(alone):.0%}",
        },
    )  # fmt: skip


def _timed(call: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
