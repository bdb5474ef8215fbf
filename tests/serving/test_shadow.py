"""Shadows: what they measure of requests ranked again, which do not notice."""

import asyncio
import atexit
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import PublishError, RequestError, SchedulerError, VersionMismatchError
from aif_jax.serving import Engine, Filters, InMemoryUsers, PublishChecks, Shadow, shadow
from aif_jax.serving.generation import Generation
from aif_jax.types import Candidates
from support.served import ENGINE_CONFIG, K_MAX, Make, Served, World, tables_of
from support.waiting import eventually

USERS = range(1, 8)


def done(shadow: Shadow) -> dict[str, Any]:
    """Wait until all is compared; check that every sampled request is accounted for."""
    assert eventually(lambda: not shadow.stats()["waiting"]), shadow.stats()
    stats = shadow.stats()
    accounted = stats["compared"] + stats["dropped"] + sum(stats["failed"].values())
    assert stats["sampled"] == accounted
    assert stats["compared"] == sum(stats["against"].values())
    return stats


def everything(engine: Engine, world: World) -> list[tuple[bytes, bytes, bytes]]:
    """The answers to requests of each kind."""

    async def side_by_side() -> list[Any]:
        found = await asyncio.gather(*(engine.rank_async(user) for user in USERS))
        own = [engine.begin(user) for user in USERS]
        return [*found, *[await pending.rank_async(*world.candidates(40, seed=2)) for pending in own]]

    rankings = [
        *(engine.rank(user, k=5) for user in USERS),
        *asyncio.run(side_by_side()),
        *(engine.begin(user).rank(*world.candidates(100, seed=1), k=K_MAX) for user in USERS),
        *engine.rank_many(USERS),
    ]
    return [(r.ids.tobytes(), r.scores.tobytes(), r.heads["ctr"].tobytes()) for r in rankings]


def test_shadow_leaves_answers_alone_and_same_model_agrees(
    make: Make, one: Served, two: Served, world: World
) -> None:
    alone = everything(make(), world)
    engine = make()
    with engine.shadow(*one, share=1.0) as same, engine.shadow(*two, share=1.0) as other:
        assert everything(engine, world) == alone
        agreed, differed = done(same), done(other)
    assert agreed["seen"] == agreed["compared"] == differed["compared"] == 5 * len(USERS)
    assert (agreed["overlap_mean"], agreed["overlap_p10"], agreed["drift_max"]) == (1.0, 1.0, 0.0)
    assert differed["drift_mean"] > 0
    assert differed["against"] == {one[0].version: 5 * len(USERS)}
    assert engine.stats()["compilations"] == 0


def test_shadow_measures_difference_of_the_answers(make: Make, two: Served, world: World) -> None:
    engine, beside = make(), make(two)
    overlaps, drifts = [], []
    with engine.shadow(*two, share=1.0) as candidate:
        for user in USERS:
            mine, theirs = engine.rank(user), beside.rank(user)
            common = set(mine.ids.tolist()) & set(theirs.ids.tolist())
            overlaps.append(len(common) / 10)
            score = [dict(zip(r.ids.tolist(), r.scores, strict=True)) for r in (mine, theirs)]
            drifts.append(max((abs(score[0][i] - score[1][i]) for i in common), default=0.0))
        stats = done(candidate)
    assert stats["window"] == len(USERS)
    assert stats["overlap_mean"] == pytest.approx(np.mean(overlaps))
    assert stats["overlap_p10"] == pytest.approx(np.quantile(overlaps, 0.1))
    assert stats["drift_mean"] == pytest.approx(np.mean(drifts))
    assert stats["drift_p90"] == pytest.approx(np.quantile(drifts, 0.9))
    assert stats["drift_max"] == pytest.approx(max(drifts))


