"""Requests that are wrong, late, abandoned or many: each gets an error or a count that teaches."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    RetrievalError,
    SchedulerError,
    UnknownItemError,
    UnknownUserError,
    VersionMismatchError,
)
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.serving import Engine, EngineConfig, Filters, InMemoryUsers, Shapes, Threads
from aif_jax.types import Candidates, Request, UserRecord
from support.served import ENGINE_CONFIG, K_MAX, World

SMALL: dict[str, Any] = {"k": 5, "shapes": Shapes(candidates=(32,), histories=(24,))}


@pytest.fixture
def make(bundle: Bundle, tables: Tables, users: InMemoryUsers) -> Iterator[Any]:
    """Make engines that are closed after the test."""
    made: list[Engine] = []

    def make_engine(config: EngineConfig = ENGINE_CONFIG, **arguments: Any) -> Engine:
        engine = Engine(bundle, tables, **{"users": users, "config": config, **arguments})
        made.append(engine)
        return engine

    yield make_engine
    for engine in made:
        engine.close()


# -- malformed requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "there are none"),
        (np.zeros(0, np.uint64), "there are none"),
        (np.array([1.0, 2.0]), "float64"),
        ([1.5], "float"),
        (np.zeros((2, 2), np.int64), r"shape \(2, 2\)"),
        ([[1, 2], [3, 4]], "list"),
        ([1, "two"], r"int \(such as 1\), str \(such as 'two'\)"),
        ([-1], "-1"),
        ([b"x" * 1000], r"bytes \(such as b'x{38}\), expected all integers or all strings"),
        (None, "NoneType"),
        (17, "int"),
        ("abc", "str"),
        ([None], "NoneType"),
    ],
)
def test_candidates_that_are_none(engine: Engine, ids: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"candidates: .*{message}"):
        engine.begin(3).rank(ids)


def test_pair_features_that_do_not_fit(engine: Engine, world: World) -> None:
    ids, _ = world.candidates(4)
    with pytest.raises(RequestError, match=r"pair features of 4 candidates.*'bid'.*\(3,\)"):
        engine.begin(3).rank(ids, {"bid": [1.0, 2.0, 3.0]})
    with pytest.raises(RequestError, match=r"pair features.*\['price'\] are not in the schema.*'bid'"):
        engine.begin(3).rank(ids, {"price": [1.0] * 4})
    with pytest.raises(RequestError, match=r"pair features.*'bid'"):
        engine.begin(3).rank(ids, {"bid": ["a", "b", "c", "d"]})


def test_context_that_does_not_fit(engine: Engine, world: World) -> None:
    ids, _ = world.candidates(4)
    with pytest.raises(RequestError, match=r"context: features \['weather'\].*\['hour'\]"):
        engine.begin(3, {"weather": "rain"})
    with pytest.raises(RequestError, match="context: got a list"):
        engine.begin(3, ["hour"])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"context: .*'hour'"):
        engine.begin(3, {"hour": "noon"}).rank(ids)


@pytest.mark.parametrize("k", [0, -1, K_MAX + 1, 2.5, True])
def test_impossible_k(engine: Engine, world: World, k: Any) -> None:
    with pytest.raises(RequestError, match=rf"k: got {k!r}, expected a whole number from 1 to {K_MAX}"):
        engine.begin(3).rank(world.ids[:5], k=k)


def test_users_that_are_none(engine: Engine) -> None:
    for user in (None, 1.5, ["ann"], True):
        with pytest.raises(RequestError, match="user: got"):
            engine.begin(user)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="deadline_ms: got 0"):
        engine.begin(3, deadline_ms=0)


def test_k_larger_than_the_candidates_gives_what_there_is(engine: Engine, world: World) -> None:
    ranking = engine.begin(3).rank(world.ids[:4], {"bid": np.ones(4)}, k=15)
    assert (len(ranking), ranking.report.k_asked, ranking.report.k_given) == (4, 15, 4)


# -- users ----------------------------------------------------------------------------------------


def test_unknown_users_by_policy(make: Any, engine: Engine, world: World) -> None:
    with pytest.raises(UnknownUserError, match="user 'nobody': the user source knows nothing"):
        engine.begin("nobody").rank(world.ids[:5])
    lenient = make(EngineConfig(**SMALL, unknown_user="default"))
    pair = {"bid": np.ones(5)}
    first, second = (lenient.begin("nobody").rank(world.ids[:5], pair) for _ in range(2))
    assert first.report.unknown_user
    assert second.report.user_state == "computed"  # what is not known is not kept
    expected, _ = world.scores(UserRecord(), world.ids[:5], pair, {})
    np.testing.assert_allclose(np.sort(first.scores), np.sort(expected), rtol=1e-4)
    assert lenient.stats()["requests"]["unknown_users"] == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"items": []}, "returned a dict, expected a UserRecord"),
        (UserRecord(items=[1, 2], types=["click"]), "2 items and 1 types"),
        (
            UserRecord(items=[1], types=["stare"]),
            "unknown behaviour type 'stare'; the model knows click, like, skip",
        ),
        (UserRecord(items=[1], types=[3]), "types go from 3 to 3, expected 0 to 2"),
        (UserRecord(items=[1], types=[0.5]), "dtype float64"),
        (UserRecord(items=[1.5], types=[0]), "the source's items: .*float"),
        (UserRecord(features={"activity": "high"}), "the source's features: .*'activity'"),
        (
            UserRecord(items=None),
            "the source's items: got None, expected an array or list, most recent first",
        ),
        (UserRecord(types=None), "the source's types: got None, expected an array or list"),
        (UserRecord(items=7, types=[1]), r"the source's items: got a int \(7\), expected an array or list"),
        (UserRecord(items={1, 2}, types=[0, 0]), r"items: got a set \(\{1, 2\}\), expected an array or list"),
        (UserRecord(items=np.array(3), types=[0]), r"items: got a ndarray \(array\(3\)\), expected an array"),
        (UserRecord(features=None), "the source's features: got None, expected a mapping"),
        (UserRecord(features=[("country", "de")]), "the source's features: got a list"),
    ],
)
def test_malformed_user_records(make: Any, world: World, record: Any, message: str) -> None:
    engine = make(users=lambda user: record)
    with pytest.raises(RequestError, match=f"user 'ann'.*{message}"):
        engine.begin("ann").rank(world.ids[:5])


def test_an_error_of_the_user_source_reaches_the_caller_as_it_is(make: Any, world: World) -> None:
    def broken(user: Any) -> UserRecord:
        raise ConnectionError("feature store is down")

    engine = make(users=broken)
    with pytest.raises(ConnectionError, match="feature store is down"):
        engine.begin("ann").rank(world.ids[:5])
    assert engine.stats()["requests"]["error:ConnectionError"] == 1


# -- items ----------------------------------------------------------------------------------------


def test_unknown_items_can_be_refused(make: Any, world: World) -> None:
    engine = make(EngineConfig(**SMALL, missing_items="error"))
    with pytest.raises(
        UnknownItemError, match="candidates: 2 of 3 have no row in the item index, the first is 7"
    ):
        engine.begin(3).rank([int(world.ids[0]), 7, 8])


def test_nothing_left_to_rank_is_an_empty_ranking(engine: Engine) -> None:
    ranking = engine.begin(3).rank([1, 2, 3])
    assert len(ranking) == 0
    assert ranking.report.missing_items == 3
    assert ranking.heads.keys() == {"ctr", "cvr"}


# -- retrieval ------------------------------------------------------------------------------------


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
def test_rank_takes_plain_and_coroutine_retrieval(make: Any, engine: Engine, world: World, kind: str) -> None:
    ids, pair = world.candidates(30)
    expected = engine.begin(4, {"hour": 3}).rank(ids, pair, k=7)
    own = make(retrieve=retrieval(world, kind))
    ranked = own.rank(4, context={"hour": 3}, k=7)
    awaited = asyncio.run(own.rank_async(4, context={"hour": 3}, k=7))

    async def from_a_running_loop() -> Any:
        return own.rank(4, context={"hour": 3}, k=7)

    blocking = asyncio.run(from_a_running_loop())
    for ranking in (ranked, awaited, blocking):
        assert ranking.ids.tolist() == expected.ids.tolist()
        assert ranking.scores.tolist() == expected.scores.tolist()


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
@pytest.mark.parametrize("way", ["rank", "rank_async"])
def test_retrieval_that_returns_nonsense(make: Any, result: Any, message: str, way: str) -> None:
    engine = make(retrieve=lambda request: result)
    with pytest.raises(RetrievalError, match=f"retrieve returned {message}"):
        engine.rank(3) if way == "rank" else asyncio.run(engine.rank_async(3))
    assert engine.stats()["open_handles"] == 0
    assert errors_of(engine) == {"error:RetrievalError": 1}


@pytest.mark.parametrize("way", ["rank", "rank_async"])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_retrieval_that_raises(make: Any, kind: str, way: str) -> None:
    def plain(request: Request) -> Any:
        raise KeyError("shard 7")

    async def coroutine(request: Request) -> Any:
        return plain(request)

    engine = make(retrieve=plain if kind == "plain" else coroutine)
    with pytest.raises(RetrievalError, match="retrieve raised KeyError for user 3: 'shard 7'") as caught:
        engine.rank(3) if way == "rank" else asyncio.run(engine.rank_async(3))
    assert isinstance(caught.value.__cause__, KeyError)
    assert engine.stats()["requests"]["error:RetrievalError"] == 1
    assert engine.stats()["open_handles"] == 0


def test_rank_needs_a_retrieve(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="made without retrieve"):
        engine.rank(3)


def test_rank_many_gives_what_rank_gives(make: Any, world: World) -> None:
    ids, pair = world.candidates(30)
    engine = make(retrieve=lambda request: Candidates(ids, pair))
    rankings = engine.rank_many([1, 2, 3], k=5)
    for user, ranking in zip([1, 2, 3], rankings, strict=True):
        assert ranking.ids.tolist() == engine.rank(user, k=5).ids.tolist()
    with pytest.raises(UnknownUserError):
        engine.rank_many([1, "nobody", 3])
    assert engine.stats()["open_handles"] == 0


def many(engine: Engine, way: str, *arguments: Any, **options: Any) -> list[Any]:
    if way == "rank_many":
        return engine.rank_many(*arguments, **options)
    return asyncio.run(engine.rank_many_async(*arguments, **options))


MANY = pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])


@MANY
def test_many_have_contexts_filters_and_results_of_their_own(make: Any, world: World, way: str) -> None:
    ids, pair = world.candidates(30)
    engine = make(retrieve=lambda request: Candidates(ids, pair))
    contexts = [{"hour": 3}, None, {"hour": 21}, {"hour": 99}]
    filters = [None, Filters(exclude=ids[:10]), None, Filters(exclude=ids[10:])]
    users = [1, 2, 1, 3]
    rankings = many(engine, way, users, k=5, contexts=contexts, filters=filters, deadline_ms=20_000.0)
    for user, context, filter_, ranking in zip(users, contexts, filters, rankings, strict=True):
        alone = engine.rank(user, context, k=5, filters=filter_)
        assert ranking.ids.tolist() == alone.ids.tolist()
        assert ranking.scores.tobytes() == alone.scores.tobytes()
        assert ranking.report.deadline_ms == 20_000.0
    assert many(engine, way, []) == []
    for wrong in ([{"hour": 3}], {"hour": 3}):
        with pytest.raises(RequestError, match="contexts: got"):
            many(engine, way, [1, 2], contexts=wrong)


@MANY
def test_an_error_takes_its_place_or_ends_all(make: Any, world: World, way: str) -> None:
    ids, pair = world.candidates(30)
    retrieved: list[Any] = []

    def retrieve(request: Request) -> Candidates:
        retrieved.append(request.user)
        if request.user == 3:
            raise ConnectionError("no route")
        return Candidates(ids, pair)

    engine = make(retrieve=retrieve)
    users: list[Any] = [1, "nobody", 2, True, 3, 4]
    results = many(engine, way, users, return_exceptions=True)
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["Ranking", "UnknownUserError", "Ranking", "RequestError", "RetrievalError", "Ranking"]
    assert results[5].ids.tolist() == engine.rank(4).ids.tolist()
    with pytest.raises(RetrievalError, match="no route"):
        many(engine, way, [1, 3, *range(4, 10)])
    assert engine.stats()["open_handles"] == 0


def test_many_side_by_side_retrieve_at_the_same_time(make: Any, world: World) -> None:
    ids, pair = world.candidates(30)
    at_once, most = 0, 0

    async def retrieve(request: Request) -> Candidates:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return Candidates(ids, pair)

    for groups, bound in ((), 8), ((8,), 16):
        at_once, most = 0, 0
        shapes = dataclasses.replace(ENGINE_CONFIG.shapes, users=groups)
        engine = make(dataclasses.replace(ENGINE_CONFIG, shapes=shapes), retrieve=retrieve)
        assert len(asyncio.run(engine.rank_many_async(list(range(10)) * 5))) == 50
        # As many as there are blocking threads, or two groups.
        assert 1 < most <= bound


# -- time -----------------------------------------------------------------------------------------


def slow_source(users: InMemoryUsers, seconds: float) -> Any:
    def source(user: Any) -> UserRecord | None:
        time.sleep(seconds)
        return users(user)

    return source


@pytest.mark.parametrize("way", ["begin", "rank", "rank_async"])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_the_user_side_is_hidden_behind_retrieval(
    make: Any, world: World, users: InMemoryUsers, way: str, kind: str
) -> None:
    ids, pair = world.candidates(30)

    def plain(request: Request) -> Candidates:
        time.sleep(0.15)
        return Candidates(ids, pair)

    async def coroutine(request: Request) -> Candidates:
        await asyncio.sleep(0.15)
        return Candidates(ids, pair)

    engine = make(users=slow_source(users, 0.15), retrieve=plain if kind == "plain" else coroutine)

    def once() -> Any:
        if way == "rank":
            return engine.rank(5)
        if way == "rank_async":
            return asyncio.run(engine.rank_async(5))
        pending = engine.begin(5)
        return pending.rank(*(lambda c: (c.ids, c.pair))(plain(Request(5))))

    once()
    report = min((once().report for _ in range(3)), key=lambda report: report.total_ms)
    assert report.retrieval_ms >= 150
    assert 150 <= report.user_fetch_ms <= report.user_side_ms
    assert report.hidden_ms > 100
    assert report.total_ms < 250  # one after the other they take 300


def test_begin_returns_at_once(make: Any, users: InMemoryUsers, world: World) -> None:
    engine = make(users=slow_source(users, 0.8))
    began = time.perf_counter()
    pending = engine.begin(5)
    assert time.perf_counter() - began < 0.4
    report = pending.rank(world.ids[:10]).report
    assert report.wait_ms > 300
    assert report.wait_ms <= report.total_ms


@pytest.mark.parametrize("way", ["rank", "rank_async"])
def test_a_late_user_side_is_named(make: Any, users: InMemoryUsers, world: World, way: str) -> None:
    config = dataclasses.replace(ENGINE_CONFIG, on_deadline="error")
    engine = make(config, users=slow_source(users, 1.0))
    pending = engine.begin(5, deadline_ms=30)
    began = time.perf_counter()
    with pytest.raises(
        DeadlineExceededError, match="deadline of 30 ms passed and its user source has not answered"
    ):
        pending.rank(world.ids[:5]) if way == "rank" else asyncio.run(pending.rank_async(world.ids[:5]))
    assert time.perf_counter() - began < 0.8
    assert engine.stats()["requests"]["error:DeadlineExceededError"] == 1


@pytest.mark.parametrize("way", ["rank", "rank_async"])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_late_retrieval_is_named(make: Any, world: World, kind: str, way: str) -> None:
    def plain(request: Request) -> Any:
        time.sleep(0.2)
        return world.ids[:5]

    async def coroutine(request: Request) -> Any:
        await asyncio.sleep(10)

    engine = make(retrieve=plain if kind == "plain" else coroutine)
    with pytest.raises(DeadlineExceededError, match=r"make (retrieval|it)"):
        engine.rank(5, deadline_ms=50) if way == "rank" else asyncio.run(engine.rank_async(5, deadline_ms=50))


def test_a_deadline_that_is_met_is_reported(engine: Engine, world: World) -> None:
    report = engine.begin(5, deadline_ms=60_000).rank(world.ids[:5]).report
    assert (report.deadline_ms, report.overrun_ms) == (60_000, 0.0)


# -- life of a handle -----------------------------------------------------------------------------


def test_a_handle_ranks_once(engine: Engine, world: World) -> None:
    pending = engine.begin(5)
    pending.rank(world.ids[:5])
    with pytest.raises(RequestError, match="it was ranked already; begin a new request"):
        pending.rank(world.ids[:5])
    cancelled = engine.begin(5)
    cancelled.cancel()
    with pytest.raises(RequestError, match="it was cancelled"):
        cancelled.rank(world.ids[:5])


def test_handles_that_nobody_finishes_expire_and_are_counted(make: Any, world: World) -> None:
    engine = make(EngineConfig(**SMALL, max_pending_age_s=0.05))
    forgotten = [engine.begin(user) for user in range(3)]
    assert engine.stats()["open_handles"] == 3
    time.sleep(0.06)
    fresh = engine.begin(5)
    assert engine.stats()["requests"]["expired"] == 3
    assert engine.stats()["open_handles"] == 1
    with pytest.raises(RequestError, match=r"it expired after 0\.05 s"):
        forgotten[0].rank(world.ids[:5])
    assert len(fresh.rank(world.ids[:5])) == 5


def test_an_overloaded_engine_says_so_at_once(make: Any, users: InMemoryUsers, world: World) -> None:
    release = threading.Event()

    def stuck(user: Any) -> UserRecord | None:
        release.wait(10)
        return users(user)

    config = EngineConfig(**SMALL, threads=Threads(blocking=1, max_queued=2))
    engine = make(config, users=stuck)
    accepted: list[Any] = []

    def flood() -> None:
        for _ in range(10):
            accepted.append(engine.begin(5))  # noqa: PERF401, it raises half-way

    with pytest.raises(OverloadedError):
        flood()
    assert 1 <= len(accepted) <= 4
    assert engine.stats()["open_handles"] == len(accepted)
    release.set()
    assert all(len(pending.rank(world.ids[:5])) == 5 for pending in accepted)


def test_a_closed_engine_refuses_and_its_handles_end(make: Any, world: World) -> None:
    engine = make()
    pending = engine.begin(5)
    engine.close()
    engine.close()
    with pytest.raises(SchedulerError, match="closed"):
        engine.begin(5)
    with pytest.raises(RequestError, match="the engine was closed"):
        pending.rank(world.ids[:5])


# -- generation -----------------------------------------------------------------------------------


def test_tables_of_another_version_are_refused(
    bundle: Bundle, other_bundle: Bundle, tables: Tables, users: InMemoryUsers
) -> None:
    stale_index = ItemIndex.build(other_bundle, [1], {})
    with pytest.raises(VersionMismatchError, match=f"item index.*{other_bundle.version}.*{bundle.version}"):
        Engine(bundle, tables._replace(items=stale_index), users=users)
    stale_table = BehaviourTable.build(other_bundle, [1], {})
    with pytest.raises(
        VersionMismatchError, match=f"behaviour table.*{other_bundle.version}.*{bundle.version}"
    ):
        Engine(bundle, tables._replace(behaviours=stale_table), users=users)


def test_ids_that_do_not_lie_on_whole_words_are_read_as_others(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    shifted = np.frombuffer(b"\0" + ids.tobytes(), np.uint8)[1:].view(np.uint64)
    assert not shifted.flags.aligned
    expected = engine.begin(4).rank(ids, pair)
    assert engine.begin(4).rank(shifted, pair).scores.tobytes() == expected.scores.tobytes()
