"""Plain `retrieve` under `rank_async`: its thread runs the stage too if there is nothing to wait for."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aif_jax.errors import DeadlineExceededError, RequestError, RetrievalError
from aif_jax.serving import Engine, InMemoryUsers
from aif_jax.serving.report import Ranking
from aif_jax.types import Candidates, Request
from support.held import GatedUsers, Held, computed, until
from support.served import Make, World, assert_same
from support.waiting import eventually


def threads_of(ranking: Ranking) -> dict[str, int]:
    return {task.name: task.thread for task in ranking.report.tasks}


class LastRetrieval:
    """A plain retrieve that returns when the user side is done and a compute thread is idle."""

    def __init__(self, make: Make, answer: Any):
        self.answer = answer
        self.engine = make(retrieve=self)

    def __call__(self, request: Request) -> Any:
        workers = self.engine.hooks.services.workers
        assert computed(self.engine)
        assert eventually(lambda: workers.has_idle("compute"))
        return self.answer


def ranked(engine: Engine, user: int = 5, **given: Any) -> Ranking:
    return asyncio.run(engine.rank_async(user, **given))


def idle(engine: Engine) -> None:
    assert until(engine, lambda stats: not any(lane["running"] for lane in stats["scheduler"].values()))


def test_retrieval_in_thread_with_nothing_to_wait_for_runs_stage_there(make: Make, world: World) -> None:
    engine = LastRetrieval(make, Candidates(*world.candidates(30))).engine
    threads, plain = threads_of(ranking := ranked(engine)), engine.rank(5)
    assert threads["stage"] == threads["retrieve"]
    assert_same(ranking, plain)
    assert (ranking.report.rung, ranking.report.retrieval) == (0, "own")
    assert engine.stats()["requests"]["ranked"] == 2


def test_retrieval_in_thread_before_user_side_leaves_stage_to_compute_threads(
    make: Make, users: InMemoryUsers
) -> None:
    source = GatedUsers(users, closed=True)
    engine = make(users=source)
    with ThreadPoolExecutor(1) as caller:
        task = caller.submit(ranked, engine)
        # It was retrieved for, and waits for its user side.
        assert until(engine, lambda stats: stats["requests"].get("begun") and not stats["open_handles"])
        source.gate.set()
        threads = threads_of(task.result(30))
    assert threads["stage"] != threads["retrieve"]


def test_retrieval_in_thread_with_busy_lane_leaves_stage_to_compute_threads(make: Make, world: World) -> None:
    calls = 0

    def retrieve(request: Request) -> Candidates:
        nonlocal calls
        calls += 1
        assert until(engine, lambda stats: stats["scheduler"]["blocking"]["completed"] >= calls)
        return Candidates(*world.candidates(30))

    engine = make(retrieve=retrieve)
    engine.rank(5)  # the state is kept: only the stage needs the compute lane
    held = Held(engine)
    with ThreadPoolExecutor(1) as caller:
        task = caller.submit(ranked, engine)
        assert until(engine, lambda stats: stats["scheduler"]["compute"]["queued"])
        held.release()
        threads = threads_of(task.result(30))
    assert threads["stage"] != threads["retrieve"]


@pytest.mark.parametrize("fallback", [False, True])
def test_retrieval_in_thread_late_runs_no_stage(make: Make, world: World, fallback: bool) -> None:
    given_up = threading.Event()

    def retrieve(request: Request) -> Candidates:
        assert given_up.wait(30)
        return Candidates(*world.candidates(30))

    engine = make(retrieve=retrieve, fallback=world.ids[:7] if fallback else None)
    if fallback:
        ranking = ranked(engine, deadline_ms=200.0)
        assert (ranking.report.retrieval, ranking.report.candidates) == ("fallback", 7)
    else:
        with pytest.raises(DeadlineExceededError, match="retrieval was not done"):
            ranked(engine, deadline_ms=200.0)
    given_up.set()
    idle(engine)
    assert engine.stats()["requests"].get("ranked", 0) == int(fallback)


def test_retrieval_in_thread_stage_is_not_cut_off_by_retrieval_limit(make: Make, world: World) -> None:
    engine = LastRetrieval(make, Candidates(*world.candidates(30))).engine

    def slow(score: Callable[[], Ranking]) -> Ranking:
        ranking = score()
        time.sleep(1.0)  # until the deadline has passed
        return ranking

    engine.hooks.services.around_scoring = slow
    ranking = ranked(engine, deadline_ms=1_000.0)
    assert (ranking.report.rung, ranking.report.retrieval, len(ranking)) == (0, "own", 10)


def test_retrieval_in_thread_cancelled_during_stage_is_not_counted_as_ranked(
    make: Make, world: World
) -> None:
    engine = LastRetrieval(make, Candidates(*world.candidates(30))).engine
    begun, gate = threading.Event(), threading.Event()

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


def test_retrieval_in_thread_malformed_candidates_are_refused(make: Make, world: World) -> None:
    def refused(candidates: Any, **given: Any) -> None:
        ranked(LastRetrieval(make, candidates).engine, **given)

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