def test_shadow_sampled_requests_follow_from_the_seed(make: Make, one: Served) -> None:
    engine = make()

    def chosen(seed: int) -> list[int]:
        with engine.shadow(*one, share=0.4, seed=seed, max_waiting=1000) as candidate:
            counts = []
            for number in range(40):
                engine.rank(1 + number % 7)
                counts.append(candidate.stats()["sampled"])
        return counts

    assert chosen(3) == chosen(3) != chosen(4)
    assert 5 < chosen(3)[-1] < 30
    with engine.shadow(*one, share=0.0) as never:
        engine.rank(5)
        assert (never.stats()["seen"], never.stats()["sampled"]) == (1, 0)
        assert never.stats()["overlap_mean"] is None


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Comparisons wait until the event is set."""
    goes_on, answer = threading.Event(), shadow.answer

    def waiting(*arguments: Any) -> Any:
        assert goes_on.wait(20)
        return answer(*arguments)

    monkeypatch.setattr(shadow, "answer", waiting)
    yield goes_on
    goes_on.set()


def test_shadow_full_queue_drops_and_counts_without_delaying_requests(
    make: Make, one: Served, held_up: threading.Event
) -> None:
    engine = make()
    candidate = engine.shadow(*one, share=1.0, max_waiting=3)
    for user in USERS:
        assert len(engine.rank(user)) == 10
    stats = candidate.stats()
    assert (stats["sampled"], stats["waiting"], stats["dropped"]) == (7, 3, 4)
    stopping = threading.Thread(target=candidate.stop)
    stopping.start()
    assert eventually(lambda: candidate.stats()["stopped"])
    held_up.set()
    stopping.join(20)
    stats = candidate.stats()
    # What was being compared was finished, what waited was not begun.
    assert (stats["compared"], stats["waiting"], stats["dropped"]) == (1, 0, 6)
    assert stats["stopped"]
    engine.rank(5)
    assert candidate.stats() == stats


def test_shadow_arrays_changed_afterwards_compare_as_before(
    make: Make, users: InMemoryUsers, one: Served, world: World, held_up: threading.Event
) -> None:
    history = np.array(users(5).items)  # type: ignore[union-attr]
    record = dataclasses.replace(users(5), items=history)  # type: ignore[type-var]
    engine = make(users=lambda user: record)
    with engine.shadow(*one, share=1.0) as candidate:
        ids, pair = world.candidates(30)
        table = {"id": ids.copy(), "bid": list(pair["bid"]), "channel": pair["channel"].copy()}
        ranking = engine.begin(5).rank(table)
        table["id"][:] = world.ids[-1]
        table["bid"][:] = [0.0] * 30
        table["channel"][:] = "new"
        history[:] = world.ids[0]
        ranking.ids[:] = 0
        held_up.set()
        stats = done(candidate)
    assert (stats["compared"], stats["overlap_mean"], stats["drift_max"]) == (1, 1.0, 0.0)


def test_shadow_failures_are_counted_by_name(make: Make, one: Served, two: Served, world: World) -> None:
    config = dataclasses.replace(ENGINE_CONFIG, missing_items="error")
    engine = make(config=config)
    with engine.shadow(*tables_of(two[0], world, range(20)), share=1.0) as candidate:
        for user in USERS:
            assert len(engine.rank(user)) == 10
        assert done(candidate)["failed"] == {"UnknownItemError": len(USERS)}
    engine = make()
    with engine.shadow(*tables_of(two[0], world, range(20)), share=1.0) as candidate:
        engine.begin(5).rank(world.ids[:30])
        stats = done(candidate)
    assert (stats["failed"], stats["missing_items"]) == ({}, 10)


def test_shadow_candidates_that_cannot_be_copied_are_counted(make: Make, one: Served, world: World) -> None:
    class Column:
        def __init__(self, values: Any):
            self._values = np.asarray(values)

        def __len__(self) -> int:
            return len(self._values)

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            return self._values

        def __deepcopy__(self, _: Any) -> Any:
            raise BufferError("it is on loan")

    engine = make()
    ids, pair = world.candidates(30)
    expected = engine.begin(5).rank(ids, pair)
    with engine.shadow(*one, share=1.0) as candidate:
        ranking = engine.begin(5).rank(ids, {**pair, "bid": Column(pair["bid"])})
        assert ranking.scores.tobytes() == expected.scores.tobytes()
        assert done(candidate)["failed"] == {"RequestError": 1}


def test_shadow_compares_full_answers_only_with_one_fetch(
    make: Make, users: InMemoryUsers, one: Served
) -> None:
    asked: list[Any] = []

    def source(user: Any) -> Any:
        asked.append(user)
        if user == 4:
            raise ConnectionError("feature store is down")
        return users(user)

    config = dataclasses.replace(ENGINE_CONFIG, on_user_source_error="degrade")
    engine = make(users=source, config=config)
    with engine.shadow(*one, share=1.0) as candidate:
        rungs = [engine.rank(user).report.rung for user in (4, 5, 5)]
        stats = done(candidate)
    assert rungs == [2, 0, 0]
    assert asked == [4, 5, 5]
    assert (stats["seen"], stats["compared"], stats["overlap_mean"]) == (2, 2, 1.0)


def test_shadow_filtered_requests_agree(make: Make, one: Served, world: World) -> None:
    engine = make()
    with engine.shadow(*one, share=1.0) as candidate:
        excluded = world.candidates(30)[0][:10]
        engine.rank(5, filters=Filters(exclude=excluded, categories=["drama", "noir"]))
        engine.rank(5, filters=Filters(categories=[]))
        stats = done(candidate)
    assert (stats["compared"], stats["overlap_p10"], stats["drift_max"]) == (2, 1.0, 0.0)


def test_shadow_refuses_what_a_publish_refuses(make: Make, one: Served, two: Served, world: World) -> None:
    engine = make()
    with pytest.raises(VersionMismatchError):
        engine.shadow(two[0], two[1]._replace(items=one[1].items))
    checks = PublishChecks(min_coverage=0.5)
    with pytest.raises(PublishError, match=r"min_coverage=0\.5"):
        engine.shadow(*tables_of(two[0], world, range(20)), checks=checks)
    for wrong in ({"share": 1.5}, {"share": float("nan")}, {"max_waiting": 0}):
        with pytest.raises(RequestError, match="share, max_waiting: got"):
            engine.shadow(*two, **wrong)
    memory = engine.stats()["memory"]
    small = make(config=dataclasses.replace(ENGINE_CONFIG, max_memory_bytes=memory["total_bytes"] + 1))
    with pytest.raises(PublishError, match="next: item index"):
        small.shadow(*two)
    with small.shadow(*one) as candidate:  # whose tables are there already
        assert candidate.coverage.items == 1.0
        assert small.stats()["memory"]["total_bytes"] == memory["total_bytes"]
        assert set(small.stats()["memory"]["generations"]) == {"running", "shadow_1"}
    assert engine.stats()["shadows"] == small.stats()["shadows"] == {}


def test_shadow_ends_with_engine_and_closes_its_generation(
    make: Make, one: Served, two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Generation, "close", lambda generation: closed.append(generation.version))
    engine = make()
    first, second = engine.shadow(*two), engine.shadow(*two, share=0.5)
    assert set(engine.stats()["shadows"]) == {"1", "2"}
    assert engine.stats()["shadows"]["2"]["share"] == 0.5
    first.stop()
    first.stop()
    assert closed == [two[0].version]
    assert set(engine.stats()["shadows"]) == {"2"}
    engine.close()
    assert second.stats()["stopped"]
    assert closed == [two[0].version, two[0].version, one[0].version]
    assert not any(thread.name == "aif-shadow" for thread in threading.enumerate())
    with pytest.raises(SchedulerError, match="closed"):
        engine.shadow(*two)


def test_shadow_that_cannot_start_is_closed(make: Make, two: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    engine = make()

    def broken(*_: Any) -> Any:
        raise RuntimeError("no threads left")

    with monkeypatch.context() as patched:
        patched.setattr(Generation, "close", lambda generation: closed.append(generation.version))
        patched.setattr(threading.Thread, "start", broken)
        with pytest.raises(RuntimeError, match="no threads left"):
            engine.shadow(*two)
    assert closed == [two[0].version]
    assert engine.stats()["shadows"] == {}


def test_shadow_is_stopped_at_interpreter_exit(
    make: Make, two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped at exit, and after a stop nothing holds on to it."""
    engine, at_exit = make(), list[Any]()
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    candidate = engine.shadow(*two, share=1.0)
    assert at_exit == [candidate.stop]
    at_exit[0]()
    assert at_exit == []
    assert candidate.stats()["stopped"]


def test_shadow_candidates_as_list_agree(make: Make, one: Served, world: World) -> None:
    engine = make(retrieve=lambda request: Candidates(world.ids[:30].tolist()))
    with engine.shadow(*one, share=1.0) as candidate:
        engine.rank(5)
        assert done(candidate)["overlap_mean"] == 1.0
