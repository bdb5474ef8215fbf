"""Deadlines, the engine's threads, and the tasks that one request runs in them."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

from aif_jax import _native
from aif_jax.aio import EventLoop
from aif_jax.errors import DeadlineExceededError, SchedulerError
from aif_jax.serving.config import Threads
from aif_jax.serving.report import Task

Lane = Literal["blocking", "compute"]

_IN_WORDS = {
    "user_fetch": "the user source", "user": "the user program", "users": "the user program",
    "retrieve": "retrieve", "stage": "the real-time stage", "items": "the item source",
    "candidates": "the check of candidates",
}  # fmt: skip
"""Tasks of a request in words, by the name that a trace shows."""

_CLOSED = "the engine was closed while a request was under way; make a new one."


class Deadline:
    """The time by which a request is wanted, or none. Immutable; it travels down to every part.

    Attributes:
        began_s: begin of the request, on the clock of ``time.perf_counter``.
        ms: milliseconds from then; ``None`` for no deadline.
        due_s: the time itself; infinite without a deadline.
    """

    __slots__ = ("began_s", "due_s", "ms")

    def __init__(self, ms: float | None, began_s: float):
        self.ms = ms
        self.began_s = began_s
        self.due_s = math.inf if ms is None else began_s + ms / 1e3

    def left_ms(self) -> float | None:
        """Return the milliseconds that are left, negative after it; ``None`` without a deadline."""
        return None if self.ms is None else (self.due_s - time.perf_counter()) * 1e3


class Workers:
    """The threads of an engine. Safe to use from any thread.

    Args:
        threads: their numbers.

    Attributes:
        loop: runs the coroutines that tasks wait for, as a part of these.
    """

    def __init__(self, threads: Threads):
        self.loop = EventLoop(begin=lambda: setattr(self.here, "task", True))
        # The engine has an admission of its own, which knows whole requests: `aif_jax.serving.admission`.
        self.scheduler = _native.Scheduler(
            blocking_threads=threads.blocking,
            compute_threads=threads.compute,
            queue_bound=threads.max_queued,
            admission=False,
        )
        self.closed = False
        self.here = threading.local()

    def has_idle(self, lane: Lane) -> bool:
        """Return whether a thread of the lane is idle now; none is reserved."""
        return self.scheduler.idle_threads(lane) > 0

    def runs_here(self) -> bool:
        """Return whether the calling thread is inside a task, or a coroutine that one waits for."""
        return getattr(self.here, "task", False)

    def check_outside(self) -> None:
        """Check that the caller is not a task, which would hold a thread and wait for another one.

        Raises:
            SchedulerError: it is.
        """
        if getattr(self.here, "task", False):
            raise SchedulerError(
                "a user source, an item source or retrieve asked the engine that called it to rank, while it "
                "holds one of the engine's threads: with all of them held so, each would wait for ever; rank "
                "with another engine there, or before the request."
            )

    def close(self) -> None:
        """Run the queued tasks whose deadline has not passed, and stop the threads."""
        self.closed = True
        self.scheduler.shutdown(wait=True)
        self.loop.close()


@dataclasses.dataclass(slots=True, eq=False)
class Tasks:
    """The tasks of one request: run under its deadline, and noted. Safe to use from any thread.

    Attributes:
        workers: run them.
        user, deadline: of the request.
        ran: the tasks that were begun, in order.
        accepted: whether a first task was queued: a full queue does not refuse the next ones.
    """

    workers: Workers
    user: Any
    deadline: Deadline
    accepted: bool = False
    ran: list[Task] = dataclasses.field(default_factory=list)

    def submit(
        self,
        lane: Lane,
        name: str,
        function: Callable[..., Any],
        *arguments: Any,
        always: bool = False,
    ) -> "Future[Any]":
        """Run a function in one of the threads, unless the deadline passes first.

        Args:
            lane: kind of thread.
            name: kind of task, see `Task`.
            function: called with the arguments.
            arguments: its own.
            always: whether to queue it even if the queue is full and nothing of the request was accepted.

        Raises:
            DeadlineExceededError: the deadline has passed.
            OverloadedError: too many tasks are queued.
            SchedulerError: the engine is closed.
        """
        scheduler = self.workers.scheduler
        task = self._hand(scheduler.submit, lane, name, function, arguments, self.accepted or always)
        self.accepted = True
        return task

    def run(self, lane: Lane, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function as a task, in this thread if the lane has an idle one; see `submit`."""
        return self._hand(self.workers.scheduler.run, lane, name, function, arguments, True)

    def _hand(
        self, to: Callable[..., Any], lane: Lane, name: str, function: Any, arguments: Any, goes_on: bool
    ) -> Any:
        left_ms = None if self.deadline.ms is None else self._left_ms(name)
        try:
            return to(
                lane, self._run, lane, name, time.perf_counter(), function, *arguments,
                deadline_ms=left_ms, name=name, goes_on=goes_on,
            )  # fmt: skip
        except SchedulerError as error:
            if not self.workers.closed:
                raise
            raise SchedulerError(_CLOSED) from error

    def note(self, task: Task) -> None:
        """Note a task that another request's submitted and that worked for this one too."""
        self.ran.append(task)

    def too_late(self, name: str) -> DeadlineExceededError:
        """Return the error of a request whose deadline passed before a task could start."""
        deadline = self.deadline
        spent_ms = (time.perf_counter() - deadline.began_s) * 1e3
        return DeadlineExceededError(
            f"user {self.user!r}: {spent_ms:.1f} ms had passed of the deadline of {deadline.ms:g} ms "
            f"before {_IN_WORDS[name]} could start; make retrieval or the user source faster, or give the "
            "request more time."
        )

    def predict_ms(self, lane: Lane, name: str) -> tuple[float, float]:
        """Return in how many milliseconds a task would begin, and end, by the run times so far."""
        predict, left_ms = self.workers.scheduler.predict_ms, self.deadline.left_ms()
        # Of a name that never ran: its own run time counts as nothing.
        return predict(lane, "(none)", left_ms), predict(lane, name, left_ms)

    def _left_ms(self, name: str) -> float:
        left_ms = self.deadline.left_ms()
        assert left_ms is not None, "there is a deadline"
        if left_ms <= 0:
            raise self.too_late(name)
        return left_ms

    def _run(
        self, lane: Lane, name: str, submitted_s: float, function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Run a task and note it, so that `Engine.close` knows when it is called inside one."""
        here = self.workers.here
        outer = getattr(here, "task", False)
        here.task = True
        task = Task(name, lane, submitted_s, time.perf_counter(), math.nan, threading.get_native_id())
        self.ran.append(task)
        try:
            return function(*arguments)
        finally:
            task.ended_s = time.perf_counter()
            here.task = outer
