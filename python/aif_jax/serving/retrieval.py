"""Retrieval by the engine: calls of ``retrieve``, plain or coroutine, their time limits, and the fallback."""

import concurrent.futures
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from aif_jax.aio import EventLoop, TimeLimit, Waiter, is_coroutine_function, result_of
from aif_jax.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    RetrievalError,
    SchedulerError,
)
from aif_jax.features import EncodeReport
from aif_jax.features.copies import copied
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.generation import Generation
from aif_jax.shown import shown
from aif_jax.strict_json import text_of
from aif_jax.types import Candidates, Request, Retrieve

Fallback: TypeAlias = Candidates | Callable[[Request], Any] | Any
"""Item ids, `Candidates`, or a plain function from a request to either; ``None`` for no fallback."""

Task: TypeAlias = concurrent.futures.Future[Any]

Submit: TypeAlias = Callable[[Callable[[], Any]], Task]
"""Runs a function of no arguments in a thread."""

NO_CANDIDATES = (RetrievalError, DeadlineExceededError, OverloadedError)
"""Errors of a retrieval that brought no candidates: a fallback replaces it."""

_USUAL = (Candidates, np.ndarray)
"""Usual results of ``retrieve``, distinguished from awaitables without further checks."""


class Found(NamedTuple):
    """Candidates that retrieval brought: ids or a table, and raw pair features by name."""

    ids: Any
    pair: Mapping[str, Any]


class Outcome(NamedTuple):
    """End of a retrieval: its candidates, and why they are the fallback's, if they are."""

    found: Found
    fallback_reason: str | None


