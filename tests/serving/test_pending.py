"""Handles of requests: arguments, deadlines, cancellation, expiry, overload."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import (
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    UserSourceError,
)
from aif_jax.serving import Engine, InMemoryUsers, Report, Threads
from aif_jax.serving import engine as engine_module
from aif_jax.serving.request import Phase
from aif_jax.types import Request, UserRecord
from support.held import GatedUsers, until
from support.served import K_MAX, Make, World, ran, ways
from support.waiting import eventually

# --- arguments -------------------------------------------------------------------------------------


def test_begin_malformed_context_is_refused(engine: Engine, world: World) -> None:
    ids, _ = world.candidates(4)
    with pytest.raises(RequestError, match=r"context: features \['weather'\].*\['hour'\]"):
        engine.begin(3, {"weather": "rain"})
    with pytest.raises(RequestError, match="context: got a list"):
        engine.begin(3, ["hour"])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"context: .*'hour'"):
        engine.begin(3, {"hour": "noon"}).rank(ids)


@pytest.mark.parametrize("k", [0, -1, K_MAX + 1, 2.5, True])
def test_rank_impossible_k_is_refused(engine: Engine, world: World, k: Any) -> None:
    with pytest.raises(RequestError, match=rf"k: got {k!r}, expected a whole number from 1 to {K_MAX}"):
        engine.begin(3).rank(world.ids[:5], k=k)


def test_begin_malformed_user_or_deadline_is_refused(engine: Engine) -> None:
    for user in (None, 1.5, ["ann"], True):
        with pytest.raises(RequestError, match="user: got"):
            engine.begin(user)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="deadline_ms: got 0"):
        engine.begin(3, deadline_ms=0)


def test_rank_k_beyond_candidates_gives_all(engine: Engine, world: World) -> None:
    ranking = engine.begin(3).rank(world.ids[:4], {"bid": np.ones(4)}, k=15)
    assert (len(ranking), ranking.report.k_asked, ranking.report.k_given) == (4, 15, 4)


@pytest.mark.parametrize("deadline_ms", [float("inf"), 1e300, float("nan"), -1])
def test_begin_impossible_deadline_is_refused(engine: Engine, deadline_ms: float) -> None:
    with pytest.raises(RequestError, match=r"deadline_ms: got .*up to 1e\+09 \(11 days\)"):
        engine.begin(3, deadline_ms=deadline_ms)


def test_begin_longest_deadline_is_ranked(engine: Engine, world: World) -> None:
    assert len(engine.begin(3, deadline_ms=1e9).rank(world.ids[:5])) == 5


def test_begin_context_changed_afterwards_is_not_read(make: Make, users: InMemoryUsers, world: World) -> None:
    source = GatedUsers(users, closed=True)
    engine = make(users=source)
    context, pair = {"hour": 3}, {"bid": np.ones(30)}
    pending = engine.begin(5, context)
    context["hour"] = 9
    source.gate.set()
    ranking = pending.rank(world.ids[:30], pair)
    assert ranking.scores.tolist() == engine.begin(5, {"hour": 3}).rank(world.ids[:30], pair).scores.tolist()
    assert ranking.scores.tolist() != engine.begin(5, {"hour": 9}).rank(world.ids[:30], pair).scores.tolist()


# --- time ------------------------------------------------------------------------------------------


def test_begin_slow_user_source_returns_at_once(make: Make, users: InMemoryUsers, world: World) -> None:
    source = GatedUsers(users, closed=True)
    engine = make(users=source)
    pending = engine.begin(5)  # returns, though the source has not answered
    reports: list[Report] = []
    ranking = threading.Thread(target=lambda: reports.append(pending.rank(world.ids[:10]).report))
    ranking.start()
    assert eventually(lambda: pending.phase is Phase.RANKING)
    source.gate.set()
    ranking.join(30)
    (report,) = reports
    assert 0 < report.wait_ms <= report.total_ms


@ways
def test_rank_late_user_source_is_named(make: Make, users: InMemoryUsers, world: World, way: str) -> None:
    engine = make(users=GatedUsers(users, closed=True), on_deadline="error")
    pending = engine.begin(5, deadline_ms=30)
    with pytest.raises(
        DeadlineExceededError, match="deadline of 30 ms passed and its user source has not answered"
    ):
        ran(getattr(pending, way), world.ids[:5])
    assert engine.stats()["requests"]["error:DeadlineExceededError"] == 1


def test_rank_deadline_that_is_met_is_reported(engine: Engine, world: World) -> None:
    report = engine.begin(5, deadline_ms=60_000).rank(world.ids[:5]).report
    assert (report.deadline_ms, report.overrun_ms) == (60_000, 0.0)


# --- cancellation ----------------------------------------------------------------------------------


def test_pending_cancelled_during_fetch_runs_no_user_program(make: Make, users: InMemoryUsers) -> None:
    source = GatedUsers(users, closed=True)
    engine = make(users=source)
    pending = engine.begin(5)
    assert source.asked.wait(30)
    pending.cancel()
    source.gate.set()
    assert until(engine, lambda stats: stats["scheduler"]["blocking"]["completed"])
    assert engine.stats()["scheduler"]["compute"]["submitted"] == 0


@pytest.mark.parametrize("way", ["begin", "retrieving", "waiting"])
def test_rank_async_cancelled_is_counted_as_abandoned(
    make: Make, users: InMemoryUsers, world: World, way: str
) -> None:
    source, retrieving = GatedUsers(users, closed=True), asyncio.Event()

    async def retrieve(request: Request) -> Any:
        retrieving.set()
        if way == "retrieving":
            await asyncio.sleep(60)
        return world.ids[:5]

    engine = make(users=source, retrieve=retrieve)
    unranked = engine.hooks.services.open

    async def ask() -> None:
        request = engine.begin(5).rank_async(world.ids[:5]) if way == "begin" else engine.rank_async(5)
        task = asyncio.create_task(request)
        assert await asyncio.to_thread(source.asked.wait, 30)
        if way == "retrieving":
            await retrieving.wait()
        else:
            assert await asyncio.to_thread(
                eventually, lambda: not len(unranked)
            )  # it waits for its user side
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    source.gate.set()
    engine.close()
    stats = engine.stats()
    assert stats["requests"] == {"begun": 1, "abandoned": 1}
    assert stats["open_handles"] == 0
    assert stats["scheduler"]["compute"]["submitted"] == 0, "the user program did not run for nobody"


def test_rank_async_cancelled_during_stage_is_not_counted_as_ranked(make: Make, world: World) -> None:
    engine = make()
    reached, go_on = threading.Event(), threading.Event()

    def slow(score: Any) -> Any:
        reached.set()
        assert go_on.wait(10)
        return score()

    engine.hooks.services.around_scoring = slow

    async def ask() -> None:
        task = asyncio.create_task(engine.begin(5).rank_async(world.ids[:5]))
        assert await asyncio.to_thread(reached.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(ask())
    engine.close()
    requests = engine.stats()["requests"]
    assert (requests["begun"], requests["abandoned"], requests.get("ranked", 0)) == (1, 1, 0)


def test_pending_cancelled_twice_is_counted_once(make: Make) -> None:
    engine = make()
    pending = engine.begin(5)
    pending.cancel()
    pending.cancel()
    assert engine.stats()["requests"] == {"begun": 1, "abandoned": 1}
    assert engine.stats()["open_handles"] == 0


# --- life ------------------------------------------------------------------------------------------


def test_pending_used_handle_cannot_be_ranked(engine: Engine, world: World) -> None:
    pending = engine.begin(5)
    pending.rank(world.ids[:5])
    with pytest.raises(RequestError, match="it was ranked already; begin a new request"):
        pending.rank(world.ids[:5])
    cancelled = engine.begin(5)
    cancelled.cancel()
    with pytest.raises(RequestError, match="it was cancelled"):
        cancelled.rank(world.ids[:5])


def test_pending_older_than_its_age_expires_and_is_counted(
    make: Make, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(max_pending_age_s=30.0)
    with monkeypatch.context() as patched:
        # Requests that begin are a minute old.
        patched.setattr(
            engine_module, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() - 60.0)
        )
        forgotten = [engine.begin(user) for user in range(3)]
    assert len(engine.hooks.services.open) == 3
    fresh = engine.begin(5)
    assert engine.stats()["requests"]["expired"] == 3
    assert engine.stats()["open_handles"] == 1
    with pytest.raises(RequestError, match=r"it expired after 30 s"):
        forgotten[0].rank(world.ids[:5])
    assert len(fresh.rank(world.ids[:5])) == 5


def test_begin_full_queue_is_refused_at_once(make: Make, users: InMemoryUsers, world: World) -> None:
    source = GatedUsers(users, closed=True)
    engine = make(users=source, threads=Threads(blocking=1, max_queued=2))
    accepted: list[Any] = []

    def flood() -> None:
        for _ in range(10):
            accepted.append(engine.begin(5))  # noqa: PERF401, it raises half-way

    with pytest.raises(OverloadedError):
        flood()
    assert 1 <= len(accepted) <= 4
    assert engine.stats()["open_handles"] == len(accepted)
    source.gate.set()
    assert all(len(pending.rank(world.ids[:5])) == 5 for pending in accepted)


def test_engine_one_error_raised_again_is_counted_each_time(make: Make, world: World) -> None:
    down = ConnectionError("feature store is down")

    def source(user: Any) -> UserRecord:
        raise down

    engine = make(users=source, retrieve=lambda request: world.ids[:5])
    for _ in range(2):
        with pytest.raises(UserSourceError):
            engine.rank(3)
        with pytest.raises(UserSourceError):
            ran(engine.rank_async, 3)
    assert engine.stats()["requests"]["error:UserSourceError"] == 4
