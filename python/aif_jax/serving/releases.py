"""The generation that serves, the one before it, and the way from one to the next."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aif_jax.bundle import compilations
from aif_jax.errors import PublishError, SchedulerError
from aif_jax.serving.coverage import Coverage
from aif_jax.serving.gates import Gates
from aif_jax.serving.memory import Needs
from aif_jax.serving.publishing import GoldenRequest, Publication, compare, warm_users
from aif_jax.serving.release import Release
from aif_jax.types import UserId

_CLOSED = "the engine is closed; make a new one."


class Releases:
    """Holds the release that requests begin with, and its predecessor. Safe to use from any thread.

    Args:
        first: serves from now on.
    """

    def __init__(self, first: Release):
        self._current = first
        self._previous: Release | None = None
        self._leaving: list[Release] = []
        """Retired, and perhaps still held open by requests."""
        self._counts = {"published": 0, "rolled_back": 0}
        self._compiled = compilations()
        self._closed = False
        self._changing = threading.Lock()
        """Held while a next one is made: they take turns."""
        self._lock = threading.Lock()

    @property
    def current(self) -> Release:
        """The release that serves."""
        return self._current

    @property
    def compilations(self) -> int:
        """Programs compiled since the first release was made, other than for the next ones."""
        return compilations() - self._compiled

    def enter(self) -> Release:
        """Return the release that serves, held open for a request."""
        with self._lock:
            self._current.enter()
            return self._current

    def publish(
        self,
        make: Callable[[], Release],
        gates: Gates,
        golden: Sequence[GoldenRequest],
        bounds: tuple[float, float],
        warm: tuple[int, float],
    ) -> Publication:
        """Make a release, try and warm it, and let requests begin with it; see `Engine.publish`.

        Args:
            make: makes it, compiled.
            gates: what it must meet before.
            golden: requests that both rank beforehand.
            bounds: the least overlap and the most drift.
            warm: users whose states are computed ahead, and seconds after which that is broken off.

        Raises:
            PublishError: a gate is not passed, or a golden request cannot be ranked or is out of bounds.
            SchedulerError: the engine is closed.
        """
        with self.prepared(gates):
            began_s, running = time.perf_counter(), self._current
            release = make()
            try:
                overlaps, drifts = compare(running, release, golden, *bounds)
                warmed, not_warmed = warm_users(running, release, *warm)
                coverage = gates.still(running.generation.tables)
                prepared_s = time.perf_counter() - began_s
                with self._lock:
                    if self._closed:
                        raise SchedulerError("the engine was closed meanwhile; nothing was published.")
                    before, self._previous, self._current = self._previous, running, release
                    self._leaving += [] if before is None else [before]
                    self._counts["published"] += 1
            except BaseException:
                release.retire()
                raise
            if before is not None:
                before.retire()
            return Publication(
                version=release.version, previous=running.version, overlaps=tuple(overlaps),
                drifts=tuple(drifts), warmed=warmed, not_warmed=not_warmed, prepared_s=prepared_s,
                coverage=coverage, waited_s=gates.waited_s,
            )  # fmt: skip

    @contextlib.contextmanager
    def prepared(self, gates: Gates) -> Iterator[Coverage]:
        """Have a turn at making a generation, once it has passed the gates; the coverage comes with it.

        Others have theirs during the wait for coverage, which may be long: a rollback among them.

        Raises:
            PublishError: a gate is not passed.
            SchedulerError: the engine is closed.
        """
        with contextlib.ExitStack() as turn:
            while True:
                gates.wait(lambda: self._current.generation.tables, lambda: self._closed)
                turn.enter_context(self._changing)
                if self._closed:
                    raise SchedulerError(_CLOSED)
                if (coverage := gates.passed(self._current.generation.tables)) is not None:
                    break
                turn.close()
            compiled = compilations()
            try:
                yield coverage
            finally:
                self._compiled += compilations() - compiled

    def rollback(self) -> str:
        """Let requests begin with the release before; return its version.

        Raises:
            PublishError: there is none.
            SchedulerError: the engine is closed.
        """
        with self._changing, self._lock:
            if self._closed:
                raise SchedulerError(_CLOSED)
            if self._previous is None:
                raise PublishError(
                    "rollback: nothing was published, so there is no generation to go back to."
                )
            self._current, self._previous = self._previous, self._current
            self._counts["rolled_back"] += 1
            return self._current.version

    def drop_previous(self) -> str | None:
        """Close the release before when its last request is over; return its version, if there is one."""
        with self._lock:
            before, self._previous = self._previous, None
            self._leaving += [] if before is None else [before]
        if before is None:
            return None
        before.retire()
        return before.version

    def held(self) -> dict[str, Needs]:
        """Return what the releases need that are not closed yet, by name."""
        with self._lock:
            named = {"running": self._current, "previous": self._previous}
            self._leaving = [release for release in self._leaving if release.open]
            named |= {f"retired_{number}": release for number, release in enumerate(self._leaving, 1)}
        return {name: release.generation.needs() for name, release in named.items() if release is not None}

    def invalidate(self, users: Sequence[UserId]) -> int:
        """Drop cached states of users; return how many."""
        with self._lock:
            releases = [self._current, self._previous]
        # Of the one before too: requests of it may be under way, and it may come back.
        return sum(release.states.invalidate(users) for release in releases if release is not None)

    def stats(self) -> dict[str, Any]:
        """Return how often generations changed, and what a rollback would go to."""
        with self._lock:
            previous = self._previous
            return {
                **self._counts,
                "previous": None if previous is None else previous.version,
                "previous_open": 0 if previous is None else previous.open,
            }

    def close(self) -> None:
        """Close both as soon as their last requests are over; nothing is published any more."""
        with self._lock:
            self._closed = True
            releases = [self._current, self._previous]
        for release in releases:
            if release is not None:
                release.retire()
