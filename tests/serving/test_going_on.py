"""A plain `retrieve` under `rank_async` goes on with the stage in its own thread if nothing is waited for."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import DeadlineExceededError, RequestError, RetrievalError
from aif_jax.serving import Engine, InMemoryUsers
from aif_jax.serving.report import Ranking
from aif_jax.types import Candidates, Request
from support.held import Held, until
from support.served import Make, World


def threads_of(ranking: Ranking) -> dict[str, int]:
    return {task.name: task.thread for task in ranking.report.tasks}


def after(seconds: float, world: World) -> Callable[[Request], Candidates]:
    """A retrieval that takes a while, so that the user side is done before it."""

    def retrieve(request: Request) -> Candidates:
        time.sleep(seconds)
        return Candidates(*world.candidates(30))

    return retrieve


def ranked(engine: Engine, user: int = 5, **given: Any) -> Ranking:
    return asyncio.run(engine.rank_async(user, **given))


def idle(engine: Engine) -> None:
    assert until(engine, lambda stats: not stats["scheduler"]["compute"]["running"])


def test_the_stage_runs_where_retrieval_ran(make: Make, world: World) -> None:
    engine = make(retrieve=after(0.2, world))
    threads, plain = threads_of(ranking := ranked(engine)), engine.rank(5)
    assert threads["stage"] == threads["retrieve"]
    np.testing.assert_array_equal(ranking.ids, plain.ids)
    np.testing.assert_array_equal(ranking.scores, plain.scores)
    assert (ranking.report.rung, ranking.report.retrieval) == (0, "own")
    assert engine.stats()["requests"]["ranked"] == 2


def test_nothing_is_waited_for_in_the_thread_of_retrieval(
    make: Make, users: InMemoryUsers, world: World
) -> None:
    def slow(user: Any) -> Any:
        time.sleep(0.2)
        return users(user)

    late = ranked(make(users=slow))
    assert threads_of(late)["stage"] != threads_of(late)["retrieve"], "the user side was late"
    engine = make(retrieve=after(0.1, world))
    engine.rank(5)  # the state is kept: only the stage needs the compute lane
    held = Held(engine)
    threading.Timer(0.3, held.release).start()
    full = ranked(engine)
    assert threads_of(full)["stage"] != threads_of(full)["retrieve"], "the compute lane was full"


@pytest.mark.parametrize("fallback", [False, True])
def test_late_retrieval_does_not_go_on(make: Make, world: World, fallback: bool) -> None:
    came_back = threading.Event()

    def retrieve(request: Request) -> Candidates:
        try:
            return after(0.4, world)(request)
        finally:
            came_back.set()

    engine = make(retrieve=retrieve, fallback=world.ids[:7] if fallback else None)
    if fallback:
        ranking = ranked(engine, deadline_ms=200.0)
        assert (ranking.report.retrieval, ranking.report.candidates) == ("fallback", 7)
    else:
        with pytest.raises(DeadlineExceededError, match="retrieval was not done"):
            ranked(engine, deadline_ms=200.0)
    assert came_back.wait(20)
    idle(engine)
    assert engine.stats()["requests"].get("ranked", 0) == int(fallback)


def test_the_limit_of_retrieval_is_not_that_of_the_stage(make: Make, world: World) -> None:
    engine = make(retrieve=after(0.1, world))

    def slow(score: Callable[[], Ranking]) -> Ranking:
        ranking = score()
        time.sleep(0.5)
        return ranking

    engine.hooks.services.around_scoring = slow
    ranking = ranked(engine, deadline_ms=400.0)
    assert (ranking.report.rung, ranking.report.retrieval, len(ranking)) == (0, "own", 10)


def test_a_caller_that_is_cancelled_while_it_goes_on_was_not_ranked_for(make: Make, world: World) -> None:
    engine, begun, gate = make(retrieve=after(0.1, world)), threading.Event(), threading.Event()

    def held(score: Callable[[], Ranking]) -> Ranking:
        begun.set()
        assert gate.wait(20)
        return score()

    engine.hooks.services.around_scoring = held

    async def cancelled() -> bool:
        task = asyncio.ensure_future(engine.rank_async(5))
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancelled())
    gate.set()
    idle(engine)
    requests = engine.stats()["requests"]
    assert (requests.get("ranked", 0), requests["abandoned"], engine.stats()["open_handles"]) == (0, 1, 0)


def test_what_goes_wrong_on_the_way_is_told_as_ever(make: Make, world: World) -> None:
    def refused(candidates: Any, **given: Any) -> None:
        def retrieve(request: Request) -> Any:
            time.sleep(0.1)
            return candidates

        ranked(make(retrieve=retrieve), **given)

    with pytest.raises(RetrievalError, match=r"retrieve returned a int \(7\)"):
        refused(7)
    with pytest.raises(
        RetrievalError, match="retrieve returned what cannot be ranked: candidates: there are none"
    ):
        refused([])
    with pytest.raises(RetrievalError, match="retrieve returned what cannot be ranked: pair features"):
        refused(Candidates(world.ids[:3], {"bid": [1.0]}))
    with pytest.raises(RequestError, match="k: got 0"):
        refused(world.ids[:3], k=0)
