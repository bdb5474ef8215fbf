"""Calling the engine's own ``retrieve``, plain or coroutine, from plain code or from a coroutine."""

import asyncio
import concurrent.futures
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from aif_jax.errors import DeadlineExceededError, RetrievalError, SchedulerError
from aif_jax.serving.awaiting import TimeLimit, result_of
from aif_jax.types import Candidates, Request, Retrieve

Start: TypeAlias = Callable[[], None]
Task: TypeAlias = concurrent.futures.Future[Any]

_CLOSED = "the engine was closed while retrieve was under way; make a new one."


class NotStartedError(Exception):
    """The user side could not be started; never seen by users.

    Args:
        reason: what starting it raised.
    """

    def __init__(self, reason: BaseException):
        super().__init__(str(reason))
        self.reason = reason


class EventLoop:
    """One event loop in a thread of its own, for coroutines of callers that have none; starts when needed.

    All of them run in the same loop, so that a client that belongs to a loop works from request to request.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, call: Callable[[], Awaitable[Any]], timeout_s: float | None) -> Task:
        """Run what a call returns; it is cancelled after a time, with `TimeoutError`. See `result`.

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

    def result(self, task: Task) -> Any:
        """Wait for what was submitted.

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
        """Whether the calling code runs in this loop, as a coroutine that it was given."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what runs in the loop, and stop it. Not to be called where `runs_here` is true."""

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


def retrieve_now(
    retrieve: Retrieve, request: Request, loop: EventLoop, remaining_ms: float | None, start: Start
) -> tuple[Any, Mapping[str, Any]]:
    """Call ``retrieve`` from plain code; return ids and pair features.

    Args:
        retrieve: plain or coroutine function.
        request: what to retrieve for.
        loop: where a coroutine runs.
        remaining_ms: milliseconds until the deadline, or ``None``.
        start: starts the user side.

    Raises:
        RetrievalError: it raised, or returned something that is not candidates.
        DeadlineExceededError: it is a coroutine and was not done in time.
        SchedulerError: it is a coroutine and the engine was closed meanwhile.
        NotStartedError: the user side could not be started.
    """
    began_s = time.perf_counter()
    task = None
    if _in_loop(retrieve):
        task = loop.submit(lambda: retrieve(request), _seconds(remaining_ms))  # type: ignore[arg-type,return-value]
    _start(start, task)
    try:
        result = retrieve(request) if task is None else loop.result(task)
        if inspect.isawaitable(result):
            result = loop.run(result, _seconds(remaining_ms))
    except SchedulerError:
        raise
    except Exception as error:
        raise _explained(error, request, remaining_ms, began_s) from error
    return parse(result)


def retrieve_in_time(
    retrieve: Retrieve,
    request: Request,
    loop: EventLoop,
    in_thread: Any,
    remaining_ms: float,
    start: Start,
) -> tuple[Any, Mapping[str, Any]]:
    """Call ``retrieve`` from plain code and give it up after a time, also if it is no coroutine.

    Args:
        retrieve: plain or coroutine function; a plain one runs in a thread.
        request: what to retrieve for.
        loop: where a coroutine runs.
        in_thread: as of `retrieve_async`.
        remaining_ms: how long to wait, in milliseconds.
        start: starts the user side.

    Raises:
        RetrievalError: it raised, or returned something that is not candidates.
        DeadlineExceededError: it was not done in time; a thread that it hangs in stays with it.
        OverloadedError: no thread will have time for it.
        SchedulerError: the engine was closed meanwhile.
        NotStartedError: the user side could not be started.
    """
    if _in_loop(retrieve):
        return retrieve_now(retrieve, request, loop, remaining_ms, start)
    began_s = time.perf_counter()
    task = in_thread(lambda: retrieve(request))
    _start(start, task)
    try:
        result = task.result(_seconds(remaining_ms))
        if inspect.isawaitable(result):
            spent_ms = (time.perf_counter() - began_s) * 1e3
            result = loop.run(result, _seconds(remaining_ms - spent_ms))
    except SchedulerError:
        raise
    except Exception as error:
        task.cancel()
        raise _explained(error, request, remaining_ms, began_s) from error
    return parse(result)


