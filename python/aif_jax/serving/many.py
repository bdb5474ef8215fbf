"""Several users in one call: while one is ranked, the user sides of the next ones run."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aif_jax.errors import RequestError
from aif_jax.features.copies import copied
from aif_jax.features.filters import Filters, filters_for_each
from aif_jax.inputs import read_flat, read_user_ids
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.report import Ranking
from aif_jax.serving.request import Pending
from aif_jax.serving.user_side import GroupMember, UserGroup
from aif_jax.types import UserId

Context = Mapping[str, Any]

_PANIC = ("pyo3_runtime", "PanicException")
"""Module and name of a panic in native code as Python sees it: not an Exception, one class an extension."""


def own_context(context: Any) -> Any:
    """Return a copy of a request's context; what is none as it is, for the error when the request begins."""
    return copied(context) if isinstance(context, Mapping) else context


def for_each(
    users: Sequence[UserId],
    filters: Filters | Sequence[Filters | None] | None,
    contexts: Sequence[Context | None] | None,
) -> tuple[list[UserId], list[Filters | None], list[Context | None]]:
    """Return copies of users, of one filter for each, and of one context for each.

    Raises:
        RequestError: there are more or fewer filters or contexts than users, or a filter is something else.
    """
    users = read_user_ids(users, ordered=True, checked=False)
    each, n = filters_for_each(filters, users), len(users)
    if contexts is None:
        return users, each, [None] * n
    if isinstance(contexts, Mapping):
        raise RequestError(f"contexts: got one mapping for {n} users, expected a list of one for each user.")
    given = read_flat(contexts, "contexts")
    if len(given) != n:
        raise RequestError(f"contexts: got {len(given)} for {n} users, expected a list of one for each user.")
    return users, each, [own_context(context) for context in given]


class Window(NamedTuple):
    """Numbers of requests of one call that may be under way, and of those in a group."""

    at_once: int
    together: int

    @classmethod
    def of(cls, config: EngineConfig, deadline_ms: float | None) -> "Window":
        """Return the window of an engine: all at once would overrun its bounded queue.

        With a deadline there are no groups: one slow record would make all of them late. Nor are more under
        way then, which would wait for each other.
        """
        threads, bound = config.threads.blocking, config.threads.max_queued
        # Two groups: while one is ranked, the next one is computed.
        sizes = [size for size in config.shapes.users if 2 * size <= bound]
        if deadline_ms is not None or not sizes:
            return cls(min(threads, bound), 1)
        return cls(min(max(threads, 2 * sizes[-1]), bound), sizes[-1])


def rank_in_order(
    n: int,
    window: Window,
    begin: Callable[[int, GroupMember | None], Pending],
    rank: Callable[[Pending, int], Ranking],
    *,
    return_exceptions: bool,
) -> list[Ranking | BaseException]:
    """Rank n requests one after the other, with the next ones begun already.

    Unless errors are returned, the first one ends all; requests begun by then are cancelled.

    Args:
        n: requests.
        window: requests that may be open at a time, and of those as a group.
        begin: begins one, given its number and its membership in a group, if there is one.
        rank: ranks a request that was begun, given its number.
        return_exceptions: whether an error takes the place of its request's ranking.
    """
    results: list[Ranking | BaseException] = []
    ahead: deque[Pending | BaseException] = deque()

    def attempt(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except BaseException as error:
            if not (return_exceptions and _is_an_answer(error)):
                raise
            return error

    def next_result() -> Ranking | BaseException:
        pending, number = ahead.popleft(), len(results)
        return pending if isinstance(pending, BaseException) else attempt(lambda: rank(pending, number))

    try:
        for first in range(0, n, window.together):
            numbers = range(first, min(first + window.together, n))
            while len(ahead) + len(numbers) > window.at_once:
                results.append(next_result())
            for number, member in _members(numbers):
                begun = attempt(lambda number=number, member=member: begin(number, member))
                if isinstance(begun, BaseException) and member is not None:
                    member.left()
                ahead.append(begun)
        while ahead:
            results.append(next_result())
        return results
    finally:
        for pending in ahead:
            if isinstance(pending, Pending):
                pending.cancel()


async def rank_side_by_side(
    n: int,
    window: Window,
    begin: Callable[[int, GroupMember | None], Pending],
    rank: Callable[[Pending, int], Awaitable[Ranking]],
    *,
    return_exceptions: bool,
) -> list[Ranking | BaseException]:
    """Rank n requests at the same time; see `rank_in_order`. User sides may start later than ``begin``."""
    # It lets them in in their order, so that a group never waits for room that later ones take.
    room = asyncio.Semaphore(window.at_once)

    async def one(number: int, member: GroupMember | None) -> Ranking:
        try:
            async with room:
                return await rank(begin(number, member), number)
        finally:
            if member is not None:
                member.left()

    tasks: list[asyncio.Task[Ranking]] = []
    for first in range(0, n, window.together):
        numbers = range(first, min(first + window.together, n))
        tasks += [asyncio.ensure_future(one(*each)) for each in _members(numbers)]
    try:
        return await asyncio.gather(*tasks, return_exceptions=return_exceptions)
    finally:
        for task in tasks:
            task.cancel()
        # Until they have ended, so that nothing of them is left when the loop is closed.
        await asyncio.gather(*tasks, return_exceptions=True)


def _members(numbers: Sequence[int]) -> list[tuple[int, GroupMember | None]]:
    """Return the numbers of requests that begin together, with their memberships in a group of several."""
    group = UserGroup(len(numbers)) if len(numbers) > 1 else None
    return [(number, None if group is None else GroupMember(group)) for number in numbers]


def _is_an_answer(error: BaseException) -> bool:
    """Return whether an error is of one request; others, such as interrupts, end the call."""
    kind = type(error)
    return isinstance(error, Exception) or (kind.__module__, kind.__name__) == _PANIC
