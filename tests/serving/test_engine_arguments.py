"""Arguments of engines and requests: what is taken, and what is refused in words that help."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import ConfigError, RequestError, RetrievalError, SchedulerError, UserSourceError
from aif_jax.nearline import Tables
from aif_jax.serving import Engine, EngineConfig, MissingItems, Observer, PublishChecks
from aif_jax.types import Request, UserRecord
from support.served import Make, Served, World, assert_same, ran, ways


def test_users_as_mapping_are_asked_by_id(make: Make, world: World) -> None:
    records = {5: world.record(5)}
    assert_same(make(users=records).rank(5), make(users=records.get).rank(5))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"users": [1, 2]}, r"users: got list \[1, 2\], expected a function of one argument, or a mapping"),
        ({"users": None}, "users: got NoneType None"),
        ({"retrieve": [1, 2]}, r"retrieve: got list \[1, 2\], expected a function of one argument\."),
    ],
)
def test_source_that_cannot_be_called_is_refused(make: Make, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**wrong)


@pytest.mark.parametrize("way", ["Engine", "publish", "shadow"])
def test_tables_swapped_are_refused(make: Make, engine: Engine, one: Served, way: str) -> None:
    bundle, (items, behaviours) = one
    enter = {"Engine": lambda *served: make(served), "publish": engine.publish, "shadow": engine.shadow}[way]
    given: Any = Tables(behaviours, items)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"item index: got BehaviourTable .*, expected a ItemIndex|ItemIndex"
    ):
        enter(bundle, given)
    for wrong in ((bundle, items), (bundle, None), (items, one[1]), (bundle, (items, behaviours))):
        with pytest.raises(ConfigError, match="an engine takes a bundle and Tables"):
            enter(*wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["slow", 7, [7], [Observer]], ids=repr)
def test_observers_that_are_none_are_refused_before_threads_start(make: Make, wrong: Any) -> None:
    threads = threading.active_count()
    with pytest.raises(ConfigError, match=r"observers: got .*, expected a list of Observer objects"):
        make(observers=wrong)
    assert threading.active_count() == threads


NUMBERS = [np.float32(60_000), np.int64(60_000), np.uint8(200), 60_000]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: type(number).__name__)
def test_deadline_any_real_number_is_taken(engine: Engine, world: World, number: Any) -> None:
    report = engine.begin(5, deadline_ms=number).rank(world.ids[:5]).report
    assert (type(report.deadline_ms), report.deadline_ms) == (float, float(number))


@pytest.mark.parametrize("way", ["begin", "rank", "rank_async"])
@pytest.mark.parametrize(
    "wrong", ["5", True, np.True_, np.array([5.0]), pytest.param(10**400, id="large"), 1j, [5]]
)
def test_deadline_no_number_is_refused_and_counted(make: Make, wrong: Any, way: str) -> None:
    with make() as engine:
        with pytest.raises(RequestError, match=r"deadline_ms: got .*, expected a number of milliseconds"):
            ran(getattr(engine, way), 5, deadline_ms=wrong)
        assert engine.stats()["requests"] == {"error:RequestError": 1}


@pytest.mark.parametrize("wrong", ["5", True, None])
def test_settings_no_number_is_refused(engine: Engine, one: Served, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="max_pending_age_s: got"):
        EngineConfig(max_pending_age_s=wrong)
    with pytest.raises(RequestError, match="min_overlap: got"):
        PublishChecks(min_overlap=wrong)
    with pytest.raises(RequestError, match="share, max_waiting: got"):
        engine.shadow(*one, share=wrong)
    assert EngineConfig(max_pending_age_s=np.float32(2.5)).max_pending_age_s == 2.5
    assert PublishChecks(max_drift=np.float64(0.5)).max_drift == 0.5


class Mute(Exception):
    """An error that raises when it is shown."""

    def __str__(self) -> str:
        raise ValueError("mute")

    __repr__ = __str__


class Messages(Observer):
    def __init__(self) -> None:
        self.found: list[str] = []

    def failed(self, failure: Any) -> None:
        self.found.append(failure.message)


@ways
def test_errors_without_text_are_reported_by_class(make: Make, way: str) -> None:
    def raising(_: Any) -> Any:
        raise Mute

    messages = Messages()
    engine = make(users=raising, observers=[messages])
    with pytest.raises(UserSourceError, match="user 5: the user source raised Mute: <Mute>"):
        ran(getattr(engine, way), 5)
    assert messages.found == ["user 5: the user source raised Mute: <Mute>"]
    with pytest.raises(RetrievalError, match="retrieve raised Mute for user 5"):
        ran(getattr(make(retrieve=raising), way), 5)
    with pytest.raises(RetrievalError, match="fallback raised Mute for user 5"):
        ran(getattr(make(retrieve=raising, fallback=raising), way), 5)


def test_item_source_error_without_text_is_reported_by_class(make: Make, world: World) -> None:
    def raising(_: Any) -> Any:
        raise Mute

    engine = make(items=raising, missing_items=MissingItems("compute", max_wait_ms=10_000.0))
    ranking = engine.begin(5).rank(np.append(world.ids[:5], np.uint64(3)))
    assert ranking.report.uncomputed_items == {"error:Mute": 1}
    assert engine.stats()["missing_items"]["last_error"] == "Mute: <Mute>"


@pytest.mark.parametrize("inner", ["rank", "begin", "rank_async"])
def test_user_source_that_ranks_on_its_engine_is_refused(make: Make, world: World, inner: str) -> None:
    made: list[Engine] = []

    def users(user: Any) -> UserRecord:
        if user == 5:
            ran(getattr(made[0], inner), 6)
        return world.record(user)

    made.append(make(users=users))
    with pytest.raises(SchedulerError, match="asked the engine that called it to rank"):
        made[0].rank(5)
    assert len(made[0].rank(6)) == 10


def test_user_source_that_ranks_a_handle_is_refused(make: Make, world: World) -> None:
    made: list[Any] = []

    def users(user: Any) -> UserRecord:
        if user == 5:
            made[1].rank(world.ids[:5])
        return world.record(user)

    made.append(make(users=users))
    made.append(made[0].begin(6))
    with pytest.raises(SchedulerError, match="asked the engine that called it to rank"):
        made[0].rank(5)


def test_user_source_that_ranks_on_another_engine_is_answered(make: Make, world: World) -> None:
    other = make()

    def users(user: Any) -> UserRecord:
        return world.record(len(other.rank(user)))

    assert len(make(users=users).rank(5)) == 10


def test_coroutine_retrieve_that_waits_for_its_engine_is_refused(make: Make, world: World) -> None:
    made: list[Engine] = []

    async def retrieve(request: Request) -> Any:
        return world.ids[:5] if request.user == 6 else made[0].rank(6).ids

    async def awaiting(request: Request) -> Any:
        return world.ids[:5] if request.user == 6 else (await made[1].rank_async(6)).ids

    made += make(retrieve=retrieve), make(retrieve=awaiting)
    with pytest.raises(SchedulerError, match="so it would wait for itself; await rank_async"):
        made[0].rank(5)
    assert len(made[1].rank(5)) == 5
    assert len(asyncio.run(made[1].rank_async(5))) == 5
