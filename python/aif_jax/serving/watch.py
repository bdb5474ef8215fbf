"""Counts how requests end, and tells the observers."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aif_jax.serving.counts import RequestCounts
from aif_jax.serving.observer import Failure, Observer
from aif_jax.serving.report import Report, Task, shown_user
from aif_jax.types import UserId

if TYPE_CHECKING:
    from aif_jax.serving.engine import Engine

_log = logging.getLogger(__name__)


class Watch:
    """Sees every request of an engine end. Safe to use from any thread.

    Args:
        counts: where the ends are counted.
        observers: who else is told.
        version: returns that of the bundle that serves.
    """

    def __init__(self, counts: RequestCounts, observers: Sequence[Observer], version: Callable[[], str]):
        self._counts = counts
        self._observers = tuple(observers)
        self._version = version
        self._errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    def opened(self, engine: "Engine") -> None:
        """Tell that the engine takes requests."""
        for observer in self._observers:
            observer.opened(engine)

    def closed(self, engine: "Engine") -> None:
        """Tell that it takes no more."""
        for observer in self._observers:
            self._tell(observer, observer.closed, engine)

    def ranked(self, report: Report) -> None:
        """Count a ranking that reached its caller, and tell of it."""
        self._counts.ranking(report)
        for observer in self._observers:
            self._tell(observer, observer.ranked, report)

    def errors(
        self,
        user: UserId,
        deadline_ms: float | None,
        began_s: float | None = None,
        tasks: Sequence[Task] = (),
        version: str | None = None,
    ) -> "Errors":
        """Return a context that counts the errors that pass, and tells of them.

        Not to be nested: each layer would tell the same.

        Args:
            user: whose request it is.
            deadline_ms: its deadline, if it has one.
            began_s: when it came in; ``None`` for now.
            tasks: what is run for it, also what will be added meanwhile.
            version: of the bundle that it was begun with; ``None`` for the one that serves.
        """
        began_s = time.perf_counter() if began_s is None else began_s
        return Errors(self, user, deadline_ms, began_s, tasks, version)

    def failed(self, error: BaseException, asked: "Errors") -> None:
        """Count an error, and tell of it."""
        if not isinstance(error, Exception):
            # A cancelled coroutine or an interrupt: nothing failed, but nobody waits for the answer.
            self._counts.add("abandoned")
            return
        self._counts.add(f"error:{type(error).__name__}")
        if self._observers:
            failure = Failure(
                version=asked.version or self._version(), user=shown_user(asked.user),
                error=type(error).__name__, message=str(error), deadline_ms=asked.deadline_ms,
                began_s=asked.began_s, total_ms=(time.perf_counter() - asked.began_s) * 1e3,
                tasks=tuple(asked.tasks),
            )  # fmt: skip
            for observer in self._observers:
                self._tell(observer, observer.failed, failure)

    def stats(self) -> dict[str, int]:
        """Return how many errors observers raised, by their class."""
        with self._lock:
            return {name: self._errors[name] for name in sorted(self._errors)}

    def _tell(self, observer: Observer, method: Callable[[Any], None], what: Any) -> None:
        try:
            method(what)
        except Exception:
            name = type(observer).__name__
            with self._lock:
                self._errors[name] += 1
                first = self._errors[name] == 1
            if first:
                _log.exception("observer %s raised; requests go on, further errors are only counted", name)


class Errors:
    """What `Watch.errors` returns. (A generator would do, in four times the time, twice for each request.)"""

    __slots__ = ("_watch", "began_s", "deadline_ms", "tasks", "user", "version")

    def __init__(
        self,
        watch: Watch,
        user: UserId,
        deadline_ms: float | None,
        began_s: float,
        tasks: Sequence[Task],
        version: str | None,
    ):
        self._watch = watch
        self.user = user
        self.deadline_ms = deadline_ms
        self.began_s = began_s
        self.tasks = tasks
        self.version = version

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self._watch.failed(error, self)
