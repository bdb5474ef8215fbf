"""Retrieval by the engine: calls of ``retrieve``, plain or coroutine, their time limits, and the fallback."""

import concurrent.futures
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from aif_jax.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    RetrievalError,
    SchedulerError,
)
from aif_jax.features import EncodeReport
from aif_jax.serving.aio import EventLoop, TimeLimit, result_of
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.generation import Generation
from aif_jax.types import Candidates, Request, Retrieve

Fallback: TypeAlias = Candidates | Callable[[Request], Any] | Any
"""Item ids, `Candidates`, or a plain function from a request to either; ``None`` for no fallback."""

Submit: TypeAlias = Callable[[Callable[[], Any]], "concurrent.futures.Future[Any]"]
"""Runs a function of no arguments in a thread."""

NO_CANDIDATES = (RetrievalError, DeadlineExceededError, OverloadedError)
"""Errors of a retrieval that brought no candidates: a fallback replaces it."""


class Found(NamedTuple):
    """Candidates that retrieval brought: ids or a table, and raw pair features by name."""

    ids: Any
    pair: Mapping[str, Any]


class Retrieval:
    """The ``retrieve`` of an engine and its fallback, for one generation. Safe to use from any thread.

    Args:
        retrieve: plain or coroutine function, or ``None``: then `require` raises.
        fallback: candidates for when ``retrieve`` raises, is late, or returns something else.
        generation: whose schema candidates must fit.
        loop: runs coroutines of plain callers.

    Raises:
        ConfigError: the fallback is a coroutine function, or not candidates.

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
        _check_fallback(fallback)
        self._retrieve = retrieve
        self._fallback = fallback
        self._generation = generation
        self._loop = loop
        self.has_fallback = fallback is not None
        self.is_coroutine = inspect.iscoroutinefunction(retrieve) or inspect.iscoroutinefunction(
            getattr(type(retrieve), "__call__", None)  # noqa: B004, an object with a coroutine method
        )

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

    def hand_over(self, request: Request, limit_ms: float | None, submit: Submit) -> "Running":
        """Begin a retrieval for a plain caller.

        A coroutine begins to run in the engine's loop. A plain function is called by `Running.result`, in the
        caller's thread; or it begins in a thread, to be given up in time, if there is a fallback to take.

        Args:
            request: argument of ``retrieve``.
            limit_ms: milliseconds that it may take; ``None`` for no limit.
            submit: runs a function in a thread.

        Raises:
            OverloadedError: no thread will have time for it.
            SchedulerError: the engine was closed meanwhile.
        """
        retrieve, task = self.require(), None
        if self.is_coroutine:
            task = self._loop.submit(lambda: cast("Awaitable[Any]", retrieve(request)), _seconds(limit_ms))
        elif self.has_fallback and limit_ms is not None:
            task = submit(lambda: retrieve(request))
        return Running(retrieve, request, limit_ms, task, self._loop, in_loop=self.is_coroutine)

    async def call_async(self, request: Request, limit_ms: float | None) -> Any:
        """Await ``retrieve``, a coroutine function, in the caller's loop; return its result unchecked.

        Raises:
            RetrievalError: it raised.
            DeadlineExceededError: it was not done in time.
        """
        began_s = time.perf_counter()
        try:
            async with TimeLimit(_seconds(limit_ms)):
                return await self.require()(request)
        except Exception as error:
            raise explained(error, request, limit_ms, began_s) from error

    async def join_async(
        self,
        task: "concurrent.futures.Future[tuple[Any, Any]]",
        request: Request,
        limit_ms: float | None,
        take_over: Callable[[], bool],
    ) -> tuple[Any, Any]:
        """Await a retrieval in a thread that may go on with what it found; return both results, unchecked.

        Args:
            task: returns what ``retrieve`` returned, and what going on brought, ``None`` if it did not.
            request: argument of ``retrieve``.
            limit_ms: milliseconds that retrieval may take; going on is not bounded by it.
            take_over: keeps the thread from going on; returns whether that was in time.

        Raises:
            RetrievalError: ``retrieve`` raised.
            DeadlineExceededError: it was not done in time.
            OverloadedError: the thread will have no time for it.
        """
        began_s = time.perf_counter()
        try:
            try:
                result, more = await result_of(task, _seconds(limit_ms))
            except TimeoutError:
                if take_over():
                    raise
                result, more = await result_of(task)
            if is_awaitable(result):
                if limit_ms is not None:
                    limit_ms -= (time.perf_counter() - began_s) * 1e3
                async with TimeLimit(_seconds(limit_ms)):
                    result = await result
            return result, more
        except BaseException as error:
            give_up(task)
            if isinstance(error, Exception):
                raise explained(error, request, limit_ms, began_s) from error
            raise

    def checked(self, result: Any) -> Found:
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
                    generation.config.unknown_columns,
                )  # fmt: skip
            except RequestError as error:
                # Not from it: retrieve did not raise.
                raise RetrievalError(f"retrieve returned what cannot be ranked: {error}") from None
        return found

    def instead(self, request: Request, error: Exception) -> tuple[Found, str]:
        """Return the fallback's candidates, and the reason why they are taken in a word or two.

        Args:
            request: argument of a fallback function, which is called in this thread.
            error: one of `NO_CANDIDATES`; raised if there is no fallback.

        Raises:
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
            return parse(self._fallback), reason
        try:
            result = self._fallback(request)
        except Exception as raised:
            raise RetrievalError(
                f"fallback raised {type(raised).__name__} for user {request.user!r}: {raised}"
            ) from raised
        return parse(result), reason


