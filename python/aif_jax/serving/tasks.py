"""What requests need done, in the threads of an engine's scheduler."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from aif_jax import _native
from aif_jax.errors import OverloadedError, SchedulerError
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Task
from aif_jax.serving.user_side import Lane


class Tasks:
    """Runs the tasks of requests and notes when. Safe to use from any thread.

    Args:
        scheduler: runs them.

    Attributes:
        closed: whether the scheduler was shut down by its engine, for the message of who comes later.
    """

    def __init__(self, scheduler: _native.Scheduler):
        self._scheduler = scheduler
        self._here = threading.local()
        self.closed = False

    def submit(
        self, lane: Lane, function: Callable[..., Any], *arguments: Any, name: str, pending: Pending
    ) -> "Future[Any]":
        """Run a function in one of the threads, unless the request's deadline passes first.

        A full queue refuses the first step of a request only: what was taken on goes on. A request that may
        be degraded is taken on nevertheless if its first step is retrieval, and goes without a user side.

        Raises:
            DeadlineExceededError: the deadline has passed.
            OverloadedError: too many tasks are waiting.
            SchedulerError: the engine is closed.
        """
        remaining = pending.remaining_ms()
        if remaining is not None and remaining <= 0:
            raise pending.too_late(name)
        submit = partial(
            self._scheduler.submit,
            lane, self._run_here, (pending, name, lane, time.perf_counter()), function, *arguments,
            deadline_ms=remaining, name=name,
        )  # fmt: skip
        try:
            task = submit(goes_on=pending.taken_on or pending.shed)
        except OverloadedError as error:
            if name != "retrieve" or pending.taken_on or not pending.rungs.ladder.degrades(remaining):
                raise
            task = submit(goes_on=True)
            pending.started = True
            pending.fail(error)
        except SchedulerError as error:
            if not self.closed:
                raise
            raise SchedulerError(
                "the engine was closed while a request was under way; make a new one."
            ) from error
        pending.taken_on = True
        return task

    def run(
        self, lane: Lane, function: Callable[..., Any], *arguments: Any, name: str, pending: Pending
    ) -> Any:
        """Run a function as a task, in this thread if the lane has room; see `submit`."""
        remaining = pending.remaining_ms()
        if remaining is not None and remaining <= 0:
            raise pending.too_late(name)
        return self._scheduler.run(
            lane, self._run_here, (pending, name, lane, time.perf_counter()), function, *arguments,
            deadline_ms=remaining, name=name, goes_on=True,
        )  # fmt: skip

    def has_idle(self, lane: Lane) -> bool:
        """Return whether a thread of the lane is idle now; none is reserved."""
        return self._scheduler.idle_threads(lane) > 0

    def runs_here(self) -> bool:
        """Return whether the calling thread is inside a task."""
        return getattr(self._here, "task", False)

    def _run_here(
        self, task: tuple[Pending, str, Lane, float], function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Run a task and note when, so that `Engine.close` knows when it is called inside one."""
        pending, name, lane, submitted_s = task
        outer = self.runs_here()
        self._here.task = True
        noted = Task(name, lane, submitted_s, time.perf_counter(), math.nan, threading.get_native_id())
        pending.tasks.append(noted)
        try:
            return function(*arguments)
        finally:
            noted.ended_s = time.perf_counter()
            self._here.task = outer