def _in_loop(retrieve: Retrieve) -> bool:
    return inspect.iscoroutinefunction(retrieve) or inspect.iscoroutinefunction(type(retrieve).__call__)


async def retrieve_async(
    retrieve: Retrieve, request: Request, in_thread: Any, remaining_ms: float | None, start: Start
) -> tuple[Any, Mapping[str, Any]]:
    """Call ``retrieve`` from a coroutine; a plain ``retrieve`` runs in a thread.

    Args:
        retrieve: plain or coroutine function.
        request: what to retrieve for.
        in_thread: runs a function of no arguments in a thread and returns a ``concurrent.futures.Future``.
        remaining_ms: milliseconds until the deadline, or ``None``.
        start: starts the user side.

    Raises:
        RetrievalError: it raised, or returned something that is not candidates.
        DeadlineExceededError: it was not done in time.
        OverloadedError: no thread will have time for it.
        NotStartedError: the user side could not be started.
    """
    began_s = time.perf_counter()
    # Outside of what is blamed on retrieve: it did not even start if this fails.
    task = None if _in_loop(retrieve) else in_thread(lambda: retrieve(request))
    _start(start, task)

    async def call() -> Any:
        if task is None:
            return await retrieve(request)  # type: ignore[misc]
        result = await result_of(task)
        return await result if inspect.isawaitable(result) else result

    try:
        async with TimeLimit(_seconds(remaining_ms)):
            result = await call()
    except BaseException as error:
        if task is not None:
            task.add_done_callback(_close_unawaited)
        if isinstance(error, Exception):
            raise _explained(error, request, remaining_ms, began_s) from error
        raise
    return parse(result)


def _start(start: Start, task: Task | None) -> None:
    """Start the user side, after retrieval was handed over: threads that begin to run take turns."""
    try:
        start()
    except BaseException as error:
        if task is not None:
            task.cancel()
            task.add_done_callback(_close_unawaited)
        raise NotStartedError(error) from error


def _close_unawaited(task: "concurrent.futures.Future[Any]") -> None:
    """Close the coroutine that a plain ``retrieve`` returned when nobody waited for it any more."""
    if not task.cancelled() and task.exception() is None and inspect.iscoroutine(task.result()):
        task.result().close()


def parse(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return ids (or the table that holds them) and pair features of what ``retrieve`` returned.

    Raises:
        RetrievalError: it is not candidates.
    """
    if isinstance(result, Candidates):
        return result.ids, result.pair
    arrow = hasattr(result, "__arrow_c_stream__") or hasattr(result, "__arrow_c_array__")
    if isinstance(result, (str, bytes)) or not (arrow or hasattr(result, "__len__")):
        raise RetrievalError(
            f"retrieve returned {_shown(result)}, expected an array or list of item ids, Candidates(ids, "
            "pair), or a table."
        )
    return result, {}


def _explained(error: Exception, request: Request, remaining_ms: float | None, began_s: float) -> Exception:
    spent_ms = (time.perf_counter() - began_s) * 1e3
    # A client of retrieve's own may time out long before the deadline. (1 ms: clocks tick.)
    if isinstance(error, TimeoutError) and remaining_ms is not None and spent_ms > remaining_ms - 1:
        return DeadlineExceededError(
            f"user {request.user!r}: retrieval was not done within the {max(0.0, remaining_ms):.1f} ms that "
            "were left "
            "of the deadline; make it faster, or give the request more time."
        )
    return RetrievalError(f"retrieve raised {type(error).__name__} for user {request.user!r}: {error}")


def _seconds(remaining_ms: float | None) -> float | None:
    return None if remaining_ms is None else max(0.0, remaining_ms / 1e3)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"a {type(value).__name__} ({text if len(text) <= 60 else text[:57] + '...'})"
