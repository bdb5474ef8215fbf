"""Requests whose user sides are computed in one call: each answer is the own one, whatever the company."""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from aif_jax.errors import AifError, ConfigError, RequestError
from aif_jax.futures import TaskFuture
from aif_jax.serving import Engine, EngineConfig, Pending
from aif_jax.serving.ladder import USER
from aif_jax.serving.many import window
from aif_jax.serving.user_batches import UserBatches, UserWork
from aif_jax.types import UserRecord
from held import Held
from served import Served, World
from user_batching import BROKEN, Make, assert_alike, batches, batching_engines, ranked, settled


@pytest.fixture
def make(one: Served, world: World) -> Iterator[Make]:
    with batching_engines(one, world) as factory:
        yield factory


@pytest.mark.parametrize("way", ["rank_many", "rank_many_async"])
@pytest.mark.parametrize("deadline_ms", [None, 60_000.0])
def test_many_users_are_computed_together(
    make: Make, world: World, way: str, deadline_ms: float | None
) -> None:
    engine, alone = make(), make(user_batches=())
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
    # Without a deadline they wait for each other, with one they meet in the queue.
    grouped = deadline_ms is None
    held.until_queued(fetched=8 if way == "rank_many" else 16, programs=2 if grouped else 8)
    held.release()
    thread.join(60)
    assert batches(result) == [4] * 8
    assert_alike(result, [alone.rank(user) for user in users])
    stats = engine.stats()
    assert stats["requests"]["user_batched"] == 8
    assert stats["scheduler"]["compute"]["cancelled"] == (0 if grouped else 6)
    for ranking in result:
        tasks = {task.name: task for task in ranking.report.tasks}
        assert tasks["users"].submitted_s <= tasks["users"].began_s < tasks["users"].ended_s
        assert ranking.report.queue_ms["users"] > 0
    # Kept, each for its own user.
    again = engine.rank_many(users)
    assert [ranking.report.user_state for ranking in again] == ["hit"] * 8
    assert batches(again) == [0] * 8
    assert_alike(again, result)
    assert settled(engine)


def test_requests_of_their_own_share_a_call_only_if_they_are_to(make: Make, world: World) -> None:
    for batching, expected in (("rank_many", 1), ("all", 4)):
        engine = make(user_batching=batching)
        held = Held(engine)
        pendings = [engine.begin(user) for user in range(4)]
        held.until_queued(fetched=4, programs=4)
        held.release()
        assert batches(ranked(pendings, world)) == [expected] * 4


@pytest.mark.parametrize(("users", "expected"), [(2, [2, 2]), (3, [1, 2, 2]), (6, [2, 2, 4, 4, 4, 4])])
def test_a_batch_is_full(make: Make, world: World, users: int, expected: list[int]) -> None:
    engine = make(user_batching="all", compute_threads=1)
    held = Held(engine)
    pendings = [engine.begin(user) for user in range(users)]
    held.until_queued(fetched=users, programs=users)
    held.release()
    assert sorted(batches(ranked(pendings, world))) == expected


def test_lengths_that_differ_are_calls_that_differ(one: Served, world: World) -> None:
    records = {user: world.record(user, 5 if user % 2 else 20) for user in range(8)}
    config = EngineConfig(
        k=10, buckets=(32,), long_buckets=(8, 24), compute_threads=1, user_batches=(4,), user_batching="all"
    )
    with Engine(*one, users=records.get, config=config) as engine:
        held = Held(engine)
        pendings = [engine.begin(user) for user in range(8)]
        held.until_queued(fetched=8, programs=8)
        held.release()
        rankings = ranked(pendings, world)
    assert batches(rankings) == [4] * 8
    assert [ranking.report.long_bucket for ranking in rankings] == [24, 8] * 4


