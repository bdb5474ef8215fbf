"""`rank_many`: each answer is that of `rank`, with user sides computed in groups."""

import asyncio
import contextlib
import dataclasses
import threading
import time
from functools import partial
from typing import Any, cast

import pytest

from aif_jax.errors import (
    AifError,
    RequestError,
    RetrievalError,
    UnknownUserError,
    UserSourceError,
)
from aif_jax.serving import Engine, EngineConfig, Filters, Pending, Shapes, Threads, user_side
from aif_jax.serving.ladder import USER
from aif_jax.serving.many import Window
from aif_jax.types import Candidates, Request, UserRecord
from support.held import Held, settled, until
from support.served import ENGINE_CONFIG, UNCACHED, Make, Served, World, assert_same, ran
from support.waiting import eventually

BROKEN = 99
"""A user whose record is malformed."""


@pytest.fixture
def grouped(make: Make, world: World) -> Make:
    """A function from numbers of users in a call, and arguments of `make`, to an engine."""

    def source(user: Any) -> UserRecord | None:
        if user == "nobody":
            return None
        record = world.record(user)
        return UserRecord(record.features, record.items, record.types[:-1]) if user == BROKEN else record

    def factory(*users: int, blocking: int = 8, max_queued: int = 1024, **given: Any) -> Engine:
        threads = Threads(compute=2, blocking=blocking, max_queued=max_queued)
        shapes = Shapes(candidates=(32,), histories=(8, 24), users=users)
        return make(
            **{"users": source, "unknown_user": "default", "threads": threads, "shapes": shapes, **given}
        )

    return factory


def batches(rankings: Any) -> list[int]:
    return [ranking.report.user_batch for ranking in rankings]


def assert_alike(rankings: Any, others: Any) -> None:
    """Check that rankings are the same but for the last bits of their scores."""
    for one, other in zip(rankings, others, strict=True):
        assert one.report.user == other.report.user
        assert dict(zip(one.ids.tolist(), one.scores.tolist(), strict=True)) == pytest.approx(
            dict(zip(other.ids.tolist(), other.scores.tolist(), strict=True)), rel=1e-5, abs=1e-6
        )


many_ways = pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])


def test_rank_many_gives_what_rank_gives(make: Make) -> None:
    engine = make()
    rankings = engine.rank_many([1, 2, 3], k=5)
    for user, ranking in zip([1, 2, 3], rankings, strict=True):
        assert ranking.ids.tolist() == engine.rank(user, k=5).ids.tolist()
    with pytest.raises(UnknownUserError):
        engine.rank_many([1, "nobody", 3])
    assert engine.stats()["open_handles"] == 0


@many_ways
def test_rank_many_each_user_has_own_context_and_filters(make: Make, world: World, way: str) -> None:
    engine, (ids, _) = make(), world.candidates(30)
    contexts = [{"hour": 3}, None, {"hour": 21}, {"hour": 99}]
    filters = [None, Filters(exclude=ids[:10]), None, Filters(exclude=ids[10:])]
    users = [1, 2, 1, 3]
    rankings = ran(getattr(engine, way), users, k=5, contexts=contexts, filters=filters, deadline_ms=20_000.0)
    for user, context, filter_, ranking in zip(users, contexts, filters, rankings, strict=True):
        alone = engine.rank(user, context, k=5, filters=filter_)
        assert_same(ranking, alone)
        assert ranking.report.deadline_ms == 20_000.0
    assert ran(getattr(engine, way), []) == []
    for wrong in ([{"hour": 3}], {"hour": 3}):
        with pytest.raises(RequestError, match="contexts: got"):
            ran(getattr(engine, way), [1, 2], contexts=wrong)


@many_ways
def test_rank_many_error_takes_its_place_or_ends_all(make: Make, world: World, way: str) -> None:
    ids, pair = world.candidates(30)
    retrieved: list[Any] = []

    def retrieve(request: Request) -> Candidates:
        retrieved.append(request.user)
        if request.user == 3:
            raise ConnectionError("no route")
        return Candidates(ids, pair)

    engine = make(retrieve=retrieve)
    users: list[Any] = [1, "nobody", 2, True, 3, 4]
    results = ran(getattr(engine, way), users, return_exceptions=True)
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["Ranking", "UnknownUserError", "Ranking", "RequestError", "RetrievalError", "Ranking"]
    assert results[5].ids.tolist() == engine.rank(4).ids.tolist()
    with pytest.raises(RetrievalError, match="no route"):
        ran(getattr(engine, way), [1, 3, *range(4, 10)])
    assert engine.stats()["open_handles"] == 0