class Running:
    """A retrieval under way for a plain caller; see `Retrieval.hand_over`."""

    __slots__ = ("_began_s", "_in_loop", "_limit_ms", "_loop", "_request", "_retrieve", "_task")

    def __init__(
        self,
        retrieve: Callable[[Request], Any],
        request: Request,
        limit_ms: float | None,
        task: "concurrent.futures.Future[Any] | None",
        loop: EventLoop,
        *,
        in_loop: bool,
    ):
        self._retrieve = retrieve
        self._request = request
        self._limit_ms = limit_ms
        self._task = task
        self._loop = loop
        self._in_loop = in_loop
        self._began_s = time.perf_counter()

    def result(self) -> Any:
        """Return what ``retrieve`` returned, unchecked.

        Raises:
            RetrievalError: it raised.
            DeadlineExceededError: it was not done in time; a thread that it hangs in stays with it.
            SchedulerError: the engine was closed meanwhile.
        """
        task, limit_ms = self._task, self._limit_ms
        try:
            if task is None:
                result = self._retrieve(self._request)
            elif self._in_loop:
                result = self._loop.result(task)
            else:
                result = task.result(_seconds(limit_ms))
            if is_awaitable(result):
                if limit_ms is not None:
                    limit_ms -= (time.perf_counter() - self._began_s) * 1e3
                result = self._loop.run(result, _seconds(limit_ms))
        except SchedulerError:
            raise
        except Exception as error:
            self.cancel()
            raise explained(error, self._request, self._limit_ms, self._began_s) from error
        return result

    def cancel(self) -> None:
        """Give it up: nobody waits for the result."""
        if self._task is not None:
            give_up(self._task)


def give_up(task: "concurrent.futures.Future[Any]") -> None:
    """Cancel a retrieval in a thread, and close the coroutine that it may return all the same."""
    task.cancel()
    task.add_done_callback(_close_unawaited)


def _close_unawaited(task: "concurrent.futures.Future[Any]") -> None:
    if not task.cancelled() and task.exception() is None:
        result = task.result()
        result = result[0] if isinstance(result, tuple) and result else result
        if inspect.iscoroutine(result):
            result.close()


def is_awaitable(result: Any) -> bool:
    """Return whether ``retrieve`` returned something to be awaited."""
    # The usual results are told apart without asking what they are.
    return not isinstance(result, (Candidates, np.ndarray)) and inspect.isawaitable(result)


def parse(result: Any) -> Found:
    """Return ids (or the table that holds them) and pair features of what ``retrieve`` returned.

    Raises:
        RetrievalError: it is not candidates.
    """
    if isinstance(result, Candidates):
        return Found(result.ids, result.pair)
    if isinstance(result, np.ndarray):
        return Found(result, {})
    arrow = hasattr(result, "__arrow_c_stream__") or hasattr(result, "__arrow_c_array__")
    if isinstance(result, (str, bytes)) or not (arrow or hasattr(result, "__len__")):
        text = repr(result)
        raise RetrievalError(
            f"retrieve returned a {type(result).__name__} "
            f"({text if len(text) <= 60 else text[:57] + '...'}), expected an array or list of item ids, "
            "Candidates(ids, pair), or a table."
        )
    return Found(result, {})


def blamed(error: BaseException) -> BaseException:
    """Return a complaint about candidates as one about the ``retrieve`` that brought them; others as is."""
    if type(error) is RequestError and str(error).startswith(("candidates:", "pair features")):
        blame = RetrievalError(f"retrieve returned what cannot be ranked: {error}")
        blame.__cause__ = error
        return blame
    return error


def explained(
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
    return RetrievalError(f"retrieve raised {type(error).__name__} for user {request.user!r}: {error}")


def _seconds(limit_ms: float | None) -> float | None:
    return None if limit_ms is None else max(0.0, limit_ms / 1e3)


def _check_fallback(fallback: Fallback) -> None:
    """Check the fallback of an engine.

    Raises:
        ConfigError: it is a coroutine function, or not candidates.
    """
    if inspect.iscoroutinefunction(fallback):
        raise ConfigError("fallback: got a coroutine function, expected ids, Candidates or a plain function.")
    if fallback is None or callable(fallback):
        return
    try:
        ids, _ = parse(fallback)
        empty = len(ids) == 0
    except RetrievalError as error:
        raise ConfigError(f"fallback: {str(error).removeprefix('retrieve returned ')}") from error
    if empty:
        raise ConfigError(
            "fallback: there are no candidates; expected at least one id, or None for no fallback."
        )
