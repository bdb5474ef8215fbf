"""Waiting in an event loop: for a future that another thread resolves, and no longer than a given time."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
import weakref
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self

from aif_jax.errors import SchedulerError

SHUT_DOWN = (
    "the engine's threads were shut down before all of this request could run, as happens when the "
    "interpreter exits; end the requests first."
)


class Waiter:
    """Wakes one coroutine with what a function did in another thread, as soon as it has done it.

    ``asyncio.wrap_future`` wakes it later: after the bookkeeping of whoever ran the function, and then in the
    second turn of the loop instead of the first.

    To be made and awaited in the loop, once. Give `run` to a thread, and then `of` its future.
    """

    # What asyncio asks of an object that is like a future.
    _asyncio_future_blocking = False

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._wakeup: tuple[Callable[[Any], object], contextvars.Context | None] | None = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function and wake the coroutine; return what it returned, or raise what it raised."""
        try:
            result = function(*arguments)
        except BaseException as error:
            self._settle(None, error)
            raise
        self._settle(result, None)
        return result

    async def of(self, future: "concurrent.futures.Future[Any]") -> Any:
        """Return the result of the future of `run`; give it up when the caller is given up.

        Where the loop was closed meanwhile, the thread that runs it is not troubled with that.

        Raises:
            asyncio.CancelledError: the caller was cancelled.
            SchedulerError: the future was, by somebody else.
        """
        future.add_done_callback(self._ended)  # it may never have been run
        try:
            return await self
        except BaseException:
            future.cancel()
            raise

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that the coroutine runs in."""
        return self._loop

    def add_done_callback(
        self, wakeup: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        """Have the loop call this when it is done."""
        with self._lock:
            self._wakeup = wakeup, context
            done = self._done
        if done:
            self._wake()

    def cancel(self, msg: Any = None) -> bool:
        """Wake the coroutine with its cancellation; return whether it was not woken yet."""
        return self._settle(None, asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        error = self._error
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error, self  # or the traceback would hold what holds it

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def _settle(self, result: Any, error: BaseException | None) -> bool:
        with self._lock:
            if self._done:
                return False
            self._result, self._error, self._done = result, error, True
        self._wake()
        return True

    def _wake(self) -> None:
        with self._lock:
            wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            # A closed loop: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(wakeup[0], self, context=wakeup[1])

    def _ended(self, future: "concurrent.futures.Future[Any]") -> None:
        if self._done:
            return
        if future.cancelled():
            # Not as a cancellation: the caller's coroutine would pass for one that was given up.
            self._settle(None, SchedulerError(SHUT_DOWN))
        elif (error := future.exception()) is not None:
            self._settle(None, error)
        else:
            self._settle(future.result(), None)


async def result_of(future: "concurrent.futures.Future[Any]") -> Any:
    """Return the result of a future, or raise its exception; see `Waiter.of`."""
    return await Waiter().of(future)


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
