"""Publish and rollback: nothing fails, nothing waits, and no answer mixes generations."""

import asyncio
import dataclasses
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import compilations
from aif_jax.errors import (
    AifError,
    ConfigError,
    PublishError,
    RequestError,
    SchedulerError,
    VersionMismatchError,
)
from aif_jax.serving import Engine, GoldenRequest, InMemoryUsers, MissingItems, PublishChecks
from aif_jax.serving.generation import Generation
from aif_jax.types import Candidates, ItemRecords
from support.served import ENGINE_CONFIG, K_MAX, Make, Served, World, part_of, ran, tables_of, ways
from support.waiting import eventually

USERS = range(1, 8)


@pytest.fixture(scope="module")
def expected(
    one: Served, two: Served, users: InMemoryUsers, world: World
) -> dict[tuple[str, int], tuple[list[int], bytes]]:
    """Answers to each user's request by version, of engines that serve one version only."""
    found = {}
    for served in (one, two):
        with Engine(*served, users=users, config=ENGINE_CONFIG) as engine:
            for user in USERS:
                ranking = engine.begin(user).rank(*world.candidates(30))
                found[engine.version, user] = (ranking.ids.tolist(), ranking.scores.tobytes())
    return found


def answer(ranking: Any) -> tuple[list[int], bytes]:
    return ranking.ids.tolist(), ranking.scores.tobytes()


def shown(ids_and_scores: tuple[list[int], bytes]) -> tuple[tuple[int, ...], bytes]:
    return tuple(ids_and_scores[0]), ids_and_scores[1]


def test_publish_then_rollback_serves_new_then_old_generation(
    make: Make, one: Served, two: Served, expected: Any
) -> None:
    engine = make()
    assert answer(engine.rank(5)) == expected[one[0].version, 5]
    published = engine.publish(*two)
    assert (published.version, published.previous) == (two[0].version, one[0].version)
    assert (engine.version, engine.bundle) == (two[0].version, two[0])
    ranking = engine.rank(5)
    assert ranking.report.version == two[0].version
    assert answer(ranking) == expected[two[0].version, 5] != expected[one[0].version, 5]
    assert engine.rollback() == one[0].version
    assert answer(engine.rank(5)) == expected[one[0].version, 5]
    assert engine.rollback() == two[0].version
    assert answer(engine.rank(5)) == expected[two[0].version, 5]
    generations = engine.stats()["generations"]
    assert generations == {
        "published": 1, "rolled_back": 2, "open": 0, "previous": one[0].version, "previous_open": 0,
    }  # fmt: skip


@ways
def test_publish_open_requests_keep_their_generation(
    make: Make, one: Served, two: Served, world: World, expected: Any, way: str
) -> None:
    engine = make()
    pendings = {user: engine.begin(user) for user in USERS}
    assert engine.stats()["generations"]["open"] == len(USERS)
    engine.publish(*two)
    generations = engine.stats()["generations"]
    assert (generations["open"], generations["previous_open"]) == (0, len(USERS))

    for user, pending in pendings.items():
        assert pending.version == one[0].version
        assert answer(ran(getattr(pending, way), *world.candidates(30))) == expected[one[0].version, user]
    assert engine.stats()["generations"]["previous_open"] == 0


CHANGING = 27
"""Row of an item that is a candidate, is in histories, and changes while requests are ranked."""


def change(served: Served, world: World, variant: int, *, item: bool = True, behaviour: bool = True) -> None:
    """Give an item one of two sets of features, in the index, the behaviour table or both."""
    columns = {
        "item": world.columns["item"][[CHANGING]], "price": np.array([1.0 + 8.0 * variant]),
        "genres": [["drama"] if variant else ["noir", "comedy"]],
    }  # fmt: skip
    tables = served[1]
    for table in (tables.items,) * item + (tables.behaviours,) * behaviour:
        table.upsert(world.ids[[CHANGING]], columns, world.content[[CHANGING]])