def test_who_is_wrong_in_a_batch_is_wrong_alone(make: Make, world: World) -> None:
    engine = make(user_batching="all", compute_threads=1)
    alone = [engine.begin(user).rank(*world.candidates(20)) for user in (1, "nobody", 2)]
    engine.invalidate([1, 2])
    hour: Any = {"hour": [1, 2]}
    held = Held(engine)
    pendings = [engine.begin(1), engine.begin(BROKEN), engine.begin("nobody"), engine.begin(2)]
    pendings += [engine.begin(5, hour), *(engine.begin(user) for user in (3, 4, 6, 7))]
    held.until_queued(fetched=3 + 9, programs=9)
    held.release()
    with pytest.raises(RequestError, match="18 items and 17 types"):
        ranked([pendings.pop(1)], world)
    with pytest.raises(RequestError, match="context"):
        ranked([pendings.pop(3)], world)
    rankings = ranked(pendings, world)
    assert_alike(rankings[:3], alone)
    # Nobody has no history, so a call of their own; of the others two batches, one with the broken record.
    assert batches(rankings)[1] == 1
    assert sorted(batches(rankings[:1] + rankings[2:]))[:2] == [3, 3]
    assert max(batches(rankings)) == 4
    assert settled(engine)
    # Of a record that was read nothing is lost with the context.
    assert engine.begin(5).rank(*world.candidates(20)).report.user_state == "computed"


def test_who_waits_for_a_user_gets_the_state_from_a_batch(make: Make, world: World) -> None:
    engine = make(user_batching="all", user_state_bytes=0)
    held = Held(engine)
    pendings = [engine.begin(user) for user in (1, 1, 2, 2, 3, 4, 4)]
    held.until_queued(fetched=7, programs=4)
    held.release()
    rankings = ranked(pendings, world)
    found = sorted((r.report.user, r.report.user_state, r.report.user_batch) for r in rankings)
    assert found == [
        (1, "computed", 4), (1, "joined", 0), (2, "computed", 4), (2, "joined", 0),
        (3, "computed", 4), (4, "computed", 4), (4, "joined", 0),
    ]  # fmt: skip
    by_user = {r.report.user: r.scores.tobytes() for r in rankings}
    assert all(ranking.scores.tobytes() == by_user[ranking.report.user] for ranking in rankings)
    assert settled(engine)


def test_given_up_in_the_queue_is_not_computed(make: Make, world: World) -> None:
    engine = make(user_batching="all", compute_threads=1)
    held = Held(engine)
    pendings = [engine.begin(user) for user in range(6)]
    held.until_queued(fetched=6, programs=6)
    for pending in pendings[1:3]:
        pending.cancel()
    held.release()
    assert batches(ranked([pendings[0], *pendings[3:]], world)) == [4] * 4
    assert settled(engine)
    assert engine.stats()["open_handles"] == 0
    assert engine.begin(1).rank(*world.candidates(20)).report.user_state == "computed"


def test_an_invalidation_meanwhile_counts_in_a_batch(make: Make, world: World) -> None:
    engine = make(user_batching="all")
    held = Held(engine)
    pendings = [engine.begin(user) for user in range(4)]
    held.until_queued(fetched=4, programs=4)
    engine.invalidate(2)
    held.release()
    assert batches(ranked(pendings, world)) == [4] * 4
    states = [engine.begin(user).rank(*world.candidates(20)).report.user_state for user in range(4)]
    assert states == ["hit", "hit", "computed", "hit"]


@pytest.mark.parametrize("late", ["degrade", "error"])
def test_no_batch_where_it_would_be_late(make: Make, world: World, late: str) -> None:
    engine = make(user_batching="all", compute_threads=1, late=late)
    ladder = engine._release.rungs.ladder
    held = Held(engine)
    pendings = [engine.begin(0), engine.begin(1, deadline_ms=60_000), *(engine.begin(n) for n in (2, 3))]
    held.until_queued(fetched=4, programs=4)
    # A batch of four would take two minutes, one of two no time.
    for _ in range(400):
        ladder.times.record(ladder.user_key(24, 4), 120_000.0)
    held.release()
    rankings = ranked(pendings, world)
    assert [ranking.report.rung for ranking in rankings] == [0] * 4
    # Due first is user 1, who may take one along.
    assert batches(rankings)[1] == 2
    assert sorted(batches(rankings)) == [2, 2, 2, 2]


