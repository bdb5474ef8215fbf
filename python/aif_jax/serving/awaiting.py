"""Waiting in an event loop: for a future that another thread resolves, and no longer than a given time."""

import asyncio
import concurrent.futures
import contextlib
import weakref
from types import TracebackType
from typing import Any, Self

from aif_jax.errors import SchedulerError

SHUT_DOWN = (
    "the engine's threads were shut down before all of this request could run, as happens when the "
    "interpreter exits; end the requests first."
)


async def result_of(future: "concurrent.futures.Future[Any]") -> Any:
    """Return the result of a future, or raise its exception; give it up when the caller is given up.

    Like ``asyncio.wrap_future``, but for one that is done it takes no turn of the loop, and where the loop
    was closed meanwhile the thread that resolves the future is not troubled with that.

    Raises:
        asyncio.CancelledError: the caller was cancelled.
        SchedulerError: the future was, by somebody else.
    """
    if not future.done():
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_: object) -> None:
            # A closed loop: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, waiter)

        future.add_done_callback(wake)
        try:
            await waiter
        except BaseException:
            future.cancel()
            raise
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        # Not as a cancellation: the caller's coroutine would pass for one that was given up.
        raise SchedulerError(SHUT_DOWN) from None


class TimeLimit:
    """Like ``asyncio.timeout``, but nothing that the coroutine holds leads back to its task.

    When a loop is closed under a coroutine that nothing but itself holds, the garbage collector ends it, and
    may begin at the inner end of the chain of awaits. If letting go of what that holds then frees the task,
    the chain is closed a second time, from its outer end, and CPython 3.11 crashes.

    Args:
        seconds: how long the body may take; ``None`` for as long as it likes.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False
        self._cancelling = 0

    async def __aenter__(self) -> Self:
        if self._seconds is not None:
            task = _current_task()
            self._cancelling = task.cancelling()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._expire, weakref.ref(task))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Someone else may have cancelled the task too, and then it is cancelled.
        if not self._expired or _current_task().uncancel() > self._cancelling:
            return
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def _expire(self, task: "weakref.ref[asyncio.Task[Any]]") -> None:
        if (there := task()) is not None:
            self._expired = True
            there.cancel()


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    return task


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
