"""The last step of a request: from its user side and its candidates to the ranking, on the rung in time."""

import time
from collections.abc import Callable

from aif_jax.serving.accounting import Account, RankTimes
from aif_jax.serving.arguments import checked_k
from aif_jax.serving.candidates import Asked, Chosen, complete
from aif_jax.serving.ladder import Choice
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Ranking
from aif_jax.serving.user_side import UserSide


def finish(
    pending: Pending,
    side: UserSide,
    asked: Asked,
    chosen: Chosen | None,
    choice: Choice | None,
    choose: Callable[[Pending, Asked], Chosen],
) -> Ranking:
    """Score candidates for a user side, or what stands in for it, on the rung that is in time.

    Args:
        pending: the request.
        side: its user side.
        asked: what was given to rank.
        chosen: the candidates, if they were checked before.
        choice: the rung, if it is decided.
        choose: checks the candidates otherwise.

    Raises:
        RequestError: candidates, pair features, filters or ``k`` are malformed.
        UnknownItemError: a candidate has no row, under ``missing_items="error"``.
        DeadlineExceededError: the deadline has passed, and no lower rung is allowed.
    """
    ready_s = time.perf_counter()
    generation = pending.generation
    k = checked_k(asked.k, generation.sizes.k, generation.bundle.k_max)
    encoding = side.encoding.copy()
    candidates = complete(chosen or choose(pending, asked), generation, encoding)
    remaining, n, rungs = pending.remaining_ms(), len(candidates.keys), pending.rungs
    choice = choice or rungs.ladder.stage(side.choice, remaining, n, side.state.length)
    if choice.rung < 3 and remaining is not None and remaining <= 0:
        raise pending.too_late("stage")
    prepared_s = time.perf_counter()
    times = RankTimes.of(asked.called_s, chosen, ready_s, prepared_s)
    account = Account(pending, side, candidates, choice, encoding, k, times)
    if choice.rung == 3:
        scored = rungs.by_item_prior(candidates, k)
    else:
        state = side.state
        scored = generation.score(state.leaves, state.length, side.context, candidates, k, account.prepare)
        rungs.ladder.record_rest(n, side.state.length, (time.perf_counter() - ready_s) * 1e3)
    heads = {head: scored.heads[:, number] for number, head in enumerate(generation.bundle.config.heads)}
    best = candidates.ids[scored.order]
    finished_s = time.perf_counter()
    return Ranking(best, scored.scores, heads, account.report(scored, finished_s))
