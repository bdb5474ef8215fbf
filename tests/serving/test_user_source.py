"""User sources: unknown users, malformed records, errors, odd arrays."""

import asyncio
import gc
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import SchedulerError, UnknownUserError, UserSourceError
from aif_jax.serving import Engine
from aif_jax.types import Candidates, UserRecord
from support.served import Make, World, assert_same


def test_user_source_unknown_user_follows_policy(make: Make, engine: Engine, world: World) -> None:
    with pytest.raises(UnknownUserError, match="user 'nobody': the user source knows nothing"):
        engine.begin("nobody").rank(world.ids[:5])
    lenient = make(unknown_user="default")
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
            "behaviour type in row 0 is 'stare', expected one of 'click'",
        ),
        (UserRecord(items=[1], types=[3]), "behaviour type in row 0 is 3, .* or a number from 0 to 2"),
        (UserRecord(items=[1], types=[0.5]), r"behaviour type in row 0 is 0\.5"),
        (UserRecord(items=[1.5], types=[0]), "the source's items: .*float"),
        (UserRecord(features={"activity": "high"}), "the source's features: .*'activity'"),
        (UserRecord(items=None), "the source's items: got None, expected an array or list"),
        (UserRecord(types=None), "the source's types: got None, expected an array or list"),
        (UserRecord(items=7, types=[1]), "the source's items: got 7, expected an array or list"),
        (UserRecord(items={1, 2}, types=[0, 0]), "items: got a set, whose order is arbitrary"),
        (UserRecord(items=np.array(3), types=[0]), "items: got the single value 3, expected an array"),
        (UserRecord(features=None), r"the source's features: got a NoneType \(None\), expected a mapping"),
        (UserRecord(features=[("country", "de")]), "the source's features: got a list"),
    ],
)
def test_user_source_malformed_record_is_refused(make: Make, world: World, record: Any, message: str) -> None:
    engine = make(users=lambda user: record)
    with pytest.raises(UserSourceError, match=f"user 'ann'.*{message}"):
        engine.begin("ann").rank(world.ids[:5])


def test_user_source_error_reaches_the_caller(make: Make, world: World) -> None:
    def broken(user: Any) -> UserRecord:
        raise ConnectionError("feature store is down")

    engine = make(users=broken)
    with pytest.raises(
        UserSourceError, match="'ann': the user source raised ConnectionError: feature"
    ) as info:
        engine.begin("ann").rank(world.ids[:5])
    assert isinstance(info.value.__cause__, ConnectionError)
    assert engine.stats()["requests"]["error:UserSourceError"] == 1


def test_user_record_reversed_views_rank_as_plain_arrays(make: Make, world: World) -> None:
    record = world.record(5)
    items, types, times = (
        np.array(column[::-1])[::-1] for column in (record.items, record.types, record.times)
    )
    reversed_twice = UserRecord(record.features, items, types, 1, times)
    pair = {"bid": np.ones(5)}
    engine = make(users={1: record, 2: reversed_twice}.get)
    one, two = (engine.begin(user).rank(world.ids[:5], pair) for user in (1, 2))
    assert one.scores.tolist() == two.scores.tolist()


class Store:
    """An object that is called as a coroutine function, as asynchronous clients are wrapped."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def __call__(self, user: Any) -> UserRecord | None:
        await asyncio.sleep(0)
        return self.world.record(user) if isinstance(user, int) else None


@pytest.mark.parametrize("as_object", [False, True])
def test_user_source_coroutine_function_ranks_as_plain_one(make: Make, world: World, as_object: bool) -> None:
    store, pair = Store(world), {"bid": np.ones(5)}
    retrieve = {"retrieve": lambda request: Candidates(world.ids[:5], pair)}
    plain = make(users=world.record, **retrieve)
    awaited = make(users=store if as_object else store.__call__, **retrieve)
    assert_same(plain.rank(5), awaited.rank(5))
    assert_same(plain.rank(6), asyncio.run(awaited.rank_async(6)))
    for one, two in zip(plain.rank_many([5, 6]), awaited.rank_many([5, 6]), strict=True):
        assert_same(one, two)
    with pytest.raises(UnknownUserError):
        awaited.begin("nobody").rank(world.ids[:5], pair)


def test_user_source_coroutine_that_raises_or_ranks_is_told(make: Make, world: World) -> None:
    async def down(user: Any) -> UserRecord:
        raise ConnectionError("feature store is down")

    async def ranking(user: Any) -> UserRecord:
        engine.begin(user)
        return UserRecord()

    with pytest.raises(UserSourceError, match="raised ConnectionError: feature store is down"):
        make(users=down).begin(5).rank(world.ids[:5])
    engine = make(users=ranking)
    with pytest.raises(SchedulerError, match="asked the engine that called it to rank"):
        engine.begin(5).rank(world.ids[:5])


def test_user_source_plain_function_that_returns_coroutine_is_told_to_give_that(
    make: Make, world: World
) -> None:
    store = Store(world)
    engine = make(users=lambda user: store(user))
    with pytest.raises(
        UserSourceError, match=r"returned a coroutine.*give the engine the coroutine function"
    ):
        engine.begin(5).rank(world.ids[:5])
    gc.collect()  # a coroutine that nobody awaited would warn here