class Retrieval:
    """The ``retrieve`` of an engine and its fallback, for one generation. Safe to use from any thread.

    Args:
        retrieve: plain or coroutine function, or ``None``: then `require` raises.
        fallback: candidates for when ``retrieve`` raises, is late, or returns something else.
        generation: whose schema candidates must fit.
        loop: runs coroutines of plain callers.

    Attributes:
        is_coroutine: whether ``retrieve`` is a coroutine function.
        has_fallback: whether there is a fallback.
    """

    def __init__(
        self,
        retrieve: Retrieve | Callable[[Request], Any] | None,
        fallback: Fallback,
        generation: Generation,
        loop: EventLoop,
    ):
        self._retrieve: Callable[[Request], Any] | None = retrieve
        self._fallback = fallback
        self._generation = generation
        self._loop = loop
        self.has_fallback = fallback is not None
        self.is_coroutine = is_coroutine_function(retrieve)

    def require(self) -> Callable[[Request], Any]:
        """Return ``retrieve``.

        Raises:
            ConfigError: there is none.
        """
        if self._retrieve is None:
            raise ConfigError(
                "the engine was made without retrieve; pass Engine(retrieve=...), or call begin and rank the "
                "handle with your own candidates."
            )
        return self._retrieve

    def now(
        self, request: Request, limit_ms: float | None, submit: Submit, start: Callable[[], None]
    ) -> Outcome:
        """Retrieve for a plain caller.

        A coroutine runs in the engine's loop. A plain function is called in this thread; or in another, to be
        given up in time, if there is a fallback to take.

        Args:
            request: argument of ``retrieve``.
            limit_ms: milliseconds that it may take; ``None`` for no limit.
            submit: runs a function in a thread.
            start: starts the user side: once retrieval was handed over to a thread, which would else have to
                wait for its turn, or before it is called here.

        Raises:
            RetrievalError: ``retrieve`` raised, or returned what is not candidates, and there is no fallback.
            DeadlineExceededError: it was not done in time, and there is no fallback.
            OverloadedError: no thread will have time for it, and there is no fallback.
            SchedulerError: the engine was closed meanwhile.
        """
        retrieve, began_s = self.require(), time.perf_counter()
        task, failure = None, None
        if self.is_coroutine:
            limit_s = _seconds(limit_ms)
            task, failure = _begun(
                lambda: self._loop.submit(lambda: _awaited(retrieve(request)), limit_s), start
            )
        elif self.has_fallback and limit_ms is not None:
            task, failure = _begun(lambda: submit(lambda: _handed_over(retrieve(request))), start)
        else:
            start()
        if failure is None:
            try:
                return Outcome(self._checked(self._result(task, request, limit_ms, began_s)), None)
            except NO_CANDIDATES as error:
                failure = error
        return self._instead(request, failure)

    async def in_loop(self, request: Request, limit_ms: float | None, start: Callable[[], None]) -> Outcome:
        """Retrieve by a coroutine function in the caller's event loop; see `now`."""
        start()
        began_s = time.perf_counter()
        try:
            try:
                async with TimeLimit(_seconds(limit_ms)):
                    result = await self.require()(request)
            except Exception as error:
                raise _explained(error, request, limit_ms, began_s) from error
            return Outcome(self._checked(_handed_over(result)), None)
        except NO_CANDIDATES as error:
            return self._instead(request, error)

    async def in_thread(
        self,
        request: Request,
        limit_ms: float | None,
        submit: Submit,
        start: Callable[[], None],
        go_on: Callable[[Found], Any],
        take_over: Callable[[], bool],
    ) -> tuple[Outcome, Any]:
        """Retrieve by a plain function in a thread, for a coroutine; see `now`.

        Args:
            request, limit_ms, submit, start: see `now`.
            go_on: called in that thread with what was found, to do with it what would have to wait for
                nothing: that spares two changes of threads; returns ``None`` if it did nothing.
            take_over: keeps the thread from continuing; returns whether that was in time.

        Returns:
            The candidates, and what ``go_on`` returned.
        """
        began_s, waiter = time.perf_counter(), Waiter()
        task, failure = _begun(
            lambda: submit(lambda: waiter.run(self._call_and_go_on, request, go_on)), start
        )
        if task is not None:
            try:
                joined = await self._joined(task, waiter, request, limit_ms, take_over, began_s)
                return Outcome(joined[1] or self._checked(_handed_over(joined[0])), None), joined[2]
            except NO_CANDIDATES as error:
                failure = error
        assert failure is not None, "it ran, or could not"
        return self._instead(request, failure), None

    def _checked(self, result: Any) -> Found:
        """Return the candidates that ``retrieve`` returned.

        With a fallback they are checked as a whole, while there is something to take instead.

        Raises:
            RetrievalError: they are not candidates.
        """
        found = parse(result)
        if self.has_fallback:
            generation = self._generation
            try:
                check_candidates(
                    *found, generation.bundle.schema, generation.raw_pair, EncodeReport(),
                    generation.config.unknown_columns, generation.tables.items,
                )  # fmt: skip
            except RequestError as error:
                # Not from it: retrieve did not raise.
                raise RetrievalError(f"retrieve returned what cannot be ranked: {error}") from None
        return found

    def _instead(self, request: Request, error: Exception) -> Outcome:
        """Return the fallback's candidates; a fallback function is called in this thread.

        Raises:
            Exception: ``error``, if there is no fallback.
            RetrievalError: the fallback function raised, or returned something that is not candidates.
        """
        if not self.has_fallback:
            raise error
        if isinstance(error, DeadlineExceededError):
            reason = "late"
        elif isinstance(error, OverloadedError):
            reason = "overloaded"
        else:
            cause = error.__cause__
            reason = "not candidates" if cause is None else f"raised {type(cause).__name__}"
        if not callable(self._fallback):
            return Outcome(parse(self._fallback), reason)
        try:
            result = self._fallback(request)
        except Exception as raised:
            raise RetrievalError(
                f"fallback raised {type(raised).__name__} for user {request.user!r}: {text_of(raised)}"
            ) from raised
        return Outcome(parse(_handed_over(result)), reason)

    def _result(self, task: Task | None, request: Request, limit_ms: float | None, began_s: float) -> Any:
        """Return what ``retrieve`` returned: here, in the loop, or in a thread that is given up in time."""
        left_ms = limit_ms
        try:
            if task is None:
                result = self.require()(request)
            elif self.is_coroutine:
                result = self._loop.result(task)
            else:
                result = task.result(_seconds(limit_ms))
            if not isinstance(result, _USUAL) and inspect.isawaitable(result):
                if left_ms is not None:
                    left_ms -= (time.perf_counter() - began_s) * 1e3
                result = _handed_over(self._loop.run(result, _seconds(left_ms)))
        except SchedulerError:
            raise
        except Exception as error:
            if task is not None:
                _give_up(task)
            raise _explained(error, request, limit_ms, began_s) from error
        return result

    def _call_and_go_on(
        self, request: Request, go_on: Callable[[Found], Any]
    ) -> tuple[Any, Found | None, Any]:
        """In a thread: return what ``retrieve`` returned, checked too if it could be, and what came of it."""
        result = self.require()(request)
        if not isinstance(result, _USUAL) and inspect.isawaitable(result):
            return result, None, None
        try:
            found = self._checked(result)
        except RetrievalError:
            return result, None, None  # raised where it is looked at again
        came_of_it = go_on(found)
        return result, found if came_of_it is not None else _handed_over(found), came_of_it

    async def _joined(
        self,
        task: Task,
        waiter: Waiter,
        request: Request,
        limit_ms: float | None,
        take_over: Callable[[], bool],
        began_s: float,
    ) -> tuple[Any, Found | None, Any]:
        """Await `_call_and_go_on` in a thread."""
        left_ms = limit_ms
        try:
            try:
                async with TimeLimit(_seconds(limit_ms)):
                    result, found, came_of_it = await waiter.of(task)
            except TimeoutError:
                if take_over():
                    raise
                # The limit is that of retrieval: a thread that continues checks the deadline itself.
                result, found, came_of_it = await result_of(task)
            if found is None and inspect.isawaitable(result):
                if left_ms is not None:
                    left_ms -= (time.perf_counter() - began_s) * 1e3
                async with TimeLimit(_seconds(left_ms)):
                    result = await result
            return result, found, came_of_it
        except BaseException as error:
            _give_up(task)
            if isinstance(error, Exception):
                raise _explained(error, request, limit_ms, began_s) from error
            raise


