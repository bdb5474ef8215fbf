"""Several users in one call: while one is ranked, the user sides of the next ones run."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aif_jax.errors import RequestError
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Ranking
from aif_jax.types import UserId

Context = Mapping[str, Any]


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


def rank_in_order(
    n: int,
    at_once: int,
    begin: Callable[[int], Pending],
    rank: Callable[[Pending, int], Ranking],
    *,
    return_exceptions: bool,
) -> list[Any]:
    """Rank n requests one after the other, with the next ones begun already.

    Unless errors are returned, the first one ends all; what was begun by then is cancelled.

    Args:
        n: requests.
        at_once: how many may be open at a time.
        begin: begins one, given its number.
        rank: ranks what was begun, given its number.
        return_exceptions: whether an error takes the place of its request's ranking.
    """
    results: list[Any] = []
    ahead: deque[Pending | Exception] = deque()

    def begun(number: int) -> Pending | Exception:
        try:
            return begin(number)
        except Exception as error:
            if not return_exceptions:
                raise
            return error

    def ranked(pending: Pending | Exception) -> Ranking | Exception:
        if isinstance(pending, Exception):
            return pending
        try:
            return rank(pending, len(results))
        except Exception as error:
            if not return_exceptions:
                raise
            return error

    try:
        for number in range(n):
            if len(ahead) == at_once:
                results.append(ranked(ahead.popleft()))
            ahead.append(begun(number))
        while ahead:
            results.append(ranked(ahead.popleft()))
        return results
    finally:
        for pending in ahead:
            if isinstance(pending, Pending):
                pending.cancel()


async def rank_side_by_side(
    users: Sequence[UserId],
    at_once: int,
    rank: Callable[[int], Awaitable[Ranking]],
    *,
    return_exceptions: bool,
) -> list[Any]:
    """Rank for users at the same time; see `rank_in_order`.

    Args:
        users: whom to rank for.
        at_once: requests that may be under way at a time.
        rank: ranks for a user, given the place in the list.
        return_exceptions: whether an error takes the place of its user's ranking.
    """
    room = asyncio.Semaphore(at_once)

    async def one(number: int) -> Ranking:
        async with room:
            return await rank(number)

    tasks = [asyncio.ensure_future(one(number)) for number in range(len(users))]
    try:
        return await asyncio.gather(*tasks, return_exceptions=return_exceptions)
    finally:
        for task in tasks:
            task.cancel()
        # Until they have gone, so that nothing is left of them for whoever closes the loop.
        await asyncio.gather(*tasks, return_exceptions=True)
