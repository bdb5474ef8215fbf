"""Bridges between threads and event loops: waiting for futures in a loop, time limits, a loop of our own."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator
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


class Waiter:
    """Wakes one coroutine with the result of a function in another thread, as soon as it has returned.

    It is a future of asyncio's kind (`asyncio.isfuture` looks for ``_asyncio_future_blocking``). A future of
    the loop is resolved in one turn of the loop and wakes its coroutine in the next. This one wakes it in the
    first, and before the thread has done the bookkeeping of its own future: 0.1 to 0.15 ms earlier where
    caches are cold (bench/records/2026-11-30-serving.md).

    To be made and awaited in the loop, once. Give `run` to a thread, and then `of` its future.
    """

    _asyncio_future_blocking = False

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._wakeup: tuple[Callable[[Any], object], contextvars.Context | None] | None = None

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function and wake the coroutine; return what it returned, or raise what it raised."""
        try:
            result = function(*arguments)
        except BaseException as error:
            self._settle(None, error)
            raise
        self._settle(result, None)
        return result

    async def of(self, future: "concurrent.futures.Future[T]") -> T:
        """Return the result of the future of `run`; give it up when the caller is given up.

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
        """Have the loop call a function when it is done."""
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


def is_coroutine_function(function: object) -> bool:
    """Return whether a call gives a coroutine; so it does for an object whose ``__call__`` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004
    )


class EventLoop:
    """An event loop in a thread of its own, for coroutines of callers that have none; starts when needed.

    All of them run in the same loop, so that a client that belongs to a loop works from request to request.

    Args:
        begin: called in its thread before the first of them.
    """

    def __init__(self, begin: Callable[[], object] = lambda: None) -> None:
        self._begin = begin
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
            SchedulerError: the loop was closed meanwhile; or the caller runs in it and waits for itself.
        """
        if self.runs_here():
            task.cancel()
            raise SchedulerError(
                "a coroutine that the engine runs, such as its retrieve, called a method that waits for "
                "another coroutine of the engine, so it would wait for itself; await rank_async instead."
            )
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

    def plainly(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a plain function that waits for a coroutine function; a plain one as it is."""
        if not is_coroutine_function(function):
            return function
        return lambda argument: self.result(self.submit(lambda: function(argument), None))

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
            self._loop.call_soon(self._begin)
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="aif_jax event loop", daemon=True
            )
            self._thread.start()
        return self._loop