def _begun(hand_over: Callable[[], Task], start: Callable[[], None]) -> tuple[Task | None, Exception | None]:
    """Hand retrieval over, then start the user side; return the task, or the error in its place."""
    task, failure = None, None
    try:
        task = hand_over()
    except NO_CANDIDATES as error:
        failure = error
    try:
        start()
    except BaseException:
        if task is not None:
            _give_up(task)
        raise
    return task, failure


def _give_up(task: "concurrent.futures.Future[Any]") -> None:
    """Cancel a retrieval in a thread, and close the coroutine that it may return all the same."""
    task.cancel()
    task.add_done_callback(_close_unawaited)


def _close_unawaited(task: "concurrent.futures.Future[Any]") -> None:
    if not task.cancelled() and task.exception() is None:
        result = task.result()
        result = result[0] if isinstance(result, tuple) and result else result
        if inspect.iscoroutine(result):
            result.close()


def parse(result: Any) -> Found:
    """Return ids (or the table that holds them) and pair features of what ``retrieve`` returned.

    Raises:
        RetrievalError: it is not candidates.
    """
    if isinstance(result, Found):
        return result
    if isinstance(result, Candidates):
        return Found(result.ids, result.pair)
    if isinstance(result, np.ndarray):
        return Found(result, {})
    arrow = hasattr(result, "__arrow_c_stream__") or hasattr(result, "__arrow_c_array__")
    if isinstance(result, (str, bytes)) or not (arrow or hasattr(result, "__len__")):
        raise RetrievalError(
            f"retrieve returned a {type(result).__name__} ({shown(result)}), expected an array or list of "
            "item ids, Candidates(ids, pair), or a table."
        )
    return Found(result, {})


def _handed_over(result: Any) -> Any:
    """Return a copy of candidates that a thread or coroutine gave, which may use its arrays again meanwhile.

    Anything else is returned as it is.

    Raises:
        RetrievalError: they cannot be copied.
    """
    try:
        found = parse(result)
    except RetrievalError:
        return result
    try:
        return Found(copied(found.ids), copied(found.pair))
    except RequestError as error:
        raise RetrievalError(f"retrieve returned what cannot be ranked: {error}") from error


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return _handed_over(await awaitable)


def blamed(error: BaseException) -> BaseException:
    """Return a complaint about candidates as one about the ``retrieve`` that brought them; others as is."""
    if type(error) is RequestError and str(error).startswith(("candidates:", "pair features")):
        blame = RetrievalError(f"retrieve returned what cannot be ranked: {error}")
        blame.__cause__ = error
        return blame
    return error


def _explained(
    error: Exception, request: Request, limit_ms: float | None, began_s: float
) -> RetrievalError | DeadlineExceededError:
    """Return the error of a retrieval in words of the engine."""
    spent_ms = (time.perf_counter() - began_s) * 1e3
    # A client of retrieve's own may time out long before the deadline. (1 ms: clocks tick.)
    if isinstance(error, TimeoutError) and limit_ms is not None and spent_ms > limit_ms - 1:
        return DeadlineExceededError(
            f"user {request.user!r}: retrieval was not done within the {max(0.0, limit_ms):.1f} ms that "
            "were left of the deadline; make it faster, or give the request more time."
        )
    name = type(error).__name__
    return RetrievalError(f"retrieve raised {name} for user {request.user!r}: {text_of(error)}")


def _seconds(limit_ms: float | None) -> float | None:
    return None if limit_ms is None else max(0.0, limit_ms / 1e3)


def checked_fallback(fallback: Fallback) -> Fallback:
    """Return a copy of the candidates that are an engine's fallback; a function as it is.

    Raises:
        ConfigError: it is a coroutine function, or not candidates.
    """
    if is_coroutine_function(fallback):
        raise ConfigError("fallback: got a coroutine function, expected ids, Candidates or a plain function.")
    if fallback is None or callable(fallback):
        return fallback
    try:
        found = _handed_over(parse(fallback))
        empty = len(found.ids) == 0
    except RetrievalError as error:
        raise ConfigError(f"fallback: {str(error).removeprefix('retrieve returned ')}") from error
    if empty:
        raise ConfigError(
            "fallback: there are no candidates; expected at least one id, or None for no fallback."
        )
    return found
