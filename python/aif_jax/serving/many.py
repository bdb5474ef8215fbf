"""Several users in one call: while one is ranked, the user sides of the next ones run."""

from collections import deque
from collections.abc import Callable, Sequence

from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Ranking
from aif_jax.types import UserId


def rank_in_order(
    users: Sequence[UserId],
    at_once: int,
    begin: Callable[[UserId], Pending],
    rank: Callable[[Pending, int], Ranking],
) -> list[Ranking]:
    """Rank for users one after the other, with the requests of the next ones begun already.

    An error ends all; what was begun by then is cancelled.

    Args:
        users: whom to rank for.
        at_once: requests that may be open at a time.
        begin: begins a user's request.
        rank: ranks it, given its place among the users.
    """
    rankings: list[Ranking] = []
    ahead: deque[Pending] = deque()
    try:
        for user in users:
            if len(ahead) == at_once:
                rankings.append(rank(ahead.popleft(), len(rankings)))
            ahead.append(begin(user))
        while ahead:
            rankings.append(rank(ahead.popleft(), len(rankings)))
        return rankings
    finally:
        for pending in ahead:
            pending.cancel()