def test_publish_under_load_mixes_no_generations(
    make: Make, one: Served, two: Served, users: InMemoryUsers, world: World
) -> None:
    """All at once: threads and coroutines rank, users are invalidated, an item changes in the tables of both
    generations, shadows come and go, and generations change, one of them while its tables are being filled.

    Every answer has the bits of one version, with the changing item's row as it is before or after a change;
    and so has its row among the behaviours, which is the older the longer a user state was cached.
    """
    ids, pair = world.ids[20 : 20 + K_MAX], world.candidates(K_MAX)[1]
    both = (tables_of(one[0], world), tables_of(two[0], world))
    possible: dict[tuple[str, int], set[Any]] = {}
    for served in both:
        for item, behaviour in ((0, 0), (0, 1), (1, 0), (1, 1)):
            change(served, world, item, behaviour=False)
            change(served, world, behaviour, item=False)
            with Engine(*served, users=users, config=ENGINE_CONFIG) as alone:
                for user in USERS:
                    ids_and_scores = answer(alone.begin(user).rank(ids, pair, k=K_MAX))
                    possible.setdefault((alone.version, user), set()).add(shown(ids_and_scores))
    sizes = [len(answers) for answers in possible.values()]
    assert min(sizes) >= 2, "the item's row changes every answer"
    assert max(sizes) == 4, "its behaviour row that of some"
    engine = make(both[0], retrieve=lambda request: Candidates(ids, pair))
    over = threading.Event()
    answers: list[tuple[int, Any]] = []
    shadowed: list[dict[str, Any]] = []
    failed: list[BaseException] = []

    def threads(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not over.is_set():
            user = int(rng.choice(USERS))
            if rng.random() < 0.5:
                answers.append((user, engine.rank(user, k=K_MAX)))
            else:
                pending = engine.begin(user)
                time.sleep(rng.random() * 0.003)
                answers.append((user, pending.rank(ids, pair, k=K_MAX)))

    async def coroutines() -> None:
        while not over.is_set():
            users = list(USERS)
            rankings = await asyncio.gather(*(engine.rank_async(user, k=K_MAX) for user in users))
            answers.extend(zip(users, rankings, strict=True))

    def changes() -> None:
        number = 0
        while not over.is_set():
            number += 1
            for served in both:
                change(served, world, number % 2)
            engine.invalidate([3, 4])
            time.sleep(0.001)

    def shadows() -> None:
        number = 0
        while not over.is_set():
            number += 1
            served, checks = both[number % 2], PublishChecks(min_coverage=1.0)
            with engine.shadow(*served, share=0.5, seed=number, checks=checks) as shadow:
                time.sleep(0.03)
            shadowed.append(shadow.stats())

    def fill(served: Served) -> None:
        time.sleep(0.2)
        for row in range(120, len(world.ids)):
            for table in served[1]:
                table.upsert(*part_of(world, [row]))

    def noting(run: Callable[..., None], *arguments: Any) -> threading.Thread:
        def noted() -> None:
            try:
                run(*arguments)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=noted)
        thread.start()
        return thread

    running = [noting(threads, seed) for seed in range(3)]
    running += [noting(lambda: asyncio.run(coroutines())), noting(changes), noting(shadows)]
    covered = PublishChecks(min_coverage=1.0, coverage_within_s=30.0)
    try:
        for number in range(12):
            served = both[engine.version == one[0].version]
            if number % 3 == 2:
                engine.rollback()
            elif number == 6:
                served = tables_of(served[0], world, range(120), range(120))
                change(served, world, 1)
                running.append(noting(fill, served))
                coverage = engine.publish(*served, checks=covered, warm=3).coverage
                assert (coverage.missing_items, coverage.missing_behaviours) == (0, 0)
            else:
                engine.publish(*served, checks=covered, warm=3)
            by_then = len(answers)
            assert eventually(lambda: len(answers) > by_then + 8)  # noqa: B023
    finally:
        over.set()
        for thread in running:
            thread.join()
    assert failed == []
    for user, ranking in answers:
        assert shown(answer(ranking)) in possible[ranking.report.version, user]
    versions = [ranking.report.version for _, ranking in answers]
    assert min(versions.count(served[0].version) for served in (one, two)) > 10
    for stats in shadowed:
        assert stats["sampled"] == stats["compared"] + stats["dropped"]
        assert stats["failed"] == {}
    assert sum(stats["compared"] for stats in shadowed) > 0
    assert engine.stats()["compilations"] == 0
    assert engine.stats()["open_handles"] == 0
    assert engine.stats()["shadows"] == {}


