"""Calling the engine's own ``retrieve``, plain or coroutine, from plain code or from a coroutine."""

import asyncio
import concurrent.futures
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from aif_jax.errors import DeadlineExceededError, RetrievalError, SchedulerError
from aif_jax.serving.awaiting import TimeLimit, Waiter, result_of
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


class Retriever(NamedTuple):
    """A ``retrieve``, and if it is a coroutine function: for plain callers it runs in the engine's loop."""

    call: Retrieve
    in_loop: bool

    @classmethod
    def of(cls, retrieve: Retrieve | Callable[[Request], Any]) -> "Retriever":
        """Look at what an engine was given."""
        in_loop = inspect.iscoroutinefunction(retrieve) or inspect.iscoroutinefunction(
            type(retrieve).__call__
        )
        return cls(retrieve, in_loop)  # type: ignore[arg-type]


def retrieve_now(
    retriever: Retriever, request: Request, loop: EventLoop, remaining_ms: float | None, start: Start
) -> tuple[Any, Mapping[str, Any]]:
    """Call ``retrieve`` from plain code; return ids and pair features.

    Args:
        retriever: what to call.
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
    if retriever.in_loop:
        task = loop.submit(lambda: retriever.call(request), _seconds(remaining_ms))  # type: ignore[arg-type,return-value]
    _start(start, task)
    try:
        result = retriever.call(request) if task is None else loop.result(task)
        if _is_awaitable(result):
            result = loop.run(result, _seconds(remaining_ms))  # type: ignore[arg-type]
    except SchedulerError:
        raise
    except Exception as error:
        raise _explained(error, request, remaining_ms, began_s) from error
    return parse(result)


def retrieve_in_time(
    retriever: Retriever,
    request: Request,
    loop: EventLoop,
    in_thread: Any,
    remaining_ms: float,
    start: Start,
) -> tuple[Any, Mapping[str, Any]]:
    """Call ``retrieve`` from plain code and give it up after a time, also if it is no coroutine.

    Args:
        retriever: what to call; a plain function runs in a thread.
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
    if retriever.in_loop:
        return retrieve_now(retriever, request, loop, remaining_ms, start)
    began_s = time.perf_counter()
    task = in_thread(lambda: retriever.call(request))
    _start(start, task)
    try:
        result = task.result(_seconds(remaining_ms))
        if _is_awaitable(result):
            spent_ms = (time.perf_counter() - began_s) * 1e3
            result = loop.run(result, _seconds(remaining_ms - spent_ms))
    except SchedulerError:
        raise
    except Exception as error:
        task.cancel()
        raise _explained(error, request, remaining_ms, began_s) from error
    return parse(result)


class GoesOn:
    """A plain ``retrieve`` that goes on with what it brought in its own thread: two changes of threads less.

    Args:
        call: calls ``retrieve``.
        go_on: called with what it returned, unless that is late or an awaitable.
    """

    def __init__(self, call: Callable[[], Any], go_on: Callable[[Any], Any]):
        self._call = call
        self._go_on = go_on
        self._lock = threading.Lock()
        self._given_up = False
        self._going_on = False

    def run(self) -> tuple[Any, Any]:
        """Return what ``retrieve`` returned, and what going on did; ``None`` if it did not."""
        result = self._call()
        if _is_awaitable(result):
            return result, None
        with self._lock:
            if self._given_up:
                return result, None
            self._going_on = True
        return result, self._go_on(result)

    def give_up(self) -> bool:
        """Keep it from going on; return whether it is too late for that."""
        with self._lock:
            self._given_up = True
            return self._going_on


async def retrieve_async(
    retriever: Retriever,
    request: Request,
    in_thread: Any,
    remaining_ms: float | None,
    start: Start,
    go_on: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """Call ``retrieve`` from a coroutine; a plain ``retrieve`` runs in a thread, and goes on there.

    Args:
        retriever: what to call.
        request: what to retrieve for.
        in_thread: runs a function of no arguments in a thread and returns a ``concurrent.futures.Future``.
        remaining_ms: milliseconds until the deadline, or ``None``.
        start: starts the user side.
        go_on: see `GoesOn`; must not raise.

    Returns:
        What ``retrieve`` returned, unchecked, and what ``go_on`` did; ``None`` if it was not called.

    Raises:
        RetrievalError: it raised.
        DeadlineExceededError: it was not done in time.
        OverloadedError: no thread will have time for it.
        NotStartedError: the user side could not be started.
    """
    began_s = time.perf_counter()
    goes_on = GoesOn(lambda: retriever.call(request), go_on)
    # Outside of what is blamed on retrieve: it did not even start if this fails.
    waiter = Waiter()
    task = None if retriever.in_loop else in_thread(lambda: waiter.run(goes_on.run))
    try:
        _start(start, task)
    except NotStartedError:
        goes_on.give_up()
        raise

    async def call() -> tuple[Any, Any]:
        if task is None:
            return await retriever.call(request), None  # type: ignore[misc]
        result, came_of_it = await waiter.of(task)
        return (await result, None) if _is_awaitable(result) else (result, came_of_it)

    try:
        try:
            async with TimeLimit(_seconds(remaining_ms)):
                return await call()
        except TimeoutError:
            # The limit is that of retrieval: what goes on minds the deadline itself.
            if task is None or not goes_on.give_up():
                raise
            return await result_of(task)
    except BaseException as error:
        if task is not None:
            goes_on.give_up()
            task.add_done_callback(_close_unawaited)
        if isinstance(error, Exception):
            raise _explained(error, request, remaining_ms, began_s) from error
        raise


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
    if not task.cancelled() and task.exception() is None:
        result = task.result()
        result = result[0] if isinstance(result, tuple) and result else result
        if inspect.iscoroutine(result):
            result.close()


def _is_awaitable(result: Any) -> bool:
    # What retrieval mostly returns is told apart without asking what it is.
    return not isinstance(result, (Candidates, np.ndarray)) and inspect.isawaitable(result)


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
