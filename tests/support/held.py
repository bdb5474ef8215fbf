"""Engines whose compute threads are held, and waiting for what they run."""

import threading
import time
from collections.abc import Callable
from typing import Any

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

        for _ in range(engine.config.threads.compute):
            engine.hooks.submit("compute", hold)
            assert begun.acquire(timeout=30)

    def until_queued(self, fetched: int, programs: int) -> None:
        """Wait until so many records have been fetched and so many programs are queued."""

        def queued(stats: dict[str, Any]) -> bool:
            lanes = stats["scheduler"]
            return (lanes["blocking"]["completed"], lanes["compute"]["queued"]) == (fetched, programs)

        assert until(self._engine, queued), self._engine.stats()["scheduler"]

    def release(self) -> None:
        self._gate.set()


def until(engine: Engine, holds: Callable[[dict[str, Any]], bool]) -> bool:
    """Wait until something holds of an engine's statistics; return whether it did in time."""
    end = time.perf_counter() + 30
    while not holds(engine.stats()):
        if time.perf_counter() > end:
            return False
        time.sleep(0.002)
    return True


def settled(engine: Engine) -> bool:
    """Wait until no user side is being computed; return whether that came in time."""
    return until(engine, lambda stats: stats["user_sides"]["under_way"] == 0)