def test_publish_compiles_nothing_on_later_requests(make: Make, two: Served, world: World) -> None:
    engine = make()
    engine.publish(*two)
    before = compilations()
    for n in (1, 40, 100):
        engine.begin(3).rank(*world.candidates(n))
    assert compilations() == before
    assert engine.stats()["compilations"] == 0


def test_publish_warms_states_of_recent_users(make: Make, two: Served, expected: Any) -> None:
    engine = make()
    for user in USERS:
        engine.rank(user)
    published = engine.publish(*two, warm=4)
    assert (published.warmed, published.not_warmed) == (4, {})
    found = {user: engine.rank(user) for user in USERS}
    hits = {user for user, ranking in found.items() if ranking.report.user_state == "hit"}
    assert hits == set(list(USERS)[-4:])
    for user, ranking in found.items():
        assert answer(ranking) == expected[two[0].version, user]


def test_publish_users_that_cannot_be_warmed_are_counted(
    make: Make, users: InMemoryUsers, two: Served
) -> None:
    down = threading.Event()

    def source(user: Any) -> Any:
        if down.is_set() and user == 4:
            raise ConnectionError("feature store is down")
        return users(user)

    engine = make(users=source)
    for user in USERS:
        engine.rank(user)
    down.set()
    published = engine.publish(*two)
    assert (published.warmed, published.not_warmed) == (6, {"UserSourceError": 1})


def test_invalidate_while_publish_warms_drops_new_state(
    make: Make, one: Served, two: Served, world: World, users: InMemoryUsers
) -> None:
    """A record that was fetched for the new generation, and then invalidated, ranks nobody."""
    records = {user: users(user) for user in USERS}
    warming = threading.Event()

    def source(user: Any) -> Any:
        record = records[user]
        if warming.is_set():
            records[user] = world.record(user + 1, length=12)  # of the same revision
            engine.invalidate(user)
        return record

    engine = make(users=source)
    engine.rank(5)
    warming.set()
    assert engine.publish(*two).warmed == 1
    warming.clear()
    ranking = engine.rank(5)
    assert ranking.report.user_state == "computed"
    with Engine(*two, users=records.get, config=ENGINE_CONFIG) as alone:
        assert answer(ranking) == answer(alone.begin(5).rank(*world.candidates(30)))


def golden(world: World, **changes: Any) -> GoldenRequest:
    ids, pair = world.candidates(30)
    return dataclasses.replace(GoldenRequest(user=5, candidates=ids, pair=pair, k=10), **changes)


def test_publish_golden_requests_measure_and_refuse(
    make: Make, one: Served, two: Served, world: World
) -> None:
    engine = make()
    requests = [golden(world)]
    same = engine.publish(*one, golden=requests, checks=PublishChecks(min_overlap=1.0, max_drift=0.0))
    assert (same.overlaps, same.drifts) == ((1.0,), (0.0,))
    measured = engine.publish(*two, golden=requests, checks=PublishChecks(min_overlap=0.0))
    assert 0 <= measured.overlaps[0] <= 1
    assert measured.drifts[0] > 0
    engine.rollback()
    checks = PublishChecks(min_overlap=0.0, max_drift=measured.drifts[0] / 2)
    with pytest.raises(PublishError, match=r"golden request 0 .user 5.*Nothing was changed"):
        engine.publish(*two, golden=requests, checks=checks)
    if measured.overlaps[0] < 1:
        with pytest.raises(PublishError, match="agree on"):
            engine.publish(*two, golden=requests, checks=PublishChecks(min_overlap=1.0))
    assert engine.version == one[0].version
    assert len(engine.rank(5)) == 10
    assert engine.stats()["generations"]["published"] == 2


@pytest.mark.parametrize("wrong", [{"min_overlap": 1.1}, {"max_drift": math.nan}, {"max_drift": -1.0}])
def test_publish_checks_impossible_golden_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(
        RequestError, match=r"(min_overlap|max_drift): got .*, expected (a share from 0 to 1|0 or more)"
    ):
        PublishChecks(**wrong)


def test_publish_malformed_golden_request_is_refused(make: Make, two: Served, world: World) -> None:
    engine = make()
    with pytest.raises(AifError, match="k: got 0"):
        engine.publish(*two, golden=[golden(world, k=0)])
    with pytest.raises(AifError, match="moon"):
        engine.publish(*two, golden=[golden(world, context={"moon": 1})])
    for wrong in ([(5, world.ids[:3])], golden(world)):
        with pytest.raises(ConfigError, match=r"(?s)golden: got .*, expected a list of GoldenRequests"):
            engine.publish(*two, golden=wrong)  # type: ignore[arg-type]


