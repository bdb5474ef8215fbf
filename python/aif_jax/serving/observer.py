"""What wants to know of every request of an engine: metrics, traces, captures."""

import dataclasses
from typing import TYPE_CHECKING, Any

from aif_jax.serving.report import Report, Task
from aif_jax.types import UserId

if TYPE_CHECKING:
    from aif_jax.serving.engine import Engine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that ended in an error.

    Attributes:
        version: version of the bundle that was to score it.
        user: whom it was for.
        error: name of the error's class.
        message: what it said.
        deadline_ms: the deadline, if there was one.
        began_s: when it came in, on the clock of ``time.perf_counter``.
        total_ms: milliseconds until the error.
        tasks: what had been run for it.
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


class Observer:
    """Is told of an engine's requests; override what is of interest.

    The methods are called in the thread, and the context, of whoever waits for the ranking, from many threads
    at a time: be quick and lock what is shared. What they raise hurts no request; it is logged once for
    each observer and counted in `Engine.stats`.
    """

    def opened(self, engine: "Engine") -> None:
        """Take note of an engine that was made with this observer; here, errors are passed on."""

    def ranked(self, report: Report) -> None:
        """Take note of a ranking that reached its caller."""

    def failed(self, failure: Failure) -> None:
        """Take note of a request that ended in an error."""

    def closed(self, engine: "Engine") -> None:
        """Take note that the engine was closed."""
