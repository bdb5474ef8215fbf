"""Bridges between threads and event loops: waiting for futures in a loop, time limits, a loop of our own."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from aif_jax.errors import SchedulerError

T = TypeVar("T")

SHUT_DOWN = (
    "the engine's threads were shut down before all of this request could run, as happens when the "
    "interpreter exits; end the requests first."
)
_CLOSED = "the engine was closed while retrieve was under way; make a new one."


async def result_of(future: "concurrent.futures.Future[Any]", timeout_s: float | None = None) -> Any:
    """Return the result of a future that another thread resolves, or raise its exception.

    Args:
        future: cancelled if the caller is cancelled; left alone when the time is up.
        timeout_s: seconds to wait; ``None`` for as long as it takes.

    Raises:
        TimeoutError: the time is up.
        asyncio.CancelledError: the caller was cancelled.
        SchedulerError: the future was, by somebody else.
    """
    if not future.done():
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def resolved(_: object) -> None:
            # A closed loop: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(wake)

        future.add_done_callback(resolved)
        timer = None if timeout_s is None else loop.call_later(max(0.0, timeout_s), wake)
        try:
            await waiter
        except BaseException:
            future.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not future.done():
            raise TimeoutError
    if future.cancelled():
        # Not as a cancellation: the caller's coroutine would pass for one that was given up.
        raise SchedulerError(SHUT_DOWN)
    return future.result()


async def call_in_thread(
    submit: "Callable[[Callable[[], T]], concurrent.futures.Future[T]]", function: Callable[[], T]
) -> T:
    """Return the result of a function that another thread calls; give it up if the caller is cancelled.

    The thread wakes the coroutine as soon as the function has returned. `result_of` is woken later, when the
    thread has done the bookkeeping of the future too.

    Args:
        submit: runs a function in a thread.
        function: called once, or never if its task is cancelled.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    result: list[T] = []

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def call() -> T:
        result.append(function())
        with contextlib.suppress(RuntimeError):  # a closed loop
            loop.call_soon_threadsafe(wake)
        return result[0]

    def ended(_: object) -> None:
        if not result:  # it raised, or was never called
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(wake)

    future = submit(call)
    future.add_done_callback(ended)
    try:
        await waiter
    except BaseException:
        future.cancel()
        raise
    if result:
        return result[0]
    if future.cancelled():
        raise SchedulerError(SHUT_DOWN)
    return future.result()


class TimeLimit:
    """Context manager like ``asyncio.timeout`` whose coroutine holds no reference to its task.

    When a loop is closed under a coroutine that nothing but itself holds, the garbage collector ends it, and
    may begin at the inner end of the chain of awaits. If letting go of what that holds then frees the task,
    the chain is closed a second time, from its outer end, and CPython 3.11 crashes.

    Args:
        seconds: time for the body; ``None`` for no limit.
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


class EventLoop:
    """An event loop in a thread of its own, for coroutines of callers that have none; starts when needed.

    All of them run in the same loop, so that a client that belongs to a loop works from request to request.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def submit(
        self, call: Callable[[], Awaitable[Any]], timeout_s: float | None
    ) -> "concurrent.futures.Future[Any]":
        """Run the awaitable that a call returns; it is cancelled after a time, with `TimeoutError`.

        Raises:
            SchedulerError: the loop is closed.
        """

        async def bounded() -> Any:
            # Not wait_for, which makes a task of its own and takes a turn of the loop more.
            async with TimeLimit(timeout_s):
                return await call()

        with self._lock:
            if self._closed:
                raise SchedulerError(_CLOSED)
            return asyncio.run_coroutine_threadsafe(bounded(), self._started())

    def result(self, task: "concurrent.futures.Future[Any]") -> Any:
        """Wait for the result of `submit`.

        Raises:
            SchedulerError: the loop was closed meanwhile.
        """
        try:
            return task.result()
        except concurrent.futures.CancelledError as error:
            if self._closed:
                raise SchedulerError(_CLOSED) from error
            raise

    def run(self, awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
        """Run an awaitable and return its result; see `submit` and `result`."""
        try:
            task = self.submit(lambda: awaitable, timeout_s)
        except SchedulerError:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise
        return self.result(task)

    def runs_here(self) -> bool:
        """Return whether the calling code runs in this loop, as a coroutine that it was given."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel the coroutines in the loop, and stop it. Not to be called where `runs_here` is true."""

        async def cancel_all() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            # Whoever waits for a coroutine in a loop that stops would wait for ever.
            asyncio.run_coroutine_threadsafe(cancel_all(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="aif_jax retrieval loop", daemon=True
            )
            self._thread.start()
        return self._loop