def test_publish_tables_of_another_version_are_refused(make: Make, one: Served, two: Served) -> None:
    engine = make()
    with pytest.raises(VersionMismatchError):
        engine.publish(two[0], two[1]._replace(items=one[1].items))
    assert engine.version == one[0].version
    with pytest.raises(PublishError, match="nothing else was published"):
        engine.rollback()


def test_publish_closes_retired_generation_after_its_last_request(
    make: Make, one: Served, two: Served, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, closed, warm = list[Generation](), list[Generation](), Generation.warm

    def noted(generation: Generation, *arguments: Any) -> None:
        made.append(generation)
        warm(generation, *arguments)

    monkeypatch.setattr(Generation, "warm", noted)
    monkeypatch.setattr(Generation, "close", lambda generation: closed.append(generation))
    engine = make()
    held = [engine.begin(5), engine.begin(6)]
    engine.publish(*two)
    engine.publish(*one)  # the first is not kept for a rollback any more
    assert closed == []
    assert len(held[0].rank(*world.candidates(30))) == 10
    assert closed == []
    held[1].cancel()
    assert closed == made[:1]
    engine.close()
    assert len(closed) == 3


def test_publish_missing_items_are_computed_for_generation_of_request(
    make: Make, one: Served, two: Served, world: World
) -> None:
    def items(ids: np.ndarray) -> ItemRecords:
        rows = [world.ids.tolist().index(item) for item in ids.tolist()]
        _, columns, content = part_of(world, rows)
        return ItemRecords(ids.tolist(), columns, content)

    config = dataclasses.replace(ENGINE_CONFIG, missing_items=MissingItems("compute", max_wait_ms=20_000.0))
    old, new = (tables_of(served[0], world, range(100))[1].items for served in (one, two))
    engine = make((one[0], one[1]._replace(items=old)), items=items, config=config)
    pending = engine.begin(5)
    engine.publish(two[0], two[1]._replace(items=new))
    assert pending.rank(world.ids[95:105]).report.computed_items == 5
    assert (old.stats()["rows"], new.stats()["rows"]) == (105, 100)
    assert engine.begin(5).rank(world.ids[95:110]).report.computed_items == 10
    assert (old.stats()["rows"], new.stats()["rows"]) == (105, 110)


def test_publish_on_closed_engine_is_refused(make: Make, two: Served) -> None:
    engine = make()
    engine.close()
    for change in (lambda: engine.publish(*two), engine.rollback):
        with pytest.raises(SchedulerError, match="closed"):
            change()


def test_publish_from_many_threads_takes_turns(make: Make, one: Served, two: Served) -> None:
    engine = make()
    threads = [threading.Thread(target=engine.publish, args=served) for served in (one, two) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.stats()["generations"]["published"] == 6
    assert len(engine.rank(5)) == 10


def test_publish_of_the_running_version_keeps_the_way_back(
    make: Make, one: Served, two: Served, world: World
) -> None:
    engine = make()
    engine.publish(*one)
    with pytest.raises(PublishError, match="nothing else was published"):
        engine.rollback()  # the same bundle with the same tables is nothing to go back to
    engine.publish(*two)
    for served in (two, tables_of(two[0], world)):  # again, and with tables that were built again
        assert engine.publish(*served).previous == two[0].version
        assert engine.tables is served[1]
        assert engine.stats()["generations"]["previous"] == one[0].version
    assert [engine.rollback(), engine.rollback(), engine.rollback()] == [
        one[0].version, two[0].version, one[0].version,
    ]  # fmt: skip
    assert len(engine.rank(5)) == 10


def test_publish_of_other_tables_only_can_be_rolled_back(make: Make, one: Served, world: World) -> None:
    engine = make()
    rebuilt = tables_of(one[0], world, range(20))
    engine.publish(*rebuilt)
    engine.publish(*rebuilt)
    assert engine.rollback() == one[0].version
    assert engine.tables is one[1]
    with engine.shadow(*one):
        assert engine.rollback() == one[0].version
    assert engine.tables is rebuilt[1]
