"""The engine's own retrieval: its kinds, its errors, its overlap with the user side, and the fallback."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    RetrievalError,
)
from aif_jax.serving import Engine, InMemoryUsers, Threads
from aif_jax.types import Candidates, Request, UserRecord
from support.held import GatedUsers, computed, until
from support.served import CONTEXT, K_MAX, PATIENT_MS, Make, World, assert_ranks_as, assert_same, ran, ways

kinds = pytest.mark.parametrize("kind", ["plain", "coroutine"])


def of_kind(kind: str, plain: Callable[[Request], Any]) -> Any:
    """Return a plain retrieve as it is, or as a coroutine function."""

    async def coroutine(request: Request) -> Any:
        return plain(request)

    return plain if kind == "plain" else coroutine


def errors_of(engine: Engine) -> dict[str, int]:
    """Return how often each error was counted."""
    requests = engine.stats()["requests"]
    return {name: count for name, count in requests.items() if name.startswith("error:")}


def retrieval(world: World, kind: str) -> Any:
    ids, pair = world.candidates(30)

    def plain(request: Request) -> Candidates:
        assert request.user == 4
        assert request.k == 7
        assert request.context == {"hour": 3}
        return Candidates(ids, pair)

    async def coroutine(request: Request) -> Candidates:
        await asyncio.sleep(0.001)
        return plain(request)

    class Service:
        async def __call__(self, request: Request) -> Candidates:
            return await coroutine(request)

    return {"plain": plain, "coroutine": coroutine, "object": Service()}[kind]


@pytest.mark.parametrize("kind", ["plain", "coroutine", "object"])
def test_retrieve_plain_or_coroutine_ranks_as_given_candidates(
    make: Make, engine: Engine, world: World, kind: str
) -> None:
    ids, pair = world.candidates(30)
    expected = engine.begin(4, {"hour": 3}).rank(ids, pair, k=7)
    own = make(retrieve=retrieval(world, kind))
    ranked = own.rank(4, context={"hour": 3}, k=7)
    awaited = asyncio.run(own.rank_async(4, context={"hour": 3}, k=7))

    async def from_a_running_loop() -> Any:
        return own.rank(4, context={"hour": 3}, k=7)

    blocking = asyncio.run(from_a_running_loop())
    for ranking in (ranked, awaited, blocking):
        assert_same(ranking, expected)


@ways
@kinds
def test_rank_wrong_k_is_refused_before_retrieval(make: Make, kind: str, way: str) -> None:
    asked: list[Request] = []
    engine = make(retrieve=of_kind(kind, asked.append))
    with pytest.raises(RequestError, match=f"k: got {K_MAX + 1}, expected a whole number from 1 to {K_MAX}"):
        ran(getattr(engine, way), 4, k=K_MAX + 1)
    assert not asked
    assert engine.stats()["requests"]["error:RequestError"] == 1
    engine.close()  # the request has ended: nothing is waited for


def test_rank_without_retrieve_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="made without retrieve"):
        engine.rank(3)


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "a NoneType"),
        ("abc", "a str"),
        ({"ids": [1]}, r"what cannot be ranked: candidates: got a table with the columns \['ids'\]"),
        (3, "a int"),
        ([], "what cannot be ranked: .*there are none"),
        (np.ones(3), "what cannot be ranked: .*float64"),
        (Candidates([1, 2], {"bid": [1.0]}), "what cannot be ranked: pair features of 2 candidates"),
    ],
)
@ways
def test_retrieve_returning_nonsense_is_an_error(make: Make, result: Any, message: str, way: str) -> None:
    engine = make(retrieve=lambda request: result)
    with pytest.raises(RetrievalError, match=f"retrieve returned {message}"):
        ran(getattr(engine, way), 3)
    assert engine.stats()["open_handles"] == 0
    assert errors_of(engine) == {"error:RetrievalError": 1}


@ways
@kinds
def test_retrieve_raising_is_an_error_with_its_cause(make: Make, kind: str, way: str) -> None:
    def plain(request: Request) -> Any:
        raise KeyError("shard 7")

    engine = make(retrieve=of_kind(kind, plain))
    with pytest.raises(RetrievalError, match="retrieve raised KeyError for user 3: 'shard 7'") as caught:
        ran(getattr(engine, way), 3)
    assert isinstance(caught.value.__cause__, KeyError)
    assert engine.stats()["requests"]["error:RetrievalError"] == 1
    assert engine.stats()["open_handles"] == 0


@kinds
@ways
def test_retrieve_raising_timeout_is_not_taken_for_the_deadline(make: Make, kind: str, way: str) -> None:
    def plain(request: Request) -> Any:
        raise TimeoutError("shard 7 is slow")

    engine = make(retrieve=of_kind(kind, plain))
    with pytest.raises(RetrievalError, match="retrieve raised TimeoutError for user 3: shard 7 is slow"):
        ran(getattr(engine, way), 3, deadline_ms=PATIENT_MS)


# --- time ------------------------------------------------------------------------------------------


@ways
@kinds
def test_rank_late_retrieval_is_named(make: Make, world: World, kind: str, way: str) -> None:
    def plain(request: Request) -> Any:
        time.sleep(0.3)
        return world.ids[:5]

    async def coroutine(request: Request) -> Any:
        await asyncio.sleep(10)

    engine = make(retrieve=plain if kind == "plain" else coroutine)
    with pytest.raises(DeadlineExceededError, match=r"make (retrieval|it)"):
        ran(getattr(engine, way), 5, deadline_ms=200)  # the user side is in time on a busy machine too


@pytest.mark.parametrize("way", ["begin", "rank", "rank_async"])
@kinds
def test_rank_user_side_overlaps_retrieval(
    make: Make, world: World, users: InMemoryUsers, way: str, kind: str
) -> None:
    """Retrieval and the user source meet, and retrieval is over after the user side."""
    meeting = threading.Barrier(2)

    def source(user: Any) -> UserRecord | None:
        meeting.wait(30)
        return users(user)

    def plain(request: Request) -> Candidates:
        meeting.wait(30)
        assert computed(engine)
        return Candidates(*world.candidates(30))

    async def coroutine(request: Request) -> Candidates:
        return await asyncio.to_thread(plain, request)

    engine = make(users=source, retrieve=plain if kind == "plain" else coroutine)
    if way == "begin":
        pending = engine.begin(5)
        found = plain(Request(5))
        report = pending.rank(found.ids, found.pair).report
    else:
        report = ran(getattr(engine, way), 5).report
    assert report.user_state == "computed"
    assert 0 < report.user_fetch_ms <= report.user_side_ms
    assert 0 < report.hidden_ms <= min(report.user_side_ms, report.retrieval_ms)


@pytest.mark.parametrize("way", ["rank", "rank_async", "rank_many"])
def test_retrieve_older_than_pending_age_does_not_expire(make: Make, world: World, way: str) -> None:
    def retrieve(request: Request) -> Any:
        time.sleep(0.05)
        assert engine.stats()["open_handles"] > 0  # looks for expired ones
        return world.ids[:5]

    engine = make(retrieve=retrieve, max_pending_age_s=0.01)
    ran(getattr(engine, way), [3, 4] if way == "rank_many" else 3)
    assert "expired" not in engine.stats()["requests"]
    assert engine.stats()["open_handles"] == 0


async def fill_queue(engine: Engine, source: GatedUsers) -> list[Any]:
    """Begin requests until the one blocking thread is held by a user source, and its queue is full."""
    running = [asyncio.ensure_future(engine.rank_async(1))]
    assert await asyncio.to_thread(source.asked.wait, 30)
    running.append(asyncio.ensure_future(engine.rank_async(2)))
    full = asyncio.to_thread(until, engine, lambda stats: stats["scheduler"]["blocking"]["queued"])
    assert await full
    return running


def test_retrieve_of_request_taken_on_is_not_refused_by_full_queue(make: Make, users: InMemoryUsers) -> None:
    source = GatedUsers(users, closed=True)
    engine = make(users=source, threads=Threads(blocking=1, max_queued=1))

    async def flood() -> list[Any]:
        running = await fill_queue(engine, source)
        with pytest.raises(OverloadedError):
            await engine.rank_async(3)
        source.gate.set()
        return [*await asyncio.gather(*running), await engine.rank_async(3)]

    assert [len(ranking) for ranking in asyncio.run(flood())] == [10, 10, 10]


def test_retrieve_full_queue_with_deadline_degrades(make: Make, users: InMemoryUsers) -> None:
    source = GatedUsers(users, closed=True)
    engine = make(users=source, threads=Threads(blocking=1, max_queued=1))

    async def flood() -> Any:
        running = await fill_queue(engine, source)
        late = asyncio.ensure_future(engine.rank_async(3, deadline_ms=PATIENT_MS))
        assert await asyncio.to_thread(until, engine, lambda stats: stats["requests"]["begun"] == 3)
        source.gate.set()
        await asyncio.gather(*running)
        return await late

    ranking = asyncio.run(flood())
    assert len(ranking) == 10
    assert (ranking.report.rung, ranking.report.rung_reason) == (2, "overloaded")
    assert ranking.report.retrieval == "own"


# --- fallback --------------------------------------------------------------------------------------


async def hanging_coroutine(request: Request) -> Any:
    await asyncio.sleep(30)


def raising(request: Request) -> Any:
    raise OSError("no route")


@ways
@kinds
def test_retrieve_hanging_gives_way_to_fallback(make: Make, world: World, way: str, kind: str) -> None:
    released = threading.Event()
    ids, pair = world.candidates(30)

    def hanging(request: Request) -> Any:
        assert released.wait(30)
        return []

    retrieve = hanging if kind == "plain" else hanging_coroutine
    engine = make(k=K_MAX, retrieve=retrieve, fallback=Candidates(ids, pair))
    try:
        # It is answered before retrieval is released.
        report = (ranking := ran(getattr(engine, way), 5, CONTEXT, deadline_ms=100)).report
    finally:
        released.set()
    assert (report.retrieval, report.retrieval_reason) == ("fallback", "late")
    if report.rung == 0:  # all but always: the user side has had all the time
        assert_ranks_as(ranking, ids, *world.scores(world.record(5, 15), ids, pair, CONTEXT))
    assert engine.stats()["requests"]["fallback:late"] == 1


@ways
@pytest.mark.parametrize("deadline_ms", [None, PATIENT_MS])
@pytest.mark.parametrize(
    ("retrieve", "reason"),
    [
        (raising, "raised OSError"),
        (lambda request: None, "not candidates"),
        (lambda request: [], "not candidates"),
        (lambda request: [1.5, 2.5], "not candidates"),
        (lambda request: Candidates([1, 2], {"bid": [1.0]}), "not candidates"),
    ],
)
def test_retrieve_failing_gives_way_to_fallback(
    make: Make, world: World, retrieve: Any, reason: str, deadline_ms: float | None, way: str
) -> None:
    ids, pair = world.candidates(30)
    asked: list[Request] = []

    def fallback(request: Request) -> Candidates:
        asked.append(request)
        return Candidates(ids, pair)

    engine = make(k=K_MAX, retrieve=retrieve, fallback=fallback)
    ranking = ran(getattr(engine, way), 5, CONTEXT, deadline_ms=deadline_ms)
    report = ranking.report
    assert (report.retrieval, report.retrieval_reason, report.rung) == ("fallback", reason, 0)
    assert [(request.user, request.context) for request in asked] == [(5, CONTEXT)]
    assert_ranks_as(ranking, ids, *world.scores(world.record(5, 15), ids, pair, CONTEXT))
    with pytest.raises(RetrievalError):
        ran(getattr(make(retrieve=retrieve), way), 5, CONTEXT, deadline_ms=deadline_ms)


@ways
def test_retrieve_in_time_is_used_before_fallback(make: Make, world: World, way: str) -> None:
    ids, pair = world.candidates(30)
    engine = make(retrieve=lambda request: Candidates(ids, pair), fallback=world.ids[:3])
    report = ran(getattr(engine, way), 5, deadline_ms=PATIENT_MS).report
    assert (report.retrieval, report.retrieval_reason, report.candidates) == ("own", None, 30)
    assert "fallback:late" not in engine.stats()["requests"]
    assert engine.begin(5).rank(ids).report.retrieval == "caller"


def test_fallback_malformed_is_refused(make: Make, world: World) -> None:
    for given, message in (
        ("abc", "got|a str"), ([], "there are no candidates"), (hanging_coroutine, "a coroutine function"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"fallback: .*({message})"):
            make(fallback=given)
    for fallback in (raising, lambda request: None):
        with pytest.raises(RetrievalError, match=r"fallback raised OSError|returned"):
            make(retrieve=raising, fallback=fallback).rank(5)
