"""Bars of the embedding cache: gathers beside NumPy, and beside a writer."""

import threading
import time
from collections.abc import Mapping

import numpy as np

from bars.lines import Measurement, Value
from bars.plan import Shared
from cache_rows import Rows
from results import quartiles, step

SETTLING, TIMED = 2, 6
"""Batches of a turn, before and while it is timed."""

WINDOW_S, BATCH = 0.5, 1024
WRITE_ROWS, SHARE_A_SECOND = 1000, 0.1
"""Rows that the writer replaces at a time, and the share of all that it replaces a second."""


def measurements(shared: Shared) -> list[Measurement]:
    """Return the measurements of the cache; they share one set of rows, which is gone after them."""

    def both() -> Mapping[str, Value]:
        plan = shared.plan
        step(f"{plan.rows.rows:,} rows of {plan.rows.row_bytes:,} bytes into the cache")
        rows = Rows(plan.rows)
        step("gathers of the cache and of NumPy in turns")
        gather = _gather(rows, plan.cache_rounds)
        step("gathers with and without a writer in turns")
        return {"cache_gather": gather, "cache_beside_writer": _beside_writer(rows, plan.writer_windows)}

    return [(("cache_gather", "cache_beside_writer"), both)]


def _gather(rows: Rows, rounds: int) -> Value:
    size = rows.size
    taken = np.empty((size.batch, size.row_bytes), np.uint8)
    out = rows.split(taken.copy())

    def ours(turn: int) -> None:
        rows.cache.gather(rows.asked[turn], out)

    def numpys(turn: int) -> None:
        np.take(rows.array, rows.batches[turn], axis=0, out=taken, mode="clip")

    for turn in range(len(rows.batches)):
        ours(turn)
        numpys(turn)
        for name, column in rows.split(taken).items():
            np.testing.assert_array_equal(out[name].view(np.uint8), column.view(np.uint8))
    times: dict[str, list[float]] = {"cache": [], "take": []}
    turn = 0
    for number in range(rounds):
        # Which of the two goes first changes. The first batches of each are not timed: what the other left
        # in the processor's caches is not what a service would find there.
        runs = [("cache", ours), ("take", numpys)]
        for name, run in runs if number % 2 else runs[::-1]:
            for batch in range(SETTLING + TIMED):
                if batch == SETTLING:
                    began = time.perf_counter()
                turn = (turn + 1) % len(rows.batches)
                run(turn)
            times[name].append((time.perf_counter() - began) / TIMED)
    how = (
        f"{size.batch:,} of {size.rows:,} rows of {size.row_bytes:,} bytes in {len(size.columns)} columns; "
        f"median of {rounds} rounds of {TIMED} batches each"
    )
    return Value(*quartiles(np.array(times["cache"]) / np.array(times["take"])), how)


class _Writer:
    """A thread that puts back the rows that are there already, while it is asked to."""

    def __init__(self, rows: Rows):
        self.rows, self.written = rows, 0
        self.writing, self._over = threading.Event(), threading.Event()
        # Split beforehand: the writer would hold Python's lock while it copies.
        self._columns = rows.split(rows.array)
        self._failed: list[Exception] = []
        self._thread = threading.Thread(target=self._write, name="writer")

    def __enter__(self) -> "_Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failed:
            raise self._failed[0]

    def _write(self) -> None:
        every_s = WRITE_ROWS / (SHARE_A_SECOND * self.rows.size.rows)
        due = time.perf_counter()
        while not self._over.is_set():
            if not self.writing.wait(0.01):
                due = time.perf_counter()
                continue
            first = self.written % self.rows.size.rows
            part = slice(first, first + WRITE_ROWS)
            columns = {name: column[part] for name, column in self._columns.items()}
            try:
                self.rows.cache.upsert(self.rows.keys[part], columns)
            except Exception as error:
                self._failed.append(error)
                return
            self.written += WRITE_ROWS
            due += every_s
            time.sleep(max(0.0, due - time.perf_counter()))


def _beside_writer(rows: Rows, windows: int) -> Value:
    """Measure windows without and with a writer in turns."""
    keys = [asked[:BATCH] for asked in rows.asked]
    size = len(keys[0])
    expected = [rows.split(rows.array[batch[:BATCH]]) for batch in rows.batches]
    out = rows.split(np.empty((size, rows.size.row_bytes), np.uint8))
    rates_of: dict[bool, list[float]] = {False: [], True: []}
    beside_s = 0.0
    with _Writer(rows) as writer:
        for window in range(2 * windows):
            beside = bool(window % 2)
            (writer.writing.set if beside else writer.writing.clear)()
            took, turn, began = [], 0, time.perf_counter()
            while time.perf_counter() - began < WINDOW_S:
                turn = (turn + 1) % len(keys)
                start = time.perf_counter()
                _, found = rows.cache.gather(keys[turn], out)
                took.append(time.perf_counter() - start)
                assert found.all(), "every key has a row throughout"
                place = len(took) % size
                for name, column in expected[turn].items():
                    assert (out[name][place].view(np.uint8) == column[place].view(np.uint8)).all(), name
            rates_of[beside].append(size * len(took) / sum(took))
            beside_s += (time.perf_counter() - began) if beside else 0.0
    rate = writer.written / beside_s / rows.size.rows
    how = (
        f"batches of {size:,} of {rows.size.rows:,} rows of {rows.size.row_bytes:,} bytes, two threads, one "
        f"replaced {rate:.1%} of the rows a second; median of {windows} pairs of windows of {WINDOW_S:g} s"
    )
    # A writer that could not keep up makes the bar easy.
    assert rate >= 0.8 * SHARE_A_SECOND, f"the writer replaced only {rate:.1%} of the rows a second"
    return Value(*quartiles(np.array(rates_of[True]) / np.array(rates_of[False])), how)
