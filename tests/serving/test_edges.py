"""What happens at the edges: an engine that closes, clocks that run out, arguments that change or are odd."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import (
    ConfigError,
    OverloadedError,
    RequestError,
    RetrievalError,
    SchedulerError,
    UnknownUserError,
)
from aif_jax.nearline import Tables
from aif_jax.nearline.store import RowStore
from aif_jax.serving import Engine, EngineConfig, InMemoryUsers, Shapes, Threads, UserStateCache
from aif_jax.types import Request, UserRecord
from support.served import World

SMALL: dict[str, Any] = {"k": 5, "shapes": Shapes(candidates=(32,), histories=(24,))}


@pytest.fixture
def make(bundle: Bundle, tables: Tables, users: InMemoryUsers) -> Iterator[Any]:
    """Make engines that are closed after the test."""
    made: list[Engine] = []

    def make_engine(source: Any = users, retrieve: Any = None, **settings: Any) -> Engine:
        config = EngineConfig(**{**SMALL, **settings})
        engine = Engine(bundle, tables, users=source, retrieve=retrieve, config=config)
        made.append(engine)
        return engine

    yield make_engine
    for engine in made:
        engine.close()


class Gate:
    """A user source that answers when it is told to."""

    def __init__(self, users: InMemoryUsers):
        self.users = users
        self.asked, self.open = threading.Event(), threading.Event()

    def __call__(self, user: Any) -> UserRecord | None:
        self.asked.set()
        assert self.open.wait(10)
        return self.users(user)


# -- closing --------------------------------------------------------------------------------------


def test_closing_ends_requests_whose_coroutine_retrieves(make: Any) -> None:
    started, errors = threading.Event(), []

    async def retrieve(request: Request) -> Any:
        started.set()
        await asyncio.sleep(60)

    engine = make(retrieve=retrieve)

    def ask() -> None:
        try:
            engine.rank(3)
        except SchedulerError as error:
            errors.append(str(error))

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    assert started.wait(10)
    engine.close()
    asker.join(10)
    assert len(errors) == 1
    # Retrieval is begun before the user side: which of them met the end, depends.
    assert re.fullmatch("the engine was closed while (retrieve|a request) was under way; .*", errors[0])
    assert engine.closed


@pytest.mark.parametrize("where", ["coroutine of rank", "plain of rank_async", "user source"])
def test_an_engine_that_is_closed_inside_its_own_threads_refuses_and_goes_on(
    make: Any, users: InMemoryUsers, world: World, where: str
) -> None:
    closing = True

    def close() -> None:
        if closing:
            engine.close()

    def plain(request: Request) -> Any:
        close()
        return world.ids[:5]

    async def coroutine(request: Request) -> Any:
        return plain(request)

    def source(user: Any) -> UserRecord | None:
        close()
        return users(user)

    retrieve = coroutine if where.startswith("coroutine") else plain if where.startswith("plain") else None
    engine = make(users if retrieve else source, retrieve)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            if retrieve is None:
                engine.begin(3).rank(world.ids[:5])
            else:
                engine.rank(3) if retrieve is coroutine else asyncio.run(engine.rank_async(3))
        except Exception as error:
            errors.append(error)

    # In a thread that need not end, because this was a wait without an end once.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(10)
    assert not asker.is_alive()
    assert [type(error) for error in errors] == [RetrievalError if retrieve is plain else SchedulerError]
    assert "close: called inside a retrieve or a user source" in str(errors[0])
    assert not engine.closed
    closing = False
    ask()
    assert len(errors) == 1
    engine.close()
    assert engine.closed


def test_a_coroutine_of_the_callers_own_loop_may_close_the_engine(make: Any, world: World) -> None:
    async def retrieve(request: Request) -> Any:
        engine.close()
        return world.ids[:5]

    engine = make(retrieve=retrieve)
    with pytest.raises(RequestError, match="the engine was closed"):
        asyncio.run(asyncio.wait_for(engine.rank_async(3), 10))
    assert engine.closed


def test_a_closed_engine_starts_no_event_loop(make: Any) -> None:
    engines: list[Engine] = []

    async def retrieve(request: Request) -> Any:
        raise AssertionError("not reached")

    def closing(request: Request) -> Any:
        engines[0].close()
        return retrieve(request)

    engines.append(make(retrieve=closing))
    before = set(threading.enumerate())
    with pytest.raises(SchedulerError, match="the engine was closed"):
        engines[0].rank(3)
    assert not set(threading.enumerate()) - before


# -- giving up ------------------------------------------------------------------------------------


def test_a_request_given_up_during_the_fetch_runs_no_program(make: Any, users: InMemoryUsers) -> None:
    gate = Gate(users)
    engine = make(gate)
    pending = engine.begin(5)
    assert gate.asked.wait(10)
    pending.cancel()
    gate.open.set()
    while engine.stats()["scheduler"]["blocking"]["completed"] == 0:
        time.sleep(0.01)
    assert engine.stats()["scheduler"]["compute"]["submitted"] == 0


@pytest.mark.parametrize("way", ["begin", "retrieving", "waiting"])
def test_a_cancelled_coroutine_is_counted_as_abandoned(
    make: Any, users: InMemoryUsers, world: World, way: str
) -> None:
    gate = Gate(users)

    async def retrieve(request: Request) -> Any:
        if way == "retrieving":
            await asyncio.sleep(60)
        return world.ids[:5]

    engine = make(gate, retrieve)

    async def ask() -> None:
        request = engine.begin(5).rank_async(world.ids[:5]) if way == "begin" else engine.rank_async(5)
        task = asyncio.create_task(request)
        await asyncio.to_thread(gate.asked.wait, 10)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    gate.open.set()
    engine.close()
    stats = engine.stats()
    assert stats["requests"] == {"begun": 1, "abandoned": 1}
    assert stats["open_handles"] == 0
    assert stats["scheduler"]["compute"]["submitted"] == 0, "the user program did not run for nobody"


def test_a_request_cancelled_during_the_stage_is_not_counted_as_ranked(make: Any, world: World) -> None:
    engine = make()
    reached, go_on = threading.Event(), threading.Event()

    def slow(score: Any) -> Any:
        reached.set()
        assert go_on.wait(10)
        return score()

    engine.hooks.services.around_scoring = slow

    async def ask() -> None:
        task = asyncio.create_task(engine.begin(5).rank_async(world.ids[:5]))
        await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(ask())
    engine.close()
    requests = engine.stats()["requests"]
    assert (requests["begun"], requests["abandoned"], requests.get("ranked", 0)) == (1, 1, 0)


def test_cancelled_handles_are_counted_once(make: Any) -> None:
    engine = make()
    pending = engine.begin(5)
    pending.cancel()
    pending.cancel()
    assert engine.stats()["requests"] == {"begun": 1, "abandoned": 1}
    assert engine.stats()["open_handles"] == 0


def test_what_rank_many_had_begun_is_abandoned_when_an_error_ends_it(make: Any, world: World) -> None:
    engine = make(retrieve=lambda request: world.ids[:5], threads=Threads(blocking=3))
    with pytest.raises(UnknownUserError):
        engine.rank_many([1, "nobody", 2, 3, 4])
    requests = engine.stats()["requests"]
    counted = [requests[name] for name in ("begun", "ranked", "error:UnknownUserError", "abandoned")]
    # All five make up one group.
    assert counted == [5, 1, 1, 3]


@pytest.mark.parametrize("way", ["rank", "rank_async", "rank_many"])
def test_slow_retrieval_of_the_engine_does_not_expire(make: Any, world: World, way: str) -> None:
    def retrieve(request: Request) -> Any:
        time.sleep(0.05)
        assert engine.stats()["open_handles"] > 0  # looks for expired ones
        return world.ids[:5]

    engine = make(retrieve=retrieve, max_pending_age_s=0.01)
    if way == "rank":
        engine.rank(3)
    elif way == "rank_async":
        asyncio.run(engine.rank_async(3))
    else:
        engine.rank_many([3, 4])
    assert "expired" not in engine.stats()["requests"]
    assert engine.stats()["open_handles"] == 0


def test_rank_many_takes_more_users_than_the_queue_holds(make: Any, world: World) -> None:
    engine = make(retrieve=lambda request: world.ids[:5], threads=Threads(max_queued=2))
    assert len(engine.rank_many([user % 10 for user in range(50)])) == 50


# -- blame ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
@pytest.mark.parametrize("way", ["rank", "rank_async"])
def test_a_timeout_inside_retrieve_is_not_the_deadline(make: Any, kind: str, way: str) -> None:
    def plain(request: Request) -> Any:
        raise TimeoutError("shard 7 is slow")

    async def coroutine(request: Request) -> Any:
        return plain(request)

    engine = make(retrieve=plain if kind == "plain" else coroutine)
    with pytest.raises(RetrievalError, match="retrieve raised TimeoutError for user 3: shard 7 is slow"):
        engine.rank(3, deadline_ms=6e4) if way == "rank" else asyncio.run(
            engine.rank_async(3, deadline_ms=6e4)
        )


def test_a_full_queue_refuses_requests_and_not_the_retrieval_of_one_that_was_taken_on(
    make: Any, users: InMemoryUsers, world: World
) -> None:
    gate = Gate(users)
    engine = make(gate, lambda request: world.ids[:5], threads=Threads(blocking=1, max_queued=1))

    async def flood() -> list[Any]:
        running = [asyncio.ensure_future(engine.rank_async(1))]
        assert await asyncio.to_thread(gate.asked.wait, 10)
        running.append(asyncio.ensure_future(engine.rank_async(2)))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError):
            await engine.rank_async(3)
        gate.open.set()
        return [*await asyncio.gather(*running), await engine.rank_async(3)]

    assert [len(ranking) for ranking in asyncio.run(flood())] == [5, 5, 5]


def test_a_full_queue_degrades_a_request_with_a_deadline_and_retrieves_for_it(
    make: Any, users: InMemoryUsers, world: World
) -> None:
    gate = Gate(users)
    engine = make(gate, lambda request: world.ids[:5], threads=Threads(blocking=1, max_queued=1))

    async def flood() -> Any:
        running = [asyncio.ensure_future(engine.rank_async(1))]
        assert await asyncio.to_thread(gate.asked.wait, 10)
        running.append(asyncio.ensure_future(engine.rank_async(2)))
        await asyncio.sleep(0.05)
        late = asyncio.ensure_future(engine.rank_async(3, deadline_ms=20_000.0))
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(*running)
        return await late

    ranking = asyncio.run(flood())
    assert len(ranking) == 5
    assert (ranking.report.rung, ranking.report.rung_reason) == (2, "overloaded")
    assert ranking.report.retrieval == "own"


def test_one_error_raised_again_and_again_is_counted_each_time(make: Any, world: World) -> None:
    down = ConnectionError("feature store is down")

    def source(user: Any) -> UserRecord:
        raise down

    engine = make(source, lambda request: world.ids[:5])
    for _ in range(2):
        with pytest.raises(ConnectionError):
            engine.rank(3)
        with pytest.raises(ConnectionError):
            asyncio.run(engine.rank_async(3))
    assert engine.stats()["requests"]["error:ConnectionError"] == 4


# -- odd arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline_ms", [float("inf"), 1e300, float("nan"), -1])
def test_deadlines_that_no_clock_can_count(engine: Engine, deadline_ms: float) -> None:
    with pytest.raises(RequestError, match=r"deadline_ms: got .*at most 1e\+09 \(11 days\)"):
        engine.begin(3, deadline_ms=deadline_ms)


def test_the_longest_deadline_works(engine: Engine, world: World) -> None:
    assert len(engine.begin(3, deadline_ms=1e9).rank(world.ids[:5])) == 5


@pytest.mark.parametrize("collection", [set, tuple, lambda ids: dict.fromkeys(ids).keys()])
def test_candidates_in_any_collection(engine: Engine, world: World, collection: Any) -> None:
    ids = world.ids[:5].tolist()
    assert sorted(engine.begin(3).rank(collection(ids)).ids.tolist()) == sorted(ids)


def test_a_history_may_be_a_view(make: Any, world: World) -> None:
    record = world.record(5)
    reversed_twice = UserRecord(
        record.features, np.array(record.items[::-1])[::-1], np.array(record.types[::-1])[::-1], revision=1
    )
    pair = {"bid": np.ones(5)}
    engine = make({1: record, 2: reversed_twice}.get)
    one, two = (engine.begin(user).rank(world.ids[:5], pair) for user in (1, 2))
    assert one.scores.tolist() == two.scores.tolist()


def test_a_context_that_changes_after_begin(make: Any, users: InMemoryUsers, world: World) -> None:
    gate = Gate(users)
    engine = make(gate)
    context, pair = {"hour": 3}, {"bid": np.ones(30)}
    pending = engine.begin(5, context)
    context["hour"] = 9
    gate.open.set()
    ranking = pending.rank(world.ids[:30], pair)
    assert ranking.scores.tolist() == engine.begin(5, {"hour": 3}).rank(world.ids[:30], pair).scores.tolist()
    assert ranking.scores.tolist() != engine.begin(5, {"hour": 9}).rank(world.ids[:30], pair).scores.tolist()


def test_user_ids_that_have_no_utf8_form(make: Any, world: World) -> None:
    engine = make(lambda user: world.record(1))
    states = [engine.begin("\ud800").rank(world.ids[:5]).report.user_state for _ in range(2)]
    assert states == ["computed", "hit"]


@pytest.mark.parametrize("error", [OverloadedError("no row is free"), MemoryError()])
def test_a_state_that_finds_no_room_is_counted_and_its_request_goes_on(
    make: Any, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # The cache says so when a reader has been inside it for very long, which Python cannot bring about.
    def full(*_: object) -> None:
        raise error

    engine = make()
    monkeypatch.setattr(RowStore, "upsert", full)
    reports = [engine.begin(5).rank(world.ids[:5]).report for _ in range(2)]
    assert [report.user_state for report in reports] == ["computed", "computed"]
    assert engine.stats()["user_states"]["24"]["not_kept"] == 2
    monkeypatch.undo()
    assert [engine.begin(5).rank(world.ids[:5]).report.user_state for _ in range(2)] == ["computed", "hit"]
    assert engine.stats()["user_states"]["24"]["not_kept"] == 2


def test_a_state_cache_too_small_for_a_state(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"user_states\.max_bytes: got 1000, of which .* history of 24"):
        make(user_states=UserStateCache(max_bytes=1000))
