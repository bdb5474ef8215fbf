"""The slowest recent requests, and those that failed, with their timelines."""

import dataclasses
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aif_jax.checks import typed
from aif_jax.errors import ConfigError
from aif_jax.observe.perfetto import chrome_trace
from aif_jax.serving import Failure, Observer, Report
from aif_jax.strict_json import plain

_MAX_CHARS = 1000


class SlowRequests(Observer):
    """Keeps the slowest recent rankings, and the last failures. Safe to use from any thread.

    Time is cut into windows. The slowest rankings of the current window and of the one before are kept, so
    each is visible for at least the length of a window.

    Args:
        worst: rankings to keep of each window.
        failures: failures to keep.
        window_s: length of a window in seconds.
        clock: monotonic seconds.

    Raises:
        ConfigError: a size or the window is not positive.
    """

    @typed
    def __init__(
        self,
        worst: int = 16,
        failures: int = 16,
        window_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if worst < 1 or failures < 1 or not window_s > 0:
            raise ConfigError(
                f"worst, failures, window_s: got {worst}, {failures} and {window_s}, expected at least 1, at "
                "least 1 and more than 0 seconds."
            )
        self._worst = worst
        self._window_s = window_s
        self._clock = clock
        self._until = clock() + window_s
        self._number = itertools.count()
        self._now: list[tuple[float, int, Report]] = []
        self._before: list[tuple[float, int, Report]] = []
        self._failures: deque[Failure] = deque(maxlen=failures)
        self._lock = threading.Lock()

    def ranked(self, report: Report) -> None:
        """Keep the report if it is among the slowest."""
        with self._lock:
            self._turn()
            entry = (report.total_ms, next(self._number), report)
            if len(self._now) < self._worst:
                heapq.heappush(self._now, entry)
            elif report.total_ms > self._now[0][0]:
                heapq.heapreplace(self._now, entry)

    def failed(self, failure: Failure) -> None:
        """Keep the failure, with the first thousand characters of its message and its user's id."""
        message, user = (plain(text, max_chars=_MAX_CHARS) for text in (failure.message, failure.user))
        failure = dataclasses.replace(failure, message=message, user=user)
        with self._lock:
            self._failures.append(failure)

    def worst(self) -> list[Report]:
        """Return the slowest rankings of this window and the one before, the slowest first."""
        with self._lock:
            self._turn()
            entries = sorted(self._now + self._before, reverse=True)
        return [report for _, _, report in entries[: self._worst]]

    def failures(self) -> list[Failure]:
        """Return the last failures, the newest first."""
        with self._lock:
            return list(reversed(self._failures))

    def clear(self) -> None:
        """Remove all kept requests."""
        with self._lock:
            self._now, self._before = [], []
            self._failures.clear()

    def trace(self) -> str:
        """Return the kept requests as a trace file, see `aif_jax.observe.chrome_trace`."""
        return chrome_trace([*self.worst(), *self.failures()])

    def to_json(self) -> dict[str, Any]:
        """Return the kept requests as values that strict JSON can hold, long texts cut."""
        kept = {
            "worst": [report.to_json() for report in self.worst()],
            "failures": [failure.to_json() for failure in self.failures()],
        }
        return plain(kept, max_chars=_MAX_CHARS)

    def _turn(self) -> None:
        now = self._clock()
        if now < self._until:
            return
        # After a quiet time longer than a window, the current window is too old as well.
        self._before = self._now if now < self._until + self._window_s else []
        self._now = []
        self._until = now + self._window_s
