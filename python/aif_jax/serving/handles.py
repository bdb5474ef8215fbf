"""The handles that were begun and not yet ranked."""

import threading
import time
from typing import TYPE_CHECKING

from aif_jax.serving.counts import RequestCounts

if TYPE_CHECKING:
    from aif_jax.serving.pending import Pending


class Handles:
    """Holds on to open handles until they are ranked, given up or too old. Safe to use from any thread.

    Args:
        max_age_s: seconds after which one that nobody ranked expires.
        counts: where expired ones are counted.
    """

    def __init__(self, max_age_s: float, counts: RequestCounts):
        self._max_age_s = max_age_s
        self._counts = counts
        self._open: dict[int, Pending] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def add(self, pending: "Pending") -> None:
        """Hold on to a handle; end those that nobody finished in time."""
        with self._lock:
            old = next(iter(self._open.values()), None)  # the one that began first
            self._open[id(pending)] = pending
        if old is not None and old.began_s < pending.began_s - self._max_age_s:
            self.expire()

    def forget(self, pending: "Pending") -> None:
        """Let go of a handle."""
        with self._lock:
            self._open.pop(id(pending), None)

    def expire(self) -> None:
        """End the handles that nobody finished in time, and count them."""
        oldest = time.perf_counter() - self._max_age_s
        expired: list[Pending] = []
        with self._lock:
            for pending in self._open.values():  # in the order in which they began
                if pending.began_s > oldest:
                    break
                if pending.expires:
                    expired.append(pending)
            for pending in expired:
                del self._open[id(pending)]
        reason = f"it expired after {self._max_age_s:g} s without being ranked"
        if ended := sum(pending.end(reason) for pending in expired):
            self._counts.add("expired", ended)

    def end_all(self, reason: str) -> None:
        """End all of them."""
        with self._lock:
            pendings = list(self._open.values())
            self._open.clear()
        for pending in pendings:
            pending.end(reason)
