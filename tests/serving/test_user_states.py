"""Cached user states: their age, their bytes, and invalidation."""

import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import (
    ConfigError,
    OverloadedError,
)
from aif_jax.nearline.store import RowStore
from aif_jax.serving import Engine, InMemoryUsers, UserStateCache
from aif_jax.types import UserRecord
from support.held import GatedUsers
from support.served import ONE_SIZE, UNCACHED, Make, World, assert_ranks_as
from support.waiting import eventually


class Records:
    """A user source whose records change without a new revision."""

    def __init__(self, world: World):
        self.world, self.seed, self.revision = world, 1, 0

    def __call__(self, user: Any) -> UserRecord:
        return self.world.record(self.seed, revision=self.revision)


@pytest.fixture
def records(world: World) -> Records:
    return Records(world)


@pytest.fixture
def source(records: Records) -> GatedUsers:
    return GatedUsers(records)


@pytest.fixture
def cached(make: Make, source: GatedUsers) -> Make:
    """A function that makes engines over `source`."""
    return partial(make, users=source)


def counts(engine: Engine) -> dict[str, int]:
    return {name: engine.stats()["user_states"]["24"][name] for name in ("stale", "invalidated", "void")}


@pytest.mark.parametrize("step_s", [0.0, 3600.0, -3600.0])
def test_user_states_report_gives_age_whatever_the_clock_does(
    cached: Make, world: World, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    engine = cached()
    first = engine.begin(1).rank(world.ids[:20]).report
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + step_s)
    time.sleep(0.02)  # at least
    second = engine.begin(1).rank(world.ids[:20]).report
    assert (first.user_state, first.user_state_age_ms) == ("computed", 0.0)
    assert second.user_state == "hit"
    assert 20 <= second.user_state_age_ms < 60_000


def test_user_states_new_revision_replaces_old_state(cached: Make, world: World, records: Records) -> None:
    engine = cached()
    states = []
    for revision in (0, 1, 1, 0):
        records.revision = revision
        states.append(engine.begin(1).rank(world.ids[:20]).report.user_state)
    assert states == ["computed", "computed", "hit", "computed"]
    assert counts(engine) == {"stale": 2, "invalidated": 0, "void": 0}
    assert engine.stats()["user_states"]["24"]["live_rows"] == 1


def test_user_states_state_expires_after_time_to_live(cached: Make, world: World) -> None:
    engine = cached(user_states=UserStateCache(ttl_s=1.0))

    def state() -> str:
        return engine.begin(1).rank(world.ids[:20]).report.user_state

    assert state() == "computed"
    seen = [state()]
    # The cache's clock ticks in seconds; a hit does not make a state younger.
    assert eventually(lambda: seen.append(state()) or seen[-1] == "computed", within_s=10.0)
    assert seen[:-1] == ["hit"] * (len(seen) - 1)
    assert len(seen) > 1


@pytest.mark.parametrize("users", [1, np.int64(1), [1, 2], {1}])
def test_invalidate_users_are_computed_anew(cached: Make, world: World, records: Records, users: Any) -> None:
    engine = cached()
    ids, pair = world.candidates(30)
    before, _ = (engine.begin(user).rank(ids, pair).scores.tolist() for user in (1, "1"))
    records.seed = 2
    assert engine.begin(1).rank(ids, pair).report.user_state == "hit"
    assert engine.invalidate(users) == 1
    ranking = engine.begin(1).rank(ids, pair)
    assert ranking.report.user_state == "computed"
    assert engine.begin("1").rank(ids, pair).report.user_state == "hit", "another user"
    fresh = cached().begin(1).rank(ids, pair)
    assert ranking.scores.tolist() == fresh.scores.tolist() != before
    assert counts(engine)["invalidated"] == 1


def test_invalidate_during_fetch_keeps_no_older_state(
    cached: Make, world: World, records: Records, source: GatedUsers
) -> None:
    engine = cached()
    source.gate.clear()
    pending = engine.begin(1)
    assert source.asked.wait(30)
    records.seed = 2
    assert engine.invalidate(1) == 0
    source.gate.set()
    assert pending.rank(world.ids[:20]).report.user_state == "computed"
    states = [engine.begin(1).rank(world.ids[:20]).report.user_state for _ in range(2)]
    assert states == ["computed", "hit"]
    assert counts(engine) == {"stale": 0, "invalidated": 0, "void": 1}


def test_invalidate_under_load_ranks_by_newer_records_only(cached: Make, world: World) -> None:
    """Under load: each request's scores are those of a record at least as new as the last invalidation."""
    newest, seeds = [0], 6

    def users(user: Any) -> UserRecord:
        found = world.record(newest[0])
        time.sleep(0.001)
        return found

    engine = cached(users=users)
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


