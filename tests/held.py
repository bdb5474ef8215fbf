"""Engines whose compute threads are held, so that what is asked for meanwhile queues."""

import threading
import time

from aif_jax.serving import Engine


class Held:
    """Holds all compute threads of an engine, so that what is asked for meanwhile queues."""

    def __init__(self, engine: Engine):
        self._gate = threading.Event()
        self._engine = engine
        begun = threading.Semaphore(0)

        def hold() -> None:
            begun.release()
            assert self._gate.wait(30)

        for _ in range(engine.config.compute_threads):
            engine._scheduler.submit("compute", hold)
            assert begun.acquire(timeout=30)

    def until_queued(self, fetched: int, programs: int) -> None:
        """Wait until so many records have been fetched and so many programs are queued."""
        end = time.perf_counter() + 30
        while True:
            stats = self._engine._scheduler.stats()
            if (stats["blocking"]["completed"], stats["compute"]["queued"]) == (fetched, programs):
                return
            assert time.perf_counter() < end, (stats["blocking"], stats["compute"])
            time.sleep(0.002)

    def release(self) -> None:
        self._gate.set()