def test_a_program_that_fails_fails_for_all_of_them(
    make: Make, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aif_jax.serving import user_side

    engine = make(user_batching="all", compute_threads=1)
    held = Held(engine)
    pendings = [engine.begin(user) for user in range(4)]
    held.until_queued(fetched=4, programs=4)
    with monkeypatch.context() as patched:

        def compute(*_: Any, **__: Any) -> Any:
            raise MemoryError("no room for states")

        patched.setattr(user_side, "compute_states", compute)
        held.release()
        for pending in pendings:
            with pytest.raises(MemoryError, match="no room"):
                pending.rank(*world.candidates(20))
    assert settled(engine)
    assert len(engine.rank_many(range(4))) == 4


def test_closing_ends_those_that_wait_for_a_batch(make: Make, world: World) -> None:
    engine = make(user_batching="all")
    held = Held(engine)
    pendings = [engine.begin(user) for user in range(6)]
    held.until_queued(fetched=6, programs=6)
    ended: list[Any] = []

    def rank(pending: Pending) -> None:
        try:
            ended.append(pending.rank(*world.candidates(20)))
        except AifError as error:
            ended.append(error)

    # Two of them wait already: what was begun ends, with an answer or an error.
    ranking = [threading.Thread(target=rank, args=(pending,)) for pending in pendings[:2]]
    closing = threading.Thread(target=engine.close)
    for thread in (*ranking, closing):
        thread.start()
    while not engine.closed:
        time.sleep(0.001)
    held.release()
    for thread in (*ranking, closing):
        thread.join(30)
        assert not thread.is_alive()
    assert len(ended) == 2
    for pending in pendings[2:]:
        with pytest.raises(AifError):
            pending.rank(*world.candidates(20))


@pytest.mark.parametrize("cached", [True, False])
def test_storms_in_batches_are_answered_right(make: Make, world: World, cached: bool) -> None:
    """Requests of few users, some given up at random moments, some with deadlines."""
    engine = make(user_batching="all", **({} if cached else {"user_state_bytes": 0}))
    expected = {user: engine.rank(user) for user in range(12)}
    engine.invalidate(range(12))
    rng = random.Random(5)

    async def one(number: int) -> Any:
        user = number % 12
        task = asyncio.create_task(engine.rank_async(user, deadline_ms=20_000.0 if number % 3 else None))
        if number % 5 == 0:
            await asyncio.sleep(rng.random() * 0.01)
            task.cancel()
        if number % 11 == 0:
            engine.invalidate(user)
        try:
            return await task
        except asyncio.CancelledError:
            return None

    async def storm() -> list[Any]:
        found = []
        for wave in range(8):
            found += await asyncio.gather(*(one(wave * 60 + n) for n in range(60)))
        return found

    answers = asyncio.run(storm())
    there = [ranking for ranking in answers if ranking is not None]
    assert len(there) >= 350
    assert max(batches(there)) == 4
    assert_alike(there, [expected[ranking.report.user] for ranking in there])
    assert settled(engine)
    stats = engine.stats()
    counts = stats["requests"]
    assert counts["begun"] == counts["ranked"] + counts.get("abandoned", 0) + counts.get("failed", 0)
    assert (stats["scheduler"]["compute"]["queued"], stats["open_handles"]) == (0, 0)


@pytest.mark.parametrize("sizes", [(1,), (4, 2), (2, 2), (2.5,), (True,), ("4",)])
def test_sizes_that_make_no_sense(sizes: Any) -> None:
    with pytest.raises(ConfigError, match=r"user_batches: got .*at least 2, ascending"):
        EngineConfig(user_batches=sizes)


def test_batching_that_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="user_batching: got 'some', expected 'rank_many' or 'all'"):
        EngineConfig(user_batching="some")  # pyright: ignore[reportArgumentType]


def test_a_batch_that_was_too_slow_is_tried_again(make: Make, world: World) -> None:
    engine = make(user_batching="all", user_batches=(4,), compute_threads=1, user_state_bytes=0)
    ladder = engine._release.rungs.ladder
    for _ in range(400):
        ladder.times.record(ladder.user_key(24, 4), 65_000.0)
    found, fetched = [], 0
    while not found or max(found[-1]) == 1:
        held = Held(engine)
        pendings = [engine.begin(user, deadline_ms=60_000) for user in range(4)]
        fetched += 4
        held.until_queued(fetched=fetched, programs=4)
        held.release()
        found.append(batches(ranked(pendings, world)))
        assert len(found) < 20
    # Not at once, and then it took no time.
    assert found[0] == [1] * 4
    assert found[-1] == [4] * 4
    assert ladder.times.expected_ms(ladder.user_key(24, 4)) < 65_000 * 0.98**3


