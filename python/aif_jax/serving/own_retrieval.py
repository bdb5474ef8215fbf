"""Candidates of requests that an engine ranks by itself: its own retrieval, and what stands in for it."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from aif_jax.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    RetrievalError,
)
from aif_jax.features import EncodeReport
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.report import Ranking
from aif_jax.serving.retrieval import (
    EventLoop,
    NotStartedError,
    Retriever,
    Start,
    parse,
    retrieve_async,
    retrieve_in_time,
    retrieve_now,
)
from aif_jax.serving.stages import Generation
from aif_jax.serving.user_side import Submit
from aif_jax.types import Candidates, Request, Retrieve

if TYPE_CHECKING:
    from aif_jax.serving.pending import Pending

Fallback: TypeAlias = Candidates | Callable[[Request], Any] | Any
"""Item ids, `Candidates`, or a plain function from a request to either; ``None`` for no fallback."""

Ranked: TypeAlias = tuple[Ranking | None, BaseException | None]
"""A ranking, or the error in its place."""

RankHere: TypeAlias = Callable[[Any, Mapping[str, Any]], Ranked | None]

_NoCandidates: TypeAlias = RetrievalError | DeadlineExceededError | OverloadedError
_NO_CANDIDATES = (RetrievalError, DeadlineExceededError, OverloadedError)
"""What calling ``retrieve`` raises for want of candidates."""


class OwnRetrieval:
    """Calls an engine's ``retrieve``, and takes the fallback where that brings nothing in time.

    Args:
        generation: whose schema candidates must fit.
        retrieve: plain or coroutine function, or ``None``: then `require` raises.
        fallback: what to rank when ``retrieve`` raises, is late, or returns what is no candidates.
        loop: where coroutines of plain callers run.
        submit: runs a task of a request.

    Raises:
        ConfigError: the fallback is a coroutine function, or no candidates.
    """

    def __init__(
        self,
        generation: Generation,
        retrieve: Retrieve | Callable[[Request], Any] | None,
        fallback: Fallback,
        loop: EventLoop,
        submit: Submit,
    ):
        _check_fallback(fallback)
        self._generation = generation
        self._retriever = None if retrieve is None else Retriever.of(retrieve)
        self._fallback = fallback
        self._loop = loop
        self._submit = submit

    def require(self) -> Retriever:
        """Return the engine's ``retrieve``.

        Raises:
            ConfigError: there is none.
        """
        if self._retriever is None:
            raise ConfigError(
                "the engine was made without retrieve; pass Engine(retrieve=...), or call begin and rank the "
                "handle "
                "with your own candidates."
            )
        return self._retriever

    def now(self, pending: "Pending", request: Request, start: Start) -> tuple[Any, Mapping[str, Any]]:
        """Return ids and pair features, from plain code.

        Args:
            pending: the request.
            request: what ``retrieve`` is told.
            start: starts the user side, once: before ``retrieve`` is called here, or after it was handed over
                to another thread, which would else have to wait for its turn.

        Raises:
            RetrievalError: ``retrieve`` raised, or returned what is not candidates, and there is no fallback.
            DeadlineExceededError: it was not done in time, and there is no fallback.
            OverloadedError: no thread will have time for it, and there is no fallback.
        """
        retriever, left = self.require(), self._left_ms(pending)
        try:
            if self._fallback is None or left is None:
                found = retrieve_now(retriever, request, self._loop, left, start)
            else:
                found = retrieve_in_time(
                    retriever, request, self._loop, self._in_thread(pending), left, start
                )
            return self._checked(found)
        except NotStartedError as error:
            raise error.reason from None
        except _NO_CANDIDATES as error:
            return self._instead(pending, request, error, start)

    async def later(
        self, pending: "Pending", request: Request, start: Start, rank_here: RankHere
    ) -> tuple[tuple[Any, Mapping[str, Any]], Ranked | None]:
        """Like `now`, from a coroutine: a plain ``retrieve`` runs in a thread, a fallback function here.

        Args:
            pending: the request.
            request: what ``retrieve`` is told.
            start: starts the user side, once.
            rank_here: ranks what a plain ``retrieve`` brought in its own thread, unless that would have to
                wait; raises nothing.

        Returns:
            Ids and pair features, and what ``rank_here`` returned, ``None`` if they are still to be ranked.
        """

        def go_on(result: Any) -> tuple[tuple[Any, Mapping[str, Any]], Ranked | None] | None:
            try:
                found = self._checked(parse(result))
            except RetrievalError:
                return None  # raised where it is looked at again
            return found, rank_here(*found)

        left = self._left_ms(pending)
        try:
            result, gone_on = await retrieve_async(
                self.require(), request, self._in_thread(pending), left, start, go_on
            )
            return gone_on or (self._checked(parse(result)), None)
        except NotStartedError as error:
            raise error.reason from None
        except _NO_CANDIDATES as error:
            return self._instead(pending, request, error, start), None

    def _in_thread(self, pending: "Pending") -> Callable[[Callable[[], Any]], Any]:
        return lambda call: self._submit("blocking", call, name="retrieve", pending=pending)

    def _left_ms(self, pending: "Pending") -> float | None:
        """Return how long ``retrieve`` may take: the time that ranking a fallback takes is not its own."""
        remaining = pending.remaining_ms()
        return remaining if self._fallback is None else pending.rungs.ladder.retrieval_ms(remaining)

    def _checked(self, found: tuple[Any, Mapping[str, Any]]) -> tuple[Any, Mapping[str, Any]]:
        """Check candidates while there is something to take instead; without a fallback it is done later."""
        if self._fallback is None:
            return found
        try:
            generation = self._generation
            schema, unknown = generation.bundle.schema, generation.config.unknown_columns
            check_candidates(*found, schema, generation.raw_pair, EncodeReport(), unknown)
        except RequestError as error:
            # Not from it: retrieve did not raise.
            raise RetrievalError(f"retrieve returned what cannot be ranked: {error}") from None
        return found

    def _instead(
        self,
        pending: "Pending",
        request: Request,
        error: _NoCandidates,
        start: Start,
    ) -> tuple[Any, Mapping[str, Any]]:
        if self._fallback is None:
            raise error
        start()  # if retrieval did not even get so far
        pending.retrieval, pending.retrieval_reason = "fallback", _why(error)
        return _fallback_candidates(self._fallback, request)


class BlamingRetrieval:
    """Turns complaints about candidates into complaints about the ``retrieve`` that brought them."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is RequestError and str(error).startswith(("candidates:", "pair features")):
            raise RetrievalError(f"retrieve returned what cannot be ranked: {error}") from error


BLAMING_RETRIEVAL = BlamingRetrieval()


def _check_fallback(fallback: Fallback) -> None:
    """Check what an engine is given.

    Raises:
        ConfigError: it is a coroutine function, or no candidates.
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


def _fallback_candidates(fallback: Fallback, request: Request) -> tuple[Any, Mapping[str, Any]]:
    """Return ids and pair features, in the calling thread.

    Raises:
        RetrievalError: the function raised, or returned something that is not candidates.
    """
    if not callable(fallback):
        return parse(fallback)
    try:
        result = fallback(request)
    except Exception as error:
        raise RetrievalError(
            f"fallback raised {type(error).__name__} for user {request.user!r}: {error}"
        ) from error
    return parse(result)


def _why(error: _NoCandidates) -> str:
    """Return why retrieval brought nothing, in a word or two, for reports and counters."""
    if isinstance(error, DeadlineExceededError):
        return "late"
    if isinstance(error, OverloadedError):
        return "overloaded"
    cause = error.__cause__
    return "not candidates" if cause is None else f"raised {type(cause).__name__}"
