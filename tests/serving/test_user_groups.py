"""Groups of `rank_many`, whose user sides start together: each answer is the user's own."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from aif_jax.errors import AifError, RequestError, UnknownUserError
from aif_jax.serving import Engine, EngineConfig
from aif_jax.types import Candidates, UserRecord
from held import Held
from served import Served, World
from user_batching import BROKEN, Make, assert_alike, batches, batching_engines, settled


@pytest.fixture
def make(one: Served, world: World) -> Iterator[Make]:
    with batching_engines(one, world) as factory:
        yield factory


@pytest.mark.parametrize("users", [1, 2, 3, 4, 5, 11, 16])
@pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])
def test_groups_are_as_large_as_they_can_be(make: Make, users: int, way: str) -> None:
    engine = make(user_batches=(4,))
    many = (
        engine.rank_many(range(users))
        if way == "rank_many"
        else asyncio.run(engine.rank_many_async(range(users)))
    )
    left = users % 4
    # Two of four places would cost more than two calls of one.
    assert batches(many) == [4] * (users - left) + ([left] * left if left > 2 else [1] * left)
    alone = make(user_batches=())
    assert_alike(many, [alone.rank(user) for user in range(users)])
    assert settled(engine)


@pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])
def test_who_fails_in_a_group_fails_alone(make: Make, way: str) -> None:
    def rank_many(users: Any, **options: Any) -> list[Any]:
        if way == "rank_many":
            return engine.rank_many(users, **options)
        return asyncio.run(engine.rank_many_async(users, **options))

    engine = make(user_batches=(4,), unknown_user="error")
    known = [engine.rank(user) for user in (1, 2, 3, 4)]
    engine.invalidate([2, 3])
    users: list[Any] = [1, 2, BROKEN, "nobody", 3, 4]
    rankings = rank_many(users, return_exceptions=True)
    assert [ranking.report.user_state for ranking in rankings[:2]] == ["hit", "computed"]
    assert isinstance(rankings[2], RequestError)
    assert isinstance(rankings[3], UnknownUserError)
    assert_alike([*rankings[:2], *rankings[4:]], known)
    with pytest.raises(RequestError, match="18 items and 17 types"):
        rank_many([5, BROKEN, 6, 7, 8])
    assert settled(engine)
    assert engine.stats()["open_handles"] == 0
    assert len(rank_many([5, 6, 7, 8])) == 4


def test_a_user_twice_in_a_group_is_computed_once(make: Make) -> None:
    engine = make(user_batches=(2, 4))
    rankings = engine.rank_many([1, 1, 2, 1])
    found = sorted((r.report.user, r.report.user_state, r.report.user_batch) for r in rankings)
    assert found == [(1, "computed", 2), (1, "joined", 0), (1, "joined", 0), (2, "computed", 2)]
    assert settled(engine)


def test_a_slow_record_holds_up_its_group_only(one: Served, world: World) -> None:
    slow, asked = threading.Event(), threading.Event()

    def source(user: Any) -> UserRecord:
        if user == 3:
            asked.set()
            assert slow.wait(30)
        return world.record(user)

    def retrieve(_: Any) -> Candidates:
        return Candidates(*world.candidates(30))

    config = EngineConfig(k=10, buckets=(32,), long_buckets=(24,), user_batches=(4,))
    with Engine(*one, users=source, retrieve=retrieve, config=config) as engine:
        result: list[Any] = []
        many = threading.Thread(target=lambda: result.extend(engine.rank_many(range(4))))
        many.start()
        assert asked.wait(30)
        # Also of a user in that group, whose record is there: it does not join them.
        assert [engine.rank(user).report.user_state for user in (0, 7)] == ["computed"] * 2
        # With a deadline there is no group to wait for.
        assert batches(engine.rank_many([8, 9], deadline_ms=20_000)) == [1, 1]
        assert not result
        slow.set()
        many.join(30)
        assert batches(result) == [4] * 4
        assert settled(engine)


def test_a_group_is_given_up_as_a_whole(make: Make, world: World) -> None:
    engine = make(user_batches=(4,))
    held = Held(engine)
    context: Any = [{}, {}, {}, {}, {"hour": 3, "unheard_of": 1}]
    # The fifth does not even begin; by then four have.
    with pytest.raises(RequestError, match="unheard_of"):
        engine.rank_many(range(5), contexts=context)
    held.release()
    counts = engine.stats()["requests"]
    assert (counts["begun"], counts["abandoned"]) == (4, 4)
    assert len(engine.rank_many(range(5))) == 5
    assert settled(engine)


def test_a_publish_parts_a_group(make: Make, two: Served, world: World) -> None:
    engine = make(user_batches=(2, 4))

    class Publishing(list[Any]):
        """Contexts, of which reading the third publishes."""

        def __getitem__(self, place: Any) -> Any:
            if place == 2:
                engine.publish(*two)
            return super().__getitem__(place)

    before = engine.version
    rankings = engine.rank_many(range(4), contexts=Publishing([{}] * 4))
    assert [ranking.report.version for ranking in rankings] == [before] * 2 + [two[0].version] * 2
    assert batches(rankings) == [2] * 4
    with make(user_batches=()) as alone:
        assert_alike(rankings[:2], [alone.rank(user) for user in range(2)])
        alone.publish(*two)
        assert_alike(rankings[2:], [alone.rank(user) for user in (2, 3)])


def test_the_engine_closed_under_a_group(make: Make) -> None:
    engine = make(user_batches=(4,))
    held = Held(engine)
    result: list[Any] = []
    many = threading.Thread(target=lambda: result.extend(engine.rank_many(range(8), return_exceptions=True)))
    many.start()
    held.until_queued(fetched=8, programs=2)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine.closed:
        time.sleep(0.001)
    held.release()
    for thread in (closing, many):
        thread.join(30)
        assert not thread.is_alive()
    assert len(result) == 8
    # The first may have been under way.
    assert all(isinstance(error, AifError) for error in result[1:])


def test_a_small_queue_has_no_groups(make: Make) -> None:
    engine = make(user_batches=(4,), queue_bound=2)
    assert batches(engine.rank_many(range(6))) == [1] * 6


@pytest.mark.parametrize("context", [{"unheard_of": 1}, {"hour": [1, 2]}])
def test_who_does_not_begin_in_a_group_is_not_waited_for(make: Make, context: Any) -> None:
    engine = make(user_batches=(4,))
    contexts: Any = [None, context, None, None]
    for many in (
        engine.rank_many(range(4), contexts=contexts, return_exceptions=True),
        asyncio.run(engine.rank_many_async(range(4, 8), contexts=contexts, return_exceptions=True)),
    ):
        assert isinstance(many[1], RequestError)
        # Of a context that turns out wrong only when it is encoded, the user side is computed all the same.
        assert batches([many[0], *many[2:]]) == ([3] * 3 if "unheard_of" in context else [4] * 3)
    assert settled(engine)


def test_coroutines_of_a_group_that_are_cancelled(make: Make) -> None:
    engine = make(user_batches=(4,))

    async def cancelled() -> None:
        held = Held(engine)
        task = asyncio.create_task(engine.rank_many_async(range(12)))
        async with asyncio.timeout(30):
            while engine.stats()["scheduler"]["compute"]["queued"] < 2:
                await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        held.release()

    asyncio.run(cancelled())
    assert settled(engine)
    assert engine.stats()["open_handles"] == 0
    assert batches(engine.rank_many(range(20, 24))) == [4] * 4


class Unspeakable:
    """A revision that cannot be told from others."""

    def __repr__(self) -> str:
        raise ValueError("unspeakable")


def test_a_revision_that_raises_is_an_error_of_its_user(one: Served, world: World) -> None:
    def source(user: Any) -> UserRecord:
        record, revision = world.record(user), cast(Any, Unspeakable())
        return UserRecord(record.features, record.items, record.types, revision) if user == 2 else record

    def retrieve(_: Any) -> Candidates:
        return Candidates(*world.candidates(30))

    config = EngineConfig(k=10, buckets=(32,), long_buckets=(24,), user_batches=(2, 4), user_state_bytes=0)
    with Engine(*one, users=source, retrieve=retrieve, config=config) as engine:
        rankings = engine.rank_many(range(4), return_exceptions=True)
        assert isinstance(rankings.pop(2), ValueError)
        assert batches(rankings) == [3] * 3
        assert settled(engine)


Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""As PyO3 raises what panicked in Rust: no Exception, and each extension has its own."""


@pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])
def test_a_panic_is_an_error_of_its_user(one: Served, world: World, way: str) -> None:
    def source(user: Any) -> UserRecord:
        if user == 2:
            raise Panic("on purpose")
        return world.record(user)

    def retrieve(_: Any) -> Candidates:
        return Candidates(*world.candidates(30))

    config = EngineConfig(k=10, buckets=(32,), long_buckets=(24,), user_batches=(2, 4))
    with Engine(*one, users=source, retrieve=retrieve, config=config) as engine:
        if way == "rank_many":
            rankings = engine.rank_many(range(4), return_exceptions=True)
        else:
            rankings = asyncio.run(engine.rank_many_async(range(4), return_exceptions=True))
        assert isinstance(rankings.pop(2), Panic)
        assert batches(rankings) == [3] * 3
        assert settled(engine)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, type("Timeout", (BaseException,), {})])
def test_an_interrupt_ends_all(one: Served, world: World, kind: type[BaseException]) -> None:
    def retrieve(request: Any) -> Candidates:
        if request.user == 1:
            raise kind
        return Candidates(*world.candidates(30))

    config = EngineConfig(k=10, buckets=(32,), long_buckets=(24,), user_batches=(2, 4))
    with Engine(*one, users=world.record, retrieve=retrieve, config=config) as engine:
        with pytest.raises(kind):
            engine.rank_many(range(4), return_exceptions=True)
        assert settled(engine)
        assert engine.stats()["open_handles"] == 0
