"""Observers of an engine, and the counters of how its requests ended."""

import dataclasses
import itertools
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from aif_jax.checks import check
from aif_jax.serving.report import Ranking, Report, Served, Task, shown_user
from aif_jax.strict_json import text_of
from aif_jax.types import UserId

_log = logging.getLogger(__name__)

_LEFT_OUT = (
    "candidates", "padded", "duplicates", "missing_items", "not_rankable", "unscored", "unknown_behaviours",
    "truncated_behaviours", "category_overflow", "computed_items",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that ended in an error.

    Attributes:
        version: version of the bundle that was to score it.
        user: user whom it was for.
        error: name of the error's class.
        message: text of the error.
        deadline_ms: the deadline, if there was one.
        began_s: begin of the request, on the clock of ``time.perf_counter``.
        total_ms: milliseconds until the error.
        tasks: work that had been run for it.
    """

    version: str
    user: UserId
    error: str
    message: str
    deadline_ms: float | None
    began_s: float
    total_ms: float
    tasks: tuple[Task, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything but times on the clock as JSON-serialisable values."""
        return {
            "version": self.version, "user": self.user, "error": self.error, "message": self.message,
            "deadline_ms": self.deadline_ms, "total_ms": self.total_ms,
        }  # fmt: skip


class ObservedEngine(Protocol):
    """Part of `Engine` that observers may read."""

    @property
    def version(self) -> str:
        """Version of the bundle that serves."""
        ...

    @property
    def closed(self) -> bool:
        """True if the engine was closed."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return counters and sizes."""
        ...


class Observer:
    """Base class of those that are notified of an engine's requests; override what is of interest.

    The methods are called in the thread, and the context, of the caller that waits for the ranking, from many
    threads at a time: be quick and lock shared state. Their errors hurt no request; they are logged once for
    each observer and counted in `Engine.stats`.

    >>> class Slowest(Observer):
    ...     total_ms = 0.0
    ...
    ...     def ranked(self, report):
    ...         self.total_ms = max(self.total_ms, report.total_ms)
    """

    def opened(self, engine: ObservedEngine) -> None:
        """Handle an `Engine` that was made with this observer; here, errors are passed on."""

    def ranked(self, report: Report) -> None:
        """Handle a ranking that reached its caller."""

    def answered(self, ranking: Ranking) -> None:
        """Handle the same with its ids and scores, which are the caller's: read, keep, do not change."""

    def served(self, ranking: Ranking, served: Served) -> None:
        """Handle the same with its inputs."""

    def failed(self, failure: Failure) -> None:
        """Handle a request that ended in an error."""

    def closed(self, engine: ObservedEngine) -> None:
        """Handle the closing of the engine."""


class Observers:
    """The observers of an engine, and counters of its requests. Safe to use from any thread.

    Args:
        observers: notified of every end of a request.
    """

    def __init__(self, observers: Sequence[Observer]):
        self._observers = tuple(observers) if isinstance(observers, Iterable) else (observers,)
        for one in self._observers:
            check("observers", one, isinstance(one, Observer), "a list of Observer objects")
        # Whether one of them reads the inputs of rankings.
        self.want_served = any(type(one).served is not Observer.served for one in self._observers)
        # Names of requests, which no other engine gives.
        self.names = map(f"{secrets.token_hex(8)}-{{:x}}".format, itertools.count())
        self._counts, self._errors = Counter[str](), Counter[str]()
        self._lock = threading.Lock()

    def opened(self, engine: ObservedEngine) -> None:
        """Notify that the engine takes requests."""
        for observer in self._observers:
            observer.opened(engine)

    def closed(self, engine: ObservedEngine) -> None:
        """Notify that it takes no more."""
        for observer in self._observers:
            self._notify(observer, observer.closed, engine)

    def count(self, name: str, number: int = 1) -> None:
        """Add to one counter."""
        with self._lock:
            self._counts[name] += number

    def ranked(self, ranking: Ranking, served: Served | None) -> None:
        """Count a ranking that reached its caller, and notify."""
        counts, values = self._counts, ranking.facts.values
        with self._lock:
            counts["ranked"] += 1
            counts[f"user_state:{values['user_state']}"] += 1
            counts["unknown_users"] += values["unknown_user"]
            counts["user_batched"] += values["user_batch"] > 1
            for name in _LEFT_OUT:
                counts[name] += values[name]
            counts[f"rung:{values['rung']}"] += 1
            if values["rung"]:
                counts[f"degraded:{values['rung_reason']}"] += 1
            if values["retrieval"] == "fallback":
                counts[f"fallback:{values['retrieval_reason']}"] += 1
            for name, number in values["filtered"].items():
                counts[f"filtered:{name}"] += number
            for reason, number in values["uncomputed_items"].items():
                counts[f"uncomputed:{reason}"] += number
            counts["overrun"] += values["overrun_ms"] > 0
        for observer in self._observers:
            self._notify(observer, observer.ranked, ranking.facts.report())
            self._notify(observer, observer.answered, ranking)
            if served is not None:
                self._notify(observer, observer.served, ranking, served)

    def failed(
        self,
        error: BaseException,
        user: Any,
        version: str,
        deadline_ms: float | None,
        began_s: float,
        tasks: Sequence[Task] = (),
    ) -> None:
        """Count an error that a request ended in, and notify; each error passes here once."""
        if not isinstance(error, Exception):
            # A cancelled coroutine or an interrupt: nothing failed, but nobody waits for the answer.
            self.count("abandoned")
            return
        self.count(f"error:{type(error).__name__}")
        if self._observers:
            failure = Failure(
                version=version, user=shown_user(user), error=type(error).__name__, message=text_of(error),
                deadline_ms=deadline_ms, began_s=began_s, total_ms=(time.perf_counter() - began_s) * 1e3,
                tasks=tuple(tasks),
            )  # fmt: skip
            for observer in self._observers:
                self._notify(observer, observer.failed, failure)

    def counts(self) -> dict[str, int]:
        """Return a copy of the counters."""
        with self._lock:
            return dict(self._counts)

    def errors(self) -> dict[str, int]:
        """Return how many errors observers raised, by their class."""
        with self._lock:
            return {name: self._errors[name] for name in sorted(self._errors)}

    def _notify(self, observer: Observer, method: Callable[..., None], *what: Any) -> None:
        try:
            method(*what)
        except Exception:
            with self._lock:
                self._errors[name := type(observer).__name__] += 1
                first = self._errors[name] == 1
            if first:
                _log.exception("observer %s raised; requests continue, further errors are only counted", name)
