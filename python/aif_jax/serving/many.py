"""Several users in one call: while one is ranked, the user sides of the next ones run."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aif_jax.errors import RequestError
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Ranking
from aif_jax.serving.user_batches import UserGroup, UserWork

Context = Mapping[str, Any]

_PANIC = ("pyo3_runtime", "PanicException")
"""Module and name of what a panic in native code becomes: no Exception, and each extension has its own."""


def context_for_each(contexts: Sequence[Context | None] | None, n: int) -> Sequence[Context | None]:
    """Return one context for each of n users.

    Raises:
        RequestError: there are more or fewer.
    """
    if contexts is None:
        return [None] * n
    if isinstance(contexts, Mapping) or len(contexts) != n:
        given = "one mapping" if isinstance(contexts, Mapping) else f"{len(contexts)}"
        raise RequestError(f"contexts: got {given} for {n} users, expected a list of one for each user.")
    return contexts


class Window(NamedTuple):
    """Requests of one call that may be under way: all at once would overrun the bounded queue."""

    at_once: int
    together: int


def window(config: EngineConfig, deadline_ms: float | None) -> Window:
    """Return how many requests to have under way, and how many of them to begin as a group.

    With a deadline there are no groups: one slow record would make all of them late. Nor are more under way
    then, which would wait for each other.
    """
    threads, bound = config.blocking_threads, config.queue_bound
    # Two groups: while one is ranked, the next one is computed.
    sizes = [size for size in config.user_batches if 2 * size <= bound]
    if deadline_ms is not None or not sizes:
        return Window(min(threads, bound), 1)
    return Window(min(max(threads, 2 * sizes[-1]), bound), sizes[-1])


def rank_in_order(
    n: int,
    window: Window,
    begin: Callable[[int, UserGroup | None], Pending],
    rank: Callable[[Pending, int], Ranking],
    *,
    return_exceptions: bool,
) -> list[Any]:
    """Rank n requests one after the other, with the next ones begun already.

    Unless errors are returned, the first one ends all; what was begun by then is cancelled.

    Args:
        n: requests.
        window: how many may be open at a time, and of those as a group.
        begin: begins one, given its number and its group, if there is one.
        rank: ranks what was begun, given its number.
        return_exceptions: whether an error takes the place of its request's ranking.
    """
    results: list[Any] = []
    ahead: deque[Pending | BaseException] = deque()

    def begun(number: int, group: UserGroup | None) -> Pending | BaseException:
        try:
            return begin(number, group)
        except BaseException as error:
            if not (return_exceptions and _is_an_answer(error)):
                raise
            if group is not None:
                group.left()
            return error

    def ranked(pending: Pending | BaseException) -> Ranking | BaseException:
        if isinstance(pending, BaseException):
            return pending
        try:
            return rank(pending, len(results))
        except BaseException as error:
            if not (return_exceptions and _is_an_answer(error)):
                raise
            return error

    try:
        for first in range(0, n, window.together):
            numbers = range(first, min(first + window.together, n))
            while len(ahead) + len(numbers) > window.at_once:
                results.append(ranked(ahead.popleft()))
            group = UserGroup(len(numbers), _start) if len(numbers) > 1 else None
            for number in numbers:
                ahead.append(begun(number, group))
        while ahead:
            results.append(ranked(ahead.popleft()))
        return results
    finally:
        for pending in ahead:
            if isinstance(pending, Pending):
                pending.cancel()


async def rank_side_by_side(
    n: int,
    window: Window,
    begin: Callable[[int, UserGroup | None], Pending],
    rank: Callable[[Pending, int], Awaitable[Ranking]],
    *,
    return_exceptions: bool,
) -> list[Any]:
    """Rank n requests at the same time; see `rank_in_order`.

    Args:
        n: requests.
        window: how many may be under way at a time, and of those as a group.
        begin: begins one, given its number and its group, if there is one; its user side may start later.
        rank: ranks what was begun, given its number.
        return_exceptions: whether an error takes the place of its request's ranking.
    """
    # It lets them in in their order, so that a group never waits for room that later ones take.
    room = asyncio.Semaphore(window.at_once)

    async def one(number: int, group: UserGroup | None) -> Ranking:
        pending = None
        try:
            async with room:
                pending = begin(number, group)
                return await rank(pending, number)
        finally:
            if group is not None:
                group.left(pending)

    tasks: list[asyncio.Task[Ranking]] = []
    for first in range(0, n, window.together):
        numbers = range(first, min(first + window.together, n))
        group = UserGroup(len(numbers), _start) if len(numbers) > 1 else None
        tasks += [asyncio.ensure_future(one(number, group)) for number in numbers]
    try:
        return await asyncio.gather(*tasks, return_exceptions=return_exceptions)
    finally:
        for task in tasks:
            task.cancel()
        # Until they have gone, so that nothing is left of them for whoever closes the loop.
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_an_answer(error: BaseException) -> bool:
    """Return whether an error is of one request; others, such as interrupts, end the call."""
    kind = type(error)
    return isinstance(error, Exception) or (kind.__module__, kind.__name__) == _PANIC


def _start(works: Sequence[UserWork]) -> None:
    """Start the user programs of a group; a publish meanwhile parts it."""
    for release in {work.pending.release for work in works}:
        release.user_sides.start_together([work for work in works if work.pending.release is release])
