"""Cached user states: how old they are, when they are dropped, and that nothing of before comes after."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import Tables
from aif_jax.serving import Engine, EngineConfig, Shapes, UserStateCache
from aif_jax.types import UserRecord
from support.served import World

Make = Callable[..., Engine]


class Records:
    """A user source whose records change without a new revision, and that can be held up."""

    def __init__(self, world: World):
        self.world, self.seed, self.revision = world, 1, 0
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, user: Any) -> UserRecord:
        found = self.world.record(self.seed, revision=self.revision)
        self.asked.set()
        assert self.gate.wait(30)
        return found


@pytest.fixture
def records(world: World) -> Iterator[Records]:
    made = Records(world)
    yield made
    made.gate.set()


@pytest.fixture
def make(bundle: Bundle, tables: Tables, records: Records) -> Iterator[Make]:
    made: list[Engine] = []
    shapes = Shapes(candidates=(32,), histories=(8, 24))

    def factory(users: Any = records, **changes: Any) -> Engine:
        config = EngineConfig(k=10, shapes=shapes, **changes)
        made.append(Engine(bundle, tables, users=users, config=config))
        return made[-1]

    yield factory
    for engine in made:
        engine.close()


def counts(engine: Engine) -> dict[str, int]:
    return {name: engine.stats()["user_states"]["24"][name] for name in ("stale", "invalidated", "void")}


def test_the_report_says_how_old_a_state_is(make: Make, world: World) -> None:
    engine = make()
    first = engine.begin(1).rank(world.ids[:20]).report
    time.sleep(0.02)
    second = engine.begin(1).rank(world.ids[:20]).report
    assert (first.user_state, first.user_state_age_ms) == ("computed", 0.0)
    assert second.user_state == "hit"
    assert 20 <= second.user_state_age_ms < 60_000


def test_a_new_revision_takes_the_place_of_the_old_state(make: Make, world: World, records: Records) -> None:
    engine = make()
    states = []
    for revision in (0, 1, 1, 0):
        records.revision = revision
        states.append(engine.begin(1).rank(world.ids[:20]).report.user_state)
    assert states == ["computed", "computed", "hit", "computed"]
    assert counts(engine) == {"stale": 2, "invalidated": 0, "void": 0}
    assert engine.stats()["user_states"]["24"]["live_rows"] == 1


def test_a_state_ends_with_its_time_to_live(make: Make, world: World) -> None:
    engine = make(user_states=UserStateCache(ttl_s=1.0))
    states = [engine.begin(1).rank(world.ids[:20]).report.user_state for _ in range(2)]
    time.sleep(2.1)  # the cache's clock ticks in seconds
    states.append(engine.begin(1).rank(world.ids[:20]).report.user_state)
    assert states == ["computed", "hit", "computed"]


@pytest.mark.parametrize("users", [1, np.int64(1), [1, 2], iter([1])])
def test_invalidated_users_are_computed_anew(make: Make, world: World, records: Records, users: Any) -> None:
    engine = make()
    ids, pair = world.candidates(30)
    before, _ = (engine.begin(user).rank(ids, pair).scores.tolist() for user in (1, "1"))
    records.seed = 2
    assert engine.begin(1).rank(ids, pair).report.user_state == "hit"
    assert engine.invalidate(users) == 1
    ranking = engine.begin(1).rank(ids, pair)
    assert ranking.report.user_state == "computed"
    assert engine.begin("1").rank(ids, pair).report.user_state == "hit", "another user"
    fresh = make().begin(1).rank(ids, pair)
    assert ranking.scores.tolist() == fresh.scores.tolist() != before
    assert counts(engine)["invalidated"] == 1


def test_what_is_computed_of_a_record_of_before_is_not_kept(
    make: Make, world: World, records: Records
) -> None:
    engine = make()
    records.gate.clear()
    pending = engine.begin(1)
    assert records.asked.wait(30)
    records.seed = 2
    assert engine.invalidate(1) == 0
    records.gate.set()
    assert pending.rank(world.ids[:20]).report.user_state == "computed"
    states = [engine.begin(1).rank(world.ids[:20]).report.user_state for _ in range(2)]
    assert states == ["computed", "hit"]
    assert counts(engine) == {"stale": 0, "invalidated": 0, "void": 1}


def test_nobody_is_ranked_by_a_record_of_before_an_invalidation(make: Make, world: World) -> None:
    """Under load: each request's scores are those of a record at least as new as the last invalidation."""
    newest, seeds = [0], 6

    def users(user: Any) -> UserRecord:
        found = world.record(newest[0])
        time.sleep(0.001)
        return found

    engine = make(users)
    ids, pair = world.candidates(30)
    expected = []
    for seed in range(seeds):
        newest[0] = seed
        engine.invalidate(1)
        expected.append(engine.begin(1).rank(ids, pair).scores.tolist())
    assert len({str(scores) for scores in expected}) == seeds
    newest[0] = 0
    engine.invalidate(1)
    old: list[tuple[int, list[float]]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            since = confirmed[0]
            scores = engine.begin(1).rank(ids, pair).scores.tolist()
            if expected.index(scores) < since:
                old.append((since, scores))

    confirmed = [0]
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seed in range(1, seeds):
        time.sleep(0.05)
        newest[0] = seed
        engine.invalidate(1)
        confirmed[0] = seed
    time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not old


def test_more_invalidations_than_are_remembered_keep_nothing_of_before(
    make: Make, world: World, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aif_jax.serving.user_states._MAX_REMEMBERED", 3)
    engine = make()
    records.gate.clear()
    pending = engine.begin(1)
    assert records.asked.wait(30)
    engine.invalidate([1, 2, 3, 4, 5])
    records.gate.set()
    pending.rank(world.ids[:20])
    assert counts(engine)["void"] == 1
    assert engine.begin(1).rank(world.ids[:20]).report.user_state == "computed"
    assert engine.begin(1).rank(world.ids[:20]).report.user_state == "hit"


def test_the_bytes_of_a_state_are_those_of_its_rows(make: Make, world: World) -> None:
    engine = make()
    engine.begin(1).rank(world.ids[:20])
    stats = engine.stats()["user_states"]["24"]
    assert stats["bytes_per_state"] == stats["payload_bytes"]