def test_rank_many_async_retrievals_overlap_within_bound(make: Make, world: World) -> None:
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
        engine = make(shapes=shapes, retrieve=retrieve)
        assert len(asyncio.run(engine.rank_many_async(list(range(10)) * 5))) == 50
        # As many as there are blocking threads, or two groups.
        assert 1 < most <= bound


def test_rank_many_error_abandons_the_requests_begun(make: Make) -> None:
    engine = make(threads=Threads(blocking=3))
    with pytest.raises(UnknownUserError):
        engine.rank_many([1, "nobody", 2, 3, 4])
    requests = engine.stats()["requests"]
    counted = [requests[name] for name in ("begun", "ranked", "error:UnknownUserError", "abandoned")]
    # All five make up one group.
    assert counted == [5, 1, 1, 3]


def test_rank_many_more_users_than_queue_places_ranks_all(make: Make) -> None:
    engine = make(threads=Threads(max_queued=2))
    assert len(engine.rank_many([user % 10 for user in range(50)])) == 50


# --- groups ----------------------------------------------------------------------------------------


@many_ways
@pytest.mark.parametrize("deadline_ms", [None, 60_000.0])
def test_rank_many_user_sides_are_computed_together(
    grouped: Make, world: World, way: str, deadline_ms: float | None
) -> None:
    engine, alone = grouped(2, 4), grouped()
    users = list(range(30, 38))
    held = Held(engine)
    result: list[Any] = []

    def many() -> None:
        result.extend(ran(getattr(engine, way), users, deadline_ms=deadline_ms))

    thread = threading.Thread(target=many)
    thread.start()
    # Without a deadline they wait for each other, with one each is computed on its own.
    size, name = (4, "users") if deadline_ms is None else (1, "user")
    held.until_queued(fetched=8 if way == "rank_many" else 16, programs=8 // size)
    held.release()
    thread.join(60)
    assert batches(result) == [size] * 8
    assert_alike(result, [alone.rank(user) for user in users])
    stats = engine.stats()
    assert stats["requests"].get("user_batched", 0) == (8 if size > 1 else 0)
    assert stats["scheduler"]["compute"]["cancelled"] == 0
    for ranking in result:
        tasks = {task.name: task for task in ranking.report.tasks}
        assert tasks[name].submitted_s <= tasks[name].began_s < tasks[name].ended_s
        assert ranking.report.queue_ms[name] > 0
    # Kept, each for its own user.
    again = engine.rank_many(users)
    assert [ranking.report.user_state for ranking in again] == ["hit"] * 8
    assert batches(again) == [0] * 8
    assert_alike(again, result)
    assert settled(engine)


@pytest.mark.parametrize("users", [1, 2, 3, 4, 5, 11, 16])
@many_ways
def test_rank_many_groups_are_as_large_as_possible(grouped: Make, users: int, way: str) -> None:
    engine = grouped(4)
    many = ran(getattr(engine, way), range(users))
    left = users % 4
    # Two of four places would cost more than two calls of one.
    assert batches(many) == [4] * (users - left) + ([left] * left if left > 2 else [1] * left)
    alone = grouped()
    assert_alike(many, [alone.rank(user) for user in range(users)])
    assert settled(engine)


@many_ways
def test_rank_many_failing_user_of_group_fails_alone(grouped: Make, way: str) -> None:
    engine = grouped(4, unknown_user="error")
    known = [engine.rank(user) for user in (1, 2, 3, 4)]
    engine.invalidate([2, 3])
    users: list[Any] = [1, 2, BROKEN, "nobody", 3, 4]
    rank_many = partial(ran, getattr(engine, way))
    rankings = rank_many(users, return_exceptions=True)
    assert [ranking.report.user_state for ranking in rankings[:2]] == ["hit", "computed"]
    assert isinstance(rankings[2], UserSourceError)
    assert isinstance(rankings[3], UnknownUserError)
    assert_alike([*rankings[:2], *rankings[4:]], known)
    with pytest.raises(UserSourceError, match="18 items and 17 types"):
        rank_many([5, BROKEN, 6, 7, 8])
    assert settled(engine)
    assert engine.stats()["open_handles"] == 0
    assert len(rank_many([5, 6, 7, 8])) == 4


def test_rank_many_repeated_user_is_computed_once(grouped: Make) -> None:
    engine = grouped(2, 4)
    rankings = engine.rank_many([1, 1, 2, 1])
    found = sorted((r.report.user, r.report.user_state, r.report.user_batch) for r in rankings)
    assert found == [(1, "computed", 2), (1, "joined", 0), (1, "joined", 0), (2, "computed", 2)]
    assert settled(engine)


def test_rank_many_slow_record_delays_its_group_only(grouped: Make, world: World) -> None:
    slow, asked = threading.Event(), threading.Event()

    def source(user: Any) -> UserRecord:
        if user == 3:
            asked.set()
            assert slow.wait(30)
        return world.record(user)

    with grouped(4, users=source) as engine:
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


def test_rank_many_error_before_all_began_abandons_group(grouped: Make, world: World) -> None:
    engine = grouped(4)
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


def test_rank_many_publish_meanwhile_splits_group(
    grouped: Make, two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = grouped(2, 4)
    begin = Pending.begin

    def publishing(pending: Pending, *, start: bool) -> None:
        begin(pending, start=start)
        if pending.user == 1:
            engine.publish(*two)

    before = engine.version
    with monkeypatch.context() as patched:
        patched.setattr(Pending, "begin", publishing)
        rankings = engine.rank_many(range(4))
    assert [ranking.report.version for ranking in rankings] == [before] * 2 + [two[0].version] * 2
    assert batches(rankings) == [2] * 4
    with grouped() as alone:
        assert_alike(rankings[:2], [alone.rank(user) for user in range(2)])
        alone.publish(*two)
        assert_alike(rankings[2:], [alone.rank(user) for user in (2, 3)])


def test_rank_many_engine_closed_meanwhile_ends_group(grouped: Make) -> None:
    engine = grouped(4)
    held = Held(engine)
    result: list[Any] = []
    many = threading.Thread(target=lambda: result.extend(engine.rank_many(range(8), return_exceptions=True)))
    many.start()
    held.until_queued(fetched=8, programs=2)
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert eventually(lambda: engine.closed)
    held.release()
    for thread in (closing, many):
        thread.join(30)
        assert not thread.is_alive()
    assert len(result) == 8
    # The first may have been under way.
    assert all(isinstance(error, AifError) for error in result[1:])


def test_rank_many_small_queue_makes_no_groups(grouped: Make) -> None:
    engine = grouped(4, max_queued=2)
    assert batches(engine.rank_many(range(6))) == [1] * 6


@pytest.mark.parametrize("context", [{"unheard_of": 1}, {"hour": [1, 2]}])
def test_rank_many_user_that_cannot_begin_is_not_waited_for(grouped: Make, context: Any) -> None:
    engine = grouped(4)
    contexts: Any = [None, context, None, None]
    for many in (
        engine.rank_many(range(4), contexts=contexts, return_exceptions=True),
        asyncio.run(engine.rank_many_async(range(4, 8), contexts=contexts, return_exceptions=True)),
    ):
        assert isinstance(many[1], RequestError)
        # Of a context that turns out wrong only when it is encoded, the user side is computed all the same.
        assert batches([many[0], *many[2:]]) == ([3] * 3 if "unheard_of" in context else [4] * 3)
    assert settled(engine)


def test_rank_many_async_cancelled_lets_go_of_group(grouped: Make) -> None:
    engine = grouped(4)

    async def cancelled() -> None:
        held = Held(engine)
        task = asyncio.create_task(engine.rank_many_async(range(12)))
        assert await asyncio.to_thread(
            until, engine, lambda stats: stats["scheduler"]["compute"]["queued"] >= 2
        )
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        held.release()

    asyncio.run(cancelled())
    assert settled(engine)
    assert engine.stats()["open_handles"] == 0
    assert batches(engine.rank_many(range(20, 24))) == [4] * 4


class Unspeakable:
    """A revision without a representation, by which it would be compared."""

    def __repr__(self) -> str:
        raise ValueError("unspeakable")


def test_rank_many_revision_that_raises_fails_its_user(grouped: Make, world: World) -> None:
    def source(user: Any) -> UserRecord:
        record, revision = world.record(user), cast(Any, Unspeakable())
        return UserRecord(record.features, record.items, record.types, revision) if user == 2 else record

    with grouped(2, 4, users=source, user_states=UNCACHED) as engine:
        rankings = engine.rank_many(range(4), return_exceptions=True)
        assert isinstance(rankings.pop(2), ValueError)
        assert batches(rankings) == [3] * 3
        assert settled(engine)


Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""As PyO3 raises what panicked in Rust: no Exception, and each extension has its own."""


@many_ways
def test_rank_many_panic_fails_its_user(grouped: Make, world: World, way: str) -> None:
    def source(user: Any) -> UserRecord:
        if user == 2:
            raise Panic("on purpose")
        return world.record(user)

    with grouped(2, 4, users=source) as engine:
        rankings = ran(getattr(engine, way), range(4), return_exceptions=True)
        assert isinstance(rankings.pop(2), Panic)
        assert batches(rankings) == [3] * 3
        assert settled(engine)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, type("Timeout", (BaseException,), {})])
def test_rank_many_interrupt_ends_all(grouped: Make, world: World, kind: type[BaseException]) -> None:
    def retrieve(request: Any) -> Candidates:
        if request.user == 1:
            raise kind
        return Candidates(*world.candidates(30))

    with grouped(2, 4, retrieve=retrieve) as engine:
        with pytest.raises(kind):
            engine.rank_many(range(4), return_exceptions=True)
        assert settled(engine)
        assert engine.stats()["open_handles"] == 0


def test_rank_many_different_history_lengths_are_different_calls(grouped: Make, world: World) -> None:
    records = {user: world.record(user, 5 if user % 2 else 20) for user in range(8)}

    rankings = grouped(4, 8, users=records.get).rank_many(range(8))
    assert batches(rankings) == [4] * 8
    assert [ranking.report.long_bucket for ranking in rankings] == [24, 8] * 4


def test_rank_many_failing_program_fails_its_whole_group(
    grouped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = grouped(4)
    with monkeypatch.context() as patched:

        def compute(*_: Any, **__: Any) -> Any:
            raise MemoryError("no room for states")

        patched.setattr(user_side, "compute_states", compute)
        errors = engine.rank_many(range(4), return_exceptions=True)
    assert [str(error) for error in errors] == ["no room for states"] * 4
    assert all(isinstance(error, MemoryError) for error in errors)
    assert settled(engine)
    assert len(engine.rank_many(range(4))) == 4


def test_rank_many_invalidation_meanwhile_drops_state(grouped: Make) -> None:
    engine = grouped(4)
    held = Held(engine)
    result: list[Any] = []
    many = threading.Thread(target=lambda: result.extend(engine.rank_many(range(4))))
    many.start()
    held.until_queued(fetched=4, programs=1)
    engine.invalidate(2)
    held.release()
    many.join(30)
    assert batches(result) == [4] * 4
    states = [engine.rank(user).report.user_state for user in range(4)]
    assert states == ["hit", "hit", "computed", "hit"]


def test_rank_many_group_times_do_not_count_for_single_requests(
    grouped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = vars(user_side)["compute_states"]

    def slow(users: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.02 if len(users) > 1 else 0.0)
        return real(users, *arguments, **options)

    engine = grouped(4, user_states=UNCACHED)
    for user in range(20):
        engine.rank(user)
    ladder = engine.hooks.generations.current.ladder
    before = ladder.times.expected_ms(USER)
    monkeypatch.setattr(user_side, "compute_states", slow)
    engine.rank_many(range(80))
    # Three of four: the time counts for the program that ran.
    engine.rank_many(range(3))
    assert ladder.times.expected_ms(USER) == before
    assert ladder.times.expected_ms(ladder.user_key(24, 4)) > 15
    assert not ladder.times.expected_ms(ladder.user_key(24, 3))


def test_window_with_deadline_makes_no_groups() -> None:
    def of(
        users: tuple[int, ...] = (8,), deadline_ms: float | None = None, **threads: int
    ) -> tuple[int, int]:
        return Window.of(EngineConfig(shapes=Shapes(users=users), threads=Threads(**threads)), deadline_ms)

    assert of(blocking=5) == (16, 8)
    assert of(blocking=50) == (50, 8)
    assert of(deadline_ms=10.0, blocking=5) == (5, 1)
    assert of(deadline_ms=10.0, blocking=5, max_queued=3) == (3, 1)
    assert of(blocking=5, max_queued=3) == (3, 1)
    assert of(users=(2, 4), max_queued=5) == (5, 2)
    assert of(users=(), blocking=6) == (6, 1)