def test_invalidate_beyond_remembered_keeps_no_older_state(
    cached: Make, world: World, source: GatedUsers
) -> None:
    engine = cached()
    source.gate.clear()
    pending = engine.begin(1)
    assert source.asked.wait(30)
    engine.invalidate(range(1, 70_000))  # 65,536 are remembered
    source.gate.set()
    pending.rank(world.ids[:20])
    assert counts(engine)["void"] == 1
    assert engine.begin(1).rank(world.ids[:20]).report.user_state == "computed"
    assert engine.begin(1).rank(world.ids[:20]).report.user_state == "hit"


def test_user_states_bytes_per_state_are_those_of_its_rows(cached: Make, world: World) -> None:
    engine = cached()
    engine.begin(1).rank(world.ids[:20])
    stats = engine.stats()["user_states"]["24"]
    assert stats["bytes_per_state"] == stats["payload_bytes"]


def test_user_states_cached_state_is_free_of_context(make: Make, world: World) -> None:
    users = InMemoryUsers({1: world.record(1)})
    record = users(1)
    assert record is not None
    ids, pair = world.candidates(30)
    with make(users=users) as engine:
        cold = engine.begin(1, {"hour": 3}).rank(ids, pair)
        hot = engine.begin(1, {"hour": 20}).rank(ids, pair)
        again = engine.begin(1, {"hour": 3}).rank(ids, pair)
        assert [r.report.user_state for r in (cold, hot, again)] == ["computed", "hit", "hit"]
        assert_ranks_as(cold, ids, *world.scores(record, ids, pair, {"hour": 3}))
        assert_ranks_as(hot, ids, *world.scores(record, ids, pair, {"hour": 20}))
        assert again.scores.tolist() == cold.scores.tolist()
        assert set(hot.scores.tolist()) != set(cold.scores.tolist())
        # A new revision of the record is another state.
        users.put(1, record.features, record.items[:4], record.types[:4])
        changed = engine.begin(1, {"hour": 3}).rank(ids, pair)
        assert changed.report.user_state == "computed"
        record = users(1)
        assert record is not None
        assert_ranks_as(changed, ids, *world.scores(record, ids, pair, {"hour": 3}))


def test_user_states_without_cache_are_computed_each_time(make: Make, world: World) -> None:
    engine, (ids, pair) = make(user_states=UNCACHED), world.candidates(10)
    states = [engine.begin(4).rank(ids, pair).report.user_state for _ in range(2)]
    assert states == ["computed", "computed"]


def test_user_states_small_cache_stays_within_its_bytes(make: Make, world: World) -> None:
    engine = make(users=world.record, user_states=UserStateCache(max_bytes=128 * 1024))
    ids, pair = world.candidates(10)
    for user in range(100):
        engine.begin(user).rank(ids, pair)
    rankings = [engine.begin(user).rank(ids, pair).report.user_state for user in reversed(range(100))]
    assert 0 < rankings.count("hit") < 90


def test_user_states_user_id_without_utf8_form_is_kept(make: Make, world: World) -> None:
    engine = make(users=lambda user: world.record(1))
    states = [engine.begin("\ud800").rank(world.ids[:5]).report.user_state for _ in range(2)]
    assert states == ["computed", "hit"]


@pytest.mark.parametrize("error", [OverloadedError("no row is free"), MemoryError()])
def test_user_states_no_room_is_counted_and_request_is_ranked(
    make: Make, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
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


def test_user_states_cache_too_small_for_one_state_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"user_states\.max_bytes: got 1000, of which .* history of 24"):
        make(shapes=ONE_SIZE, user_states=UserStateCache(max_bytes=1000))


def test_user_states_changed_record_without_revision_is_computed_again(make: Make, world: World) -> None:
    """The source gives another record, or changes the one that it gave."""
    first, second = world.record(1), world.record(2)
    items, features = first.items.copy(), dict(first.features)
    records = {1: UserRecord(features, items, first.types)}
    engine = make(users=records.get)

    def state() -> str:
        return engine.begin(1).rank(world.ids[:20]).report.user_state

    assert [state(), state()] == ["computed", "hit"]
    items[0] = second.items[-1]
    assert [state(), state()] == ["computed", "hit"]
    features["country"] = "it"
    assert [state(), state()] == ["computed", "hit"]
    features["seen_at"] = 17.0  # which the model does not read
    records[1] = UserRecord(features, items.tolist(), first.types)
    assert [state(), state()] == ["computed", "hit"]  # ids of another type may be other ids
    records[1] = UserRecord(dict(features), items.tolist(), first.types.copy())
    assert state() == "hit"
    assert counts(engine)["stale"] == 3