def test_what_batches_take_is_nothing_to_single_requests(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from aif_jax.serving import user_side

    real: Any = vars(user_side)["compute_states"]

    def slow(users: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.02 if len(users) > 1 else 0.0)
        return real(users, *arguments, **options)

    engine = make(user_batches=(4,), user_state_bytes=0)
    for user in range(20):
        engine.rank(user)
    ladder = engine._release.rungs.ladder
    before, predicted = ladder.times.expected_ms(USER), engine._scheduler.predict_ms("compute", "user", None)
    monkeypatch.setattr(user_side, "compute_states", slow)
    engine.rank_many(range(80))
    # Seven of eight: the time counts for the program that ran.
    engine.rank_many(range(3))
    assert ladder.times.expected_ms(USER) == before
    assert engine._scheduler.predict_ms("compute", "user", None) == predicted
    assert ladder.times.expected_ms(ladder.user_key(24, 4)) > 15
    assert not ladder.times.expected_ms(ladder.user_key(24, 3))


def test_with_a_deadline_few_wait_for_each_other(make: Make) -> None:
    assert window(EngineConfig(blocking_threads=5), None) == (16, 8)
    assert window(EngineConfig(blocking_threads=50), None) == (50, 8)
    assert window(EngineConfig(blocking_threads=5), 10.0) == (5, 1)
    assert window(EngineConfig(blocking_threads=5, queue_bound=3), 10.0) == (3, 1)
    assert window(EngineConfig(blocking_threads=5, queue_bound=3), None) == (3, 1)
    assert window(EngineConfig(user_batches=(2, 4), queue_bound=5), None) == (5, 2)
    assert window(EngineConfig(user_batches=(), blocking_threads=6), None) == (6, 1)


def test_a_user_side_that_ends_just_when_it_is_taken_along_lets_go_of_its_flight(
    make: Make, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task runs before it is on the list, and ends between the two steps of who takes it from there."""
    from aif_jax.serving import user_side

    engine = make(user_batching="all", user_batches=(2,), user_state_bytes=0)
    waiting = engine._release.user_sides._batches
    real, wait, cancel = vars(user_side)["compute_states"], waiting.wait, TaskFuture.cancel
    runs, end = threading.Event(), threading.Event()

    def compute(users: Any, *arguments: Any, **options: Any) -> Any:
        if users[0][0] == 1:
            runs.set()
            assert end.wait(30)
        return real(users, *arguments, **options)

    def late(work: UserWork, task: Any) -> None:
        assert work.pending.user != 1 or runs.wait(30)
        wait(work, task)

    def midway(task: TaskFuture[Any]) -> bool:
        if first.taken_along:
            end.set()
            while not task.done():
                time.sleep(0.001)
        return cancel(task)

    with monkeypatch.context() as patched:
        patched.setattr(user_side, "compute_states", compute)
        patched.setattr(waiting, "wait", late)
        patched.setattr(TaskFuture, "cancel", midway)
        first = engine.begin(1)
        while 1 not in [work.pending.user for work in waiting._waiting[24]]:
            time.sleep(0.001)
        assert batches(ranked([engine.begin(2), first], world)) == [1, 1]
    assert end.is_set()
    assert settled(engine)


def test_each_user_side_is_taken_along_once(make: Make) -> None:
    """Threads whose turn comes at the same time; what is left runs by itself, unless it is given up."""
    engine, rng = make(user_batching="all"), random.Random(7)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            race(engine, rng)
    finally:
        sys.setswitchinterval(interval)


def race(engine: Engine, rng: random.Random) -> None:
    release, batches = engine._release, UserBatches((1, 2, 4))
    pendings = [Pending(engine, release, user, {}, None) for user in range(24)]
    works = [UserWork(pending, UserRecord(), 24, False, (0.0, 0.0), 0) for pending in pendings]
    tasks = {work: Future[None]() for work in works}
    for work, task in tasks.items():
        batches.wait(work, task)
    barrier, taken = threading.Barrier(4), []

    def turns(start: int) -> None:
        barrier.wait()
        for work in works[start::3]:
            if tasks[work].set_running_or_notify_cancel():
                taken.append(work)
                taken.extend(batches.taken_along(work, release.rungs.ladder))
                tasks[work].set_result(None)

    given_up = rng.sample(works, 3)
    threads = [threading.Thread(target=turns, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    barrier.wait()
    for work in given_up:
        tasks[work].cancel()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == len(taken)
    assert set(works) - set(given_up) <= set(taken)
    assert not any(batches._waiting.values())
