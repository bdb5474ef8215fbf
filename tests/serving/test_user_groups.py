"""Groups of `rank_many`, whose user sides start together: each answer is the user's own."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from aif_jax.errors import AifError, RequestError, UnknownUserError
from aif_jax.serving import Engine, EngineConfig, Shapes, Threads
from aif_jax.serving.ladder import USER
from aif_jax.serving.many import Window
from aif_jax.types import Candidates, UserRecord
from support.held import Held, settled
from support.served import UNCACHED, Served, World

Make = Callable[..., Engine]

BROKEN = 99
"""A user whose record is malformed."""


@pytest.fixture
def make(one: Served, world: World) -> Iterator[Make]:
    """Give a function from numbers of users in a call, and fields of `EngineConfig`, to an engine."""

    def source(user: Any) -> UserRecord | None:
        if user == "nobody":
            return None
        record = world.record(user)
        return UserRecord(record.features, record.items, record.types[:-1]) if user == BROKEN else record

    with contextlib.ExitStack() as stack:

        def factory(*users: int, blocking: int = 8, max_queued: int = 1024, **changes: Any) -> Engine:
            threads = Threads(compute=2, blocking=blocking, max_queued=max_queued)
            shapes = Shapes(candidates=(32,), histories=(8, 24), users=users)
            config = EngineConfig(
                k=10, shapes=shapes, threads=threads, **{"unknown_user": "default", **changes}
            )
            return stack.enter_context(
                Engine(
                    *one,
                    users=source,
                    retrieve=lambda _: Candidates(*world.candidates(30)),
                    config=config,
                )
            )

        yield factory


def config_of(*users: int, **changes: Any) -> EngineConfig:
    return EngineConfig(k=10, shapes=Shapes(candidates=(32,), histories=(24,), users=users), **changes)


def batches(rankings: Any) -> list[int]:
    return [ranking.report.user_batch for ranking in rankings]


def assert_alike(rankings: Any, others: Any) -> None:
    """Check that rankings are the same but for the last bits of their scores."""
    for one, other in zip(rankings, others, strict=True):
        assert one.report.user == other.report.user
        assert dict(zip(one.ids.tolist(), one.scores.tolist(), strict=True)) == pytest.approx(
            dict(zip(other.ids.tolist(), other.scores.tolist(), strict=True)), rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])
@pytest.mark.parametrize("deadline_ms", [None, 60_000.0])
def test_many_users_are_computed_together(
    make: Make, world: World, way: str, deadline_ms: float | None
) -> None:
    engine, alone = make(2, 4), make()
    users = list(range(30, 38))
    held = Held(engine)
    result: list[Any] = []

    def many() -> None:
        if way == "rank_many":
            result.extend(engine.rank_many(users, deadline_ms=deadline_ms))
        else:
            result.extend(asyncio.run(engine.rank_many_async(users, deadline_ms=deadline_ms)))

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
@pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])
def test_groups_are_as_large_as_they_can_be(make: Make, users: int, way: str) -> None:
    engine = make(4)
    many = (
        engine.rank_many(range(users))
        if way == "rank_many"
        else asyncio.run(engine.rank_many_async(range(users)))
    )
    left = users % 4
    # Two of four places would cost more than two calls of one.
    assert batches(many) == [4] * (users - left) + ([left] * left if left > 2 else [1] * left)
    alone = make()
    assert_alike(many, [alone.rank(user) for user in range(users)])
    assert settled(engine)


@pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])
def test_who_fails_in_a_group_fails_alone(make: Make, way: str) -> None:
    def rank_many(users: Any, **options: Any) -> list[Any]:
        if way == "rank_many":
            return engine.rank_many(users, **options)
        return asyncio.run(engine.rank_many_async(users, **options))

    engine = make(4, unknown_user="error")
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
    engine = make(2, 4)
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

    with Engine(*one, users=source, retrieve=retrieve, config=config_of(4)) as engine:
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
    engine = make(4)
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
    engine = make(2, 4)

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
    with make() as alone:
        assert_alike(rankings[:2], [alone.rank(user) for user in range(2)])
        alone.publish(*two)
        assert_alike(rankings[2:], [alone.rank(user) for user in (2, 3)])


def test_the_engine_closed_under_a_group(make: Make) -> None:
    engine = make(4)
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
    engine = make(4, max_queued=2)
    assert batches(engine.rank_many(range(6))) == [1] * 6


@pytest.mark.parametrize("context", [{"unheard_of": 1}, {"hour": [1, 2]}])
def test_who_does_not_begin_in_a_group_is_not_waited_for(make: Make, context: Any) -> None:
    engine = make(4)
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
    engine = make(4)

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

    config = config_of(2, 4, user_states=UNCACHED)
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

    config = config_of(2, 4)
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

    config = config_of(2, 4)
    with Engine(*one, users=world.record, retrieve=retrieve, config=config) as engine:
        with pytest.raises(kind):
            engine.rank_many(range(4), return_exceptions=True)
        assert settled(engine)
        assert engine.stats()["open_handles"] == 0


def test_lengths_that_differ_are_calls_that_differ(one: Served, world: World) -> None:
    records = {user: world.record(user, 5 if user % 2 else 20) for user in range(8)}

    def retrieve(_: Any) -> Candidates:
        return Candidates(*world.candidates(30))

    shapes = Shapes(candidates=(32,), histories=(8, 24), users=(4, 8))
    config = EngineConfig(k=10, shapes=shapes)
    with Engine(*one, users=records.get, retrieve=retrieve, config=config) as engine:
        rankings = engine.rank_many(range(8))
    assert batches(rankings) == [4] * 8
    assert [ranking.report.long_bucket for ranking in rankings] == [24, 8] * 4


def test_a_program_that_fails_fails_for_all_of_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from aif_jax.serving import user_side

    engine = make(4)
    with monkeypatch.context() as patched:

        def compute(*_: Any, **__: Any) -> Any:
            raise MemoryError("no room for states")

        patched.setattr(user_side, "compute_states", compute)
        errors = engine.rank_many(range(4), return_exceptions=True)
    assert [str(error) for error in errors] == ["no room for states"] * 4
    assert all(isinstance(error, MemoryError) for error in errors)
    assert settled(engine)
    assert len(engine.rank_many(range(4))) == 4


def test_an_invalidation_meanwhile_counts_in_a_group(make: Make) -> None:
    engine = make(4)
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


def test_the_time_of_groups_is_nothing_to_single_requests(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aif_jax.serving import user_side

    real: Any = vars(user_side)["compute_states"]

    def slow(users: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.02 if len(users) > 1 else 0.0)
        return real(users, *arguments, **options)

    engine = make(4, user_states=UNCACHED)
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


def test_with_a_deadline_few_wait_for_each_other() -> None:
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
