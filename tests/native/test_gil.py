"""Native work without the GIL: other Python threads run meanwhile."""

import sys
import threading
import time

import numpy as np
import pytest

from aif_jax._native import EmbeddingCache, RowLayout, Scheduler, hash_strings, simtier, table_sum

ROWS = 400_000


WIDTH = 64


class Ticker(threading.Thread):
    """A thread of pure Python that notes the longest time for which it did not run."""

    def __init__(self):
        super().__init__(daemon=True)
        self._over = False
        self._going = threading.Event()
        self._longest_s = 0.0

    def run(self):
        self._going.set()
        last = time.perf_counter()
        while not self._over:
            now = time.perf_counter()
            self._longest_s = max(self._longest_s, now - last)
            last = now

    def during(self, work):
        """Return how long `work` took, and for how long the thread stood still meanwhile, in seconds."""
        self.start()
        self._going.wait()
        # What came before is not the work's.
        time.sleep(0.01)
        self._longest_s = 0.0
        start = time.perf_counter()
        work()
        took = time.perf_counter() - start
        stood = self._longest_s
        self._over = True
        self.join()
        return took, stood


@pytest.fixture(autouse=True)
def quick_switches():
    """Threads of pure Python hand the GIL on after 1 ms, so that longer pauses have another cause."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-3)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def filled():
    cache = EmbeddingCache(RowLayout([("x", "float32", (WIDTH,))]), initial_keys=ROWS)
    keys = np.random.default_rng(0).permutation(ROWS).astype(np.uint64)
    columns = {"x": np.ones((ROWS, WIDTH), np.float32)}
    cache.upsert(keys, columns)
    return cache, keys, columns


def goes_on_during(work):
    """Repeat `work` until it has taken long enough to tell; fail if it kept another thread from running.

    The machine itself may stop a thread now and then, work that keeps the GIL does so each time.
    """
    stood_still = []
    for _ in range(5):
        took, stood = Ticker().during(work)
        assert took > 0.02, "too short to tell"
        if stood < took / 2:
            return
        stood_still.append((took, stood))
    raise AssertionError(f"seconds it took, and for which another thread stood still: {stood_still}")


CACHE_WORK = {
    "gather": lambda cache, keys, _: [cache.gather(keys) for _ in range(5)],
    "upsert": lambda cache, keys, columns: [cache.upsert(keys, columns) for _ in range(5)],
    "snapshot": lambda cache, _keys, _: [cache.snapshot() for _ in range(2)],
    "contains": lambda cache, keys, _: [cache.contains(keys) for _ in range(10)],
    "ages_s": lambda cache, keys, _: [cache.ages_s(keys) for _ in range(10)],
    "keys": lambda cache, _keys, _: [cache.keys() for _ in range(10)],
}


@pytest.mark.parametrize("operation", CACHE_WORK)
def test_gil_large_cache_operation_lets_threads_run(filled, operation):
    goes_on_during(lambda: CACHE_WORK[operation](*filled))


def test_gil_kernels_on_arrays_let_threads_run():
    rng = np.random.default_rng(0)
    cand, seq = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in (8192, 1024))
    channel = np.zeros(1024, np.int32)
    edges = np.arange(10, 250, 16, dtype=np.int32)

    def tiers():
        simtier(cand, seq, channel, edges, channels=1, kind="simhash", implementation="scalar")

    goes_on_during(tiers)
    table = rng.standard_normal((32, 256, 128), dtype=np.float32)
    signatures = rng.integers(0, 256, (400_000, 32), dtype=np.uint8)
    goes_on_during(lambda: table_sum(table, signatures, bits=8, implementation="scalar"))


def test_gil_hashing_strings_lets_threads_run():
    strings = [f"item {n}" for n in range(3_000_000)]
    goes_on_during(lambda: hash_strings(strings))


def test_gil_taking_full_trace_lets_threads_run():
    with Scheduler(queue_bound=1 << 17) as scheduler:
        scheduler.trace(True)

        def fill():
            for _ in range(60_000):
                scheduler.run("compute", int)

        fill()
        goes_on_during(lambda: (scheduler.take_trace(), fill()))


def test_cache_dropped_gives_memory_back_in_background():
    took = list[float]()
    for _ in range(3):
        cache = EmbeddingCache(RowLayout([("x", "float32", (1024,))]), huge_pages=False)
        cache.upsert(np.arange(150_000, dtype=np.uint64), {"x": np.ones((150_000, 1024), np.float32)})
        start = time.perf_counter()
        del cache
        took.append(time.perf_counter() - start)
        # 614 MB: some 40 ms if the memory were given back here.
        if took[-1] < 0.02:
            return
    raise AssertionError(f"seconds that dropping it took: {took}")
