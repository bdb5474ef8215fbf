"""User sources: unknown users, malformed records, errors, odd arrays."""

from typing import Any

import numpy as np
import pytest

from aif_jax.errors import UnknownUserError, UserSourceError
from aif_jax.serving import Engine
from aif_jax.types import UserRecord
from support.served import Make, World


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
    reversed_twice = UserRecord(
        record.features, np.array(record.items[::-1])[::-1], np.array(record.types[::-1])[::-1], revision=1
    )
    pair = {"bid": np.ones(5)}
    engine = make(users={1: record, 2: reversed_twice}.get)
    one, two = (engine.begin(user).rank(world.ids[:5], pair) for user in (1, 2))
    assert one.scores.tolist() == two.scores.tolist()
