"""Engines and user sources that are held up, and waiting for what an engine does."""

import threading
from collections.abc import Callable
from typing import Any

from aif_jax.serving import Engine
from aif_jax.types import UserRecord
from support.waiting import eventually


class GatedUsers:
    """A user source that can be held up, and that may fail.

    Attributes:
        users: the source behind it.
        asked: set once it was asked.
        gate: while it is clear, whoever asks waits.
        error: raised in place of an answer, if there is one.
    """

    def __init__(self, users: Callable[[Any], UserRecord | None], *, closed: bool = False):
        self.users = users
        self.asked, self.gate = threading.Event(), threading.Event()
        self.error: Exception | None = None
        if not closed:
            self.gate.set()

    def __call__(self, user: Any) -> UserRecord | None:
        self.asked.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.users(user)


class Held:
    """All compute threads of an engine, held until `release`: what is asked for meanwhile queues."""

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


def until(engine: Engine, holds: Callable[[dict[str, Any]], Any]) -> bool:
    """Wait until something holds of an engine's statistics; return whether it did in time."""
    return eventually(lambda: holds(engine.stats()))


def computed(engine: Engine) -> bool:
    """Wait until a program has run: the user side of an engine's first request; return whether in time."""
    return until(engine, lambda stats: stats["scheduler"]["compute"]["completed"])


def settled(engine: Engine) -> bool:
    """Wait until no user side is being computed; return whether that came in time."""
    return until(engine, lambda stats: stats["user_sides"]["under_way"] == 0)
