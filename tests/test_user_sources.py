"""Users fetched together: whose requests share a call, and what becomes of it."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import ConfigError, UserSourceError
from aif_jax.serving import BatchedUsers, InMemoryUsers, Shapes
from aif_jax.types import UserRecord
from support.served import CONTEXT, Make, World, assert_same, ran, ways


class Store:
    """Records of the even users, by calls that wait until they are let go."""

    def __init__(self, held: bool = False) -> None:
        self.calls: list[list[int]] = []
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, users: list[int]) -> list[UserRecord | None]:
        self.calls.append(users)
        await self.go.wait()
        return [UserRecord({"n": user}) if user % 2 == 0 else None for user in users]


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def numbers(records: list[Any]) -> list[int | None]:
    return [None if record is None else record.features["n"] for record in records]


def test_batched_users_asked_at_once_share_a_call() -> None:
    async def main() -> None:
        store = Store()
        users = BatchedUsers(store)
        found = await asyncio.gather(*(users(user) for user in (4, 1, 2, 4)))
        assert numbers(found) == [4, None, 2, 4]
        assert store.calls == [[4, 1, 2]]
        assert users.stats() == {"calls": 1, "users": 3, "failed": 0, "retried": 0, "unknown": 0}

    asyncio.run(main())


def test_batched_users_beyond_the_calls_under_way_gather_until_one_ends() -> None:
    async def main() -> None:
        store = Store(held=True)
        users = BatchedUsers(store, at_once=1, max_users=3, window_ms=0.0)
        asked = [asyncio.ensure_future(users(0))]
        await turns()
        asked += [asyncio.ensure_future(users(user)) for user in (2, 4, 6, 8, 2, 0)]
        await turns()
        assert store.calls == [[0]]
        store.go.set()
        assert numbers(await asyncio.gather(*asked)) == [0, 2, 4, 6, 8, 2, 0]
        assert store.calls == [[0], [2, 4, 6], [8]], "0 was under way, 2 was waiting already"

    asyncio.run(main())


def test_batched_users_wait_for_others_while_a_call_is_under_way() -> None:
    async def main() -> None:
        store = Store(held=True)
        users = BatchedUsers(store, window_ms=50.0)
        asked = [asyncio.ensure_future(users(0))]
        await turns()
        for user in (2, 4):
            asked.append(asyncio.ensure_future(users(user)))
            await turns()
        store.go.set()
        assert numbers(await asyncio.gather(*asked)) == [0, 2, 4]
        assert store.calls == [[0], [2, 4]]

    asyncio.run(main())


def test_batched_users_given_up_by_one_caller_reach_the_others() -> None:
    async def main() -> None:
        store = Store(held=True)
        users = BatchedUsers(store)
        first, second = (asyncio.ensure_future(users(2)) for _ in range(2))
        await turns()
        first.cancel()
        store.go.set()
        assert (await second).features["n"] == 2
        assert first.cancelled()
        assert len(store.calls) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([], "returned 0 records for 2 users"),
        (None, "returned None for 2 users"),
        ("ab", "returned 'ab' for 2 users"),
    ],
)
def test_batched_users_call_of_another_length_is_refused(returned: Any, words: str) -> None:
    async def main() -> list[Any]:
        users = BatchedUsers(lambda _: returned)
        return await asyncio.gather(users(1), users(2), return_exceptions=True)

    for error in asyncio.run(main()):
        assert isinstance(error, UserSourceError)
        assert words in str(error)


def test_batched_users_mapping_may_lack_unknown_users() -> None:
    async def main() -> list[Any]:
        users = BatchedUsers(lambda asked: {user: UserRecord({"n": user}) for user in asked if user > 1})
        return await asyncio.gather(users(1), users(2))

    assert numbers(asyncio.run(main())) == [None, 2]


@pytest.mark.parametrize(("retries", "ends"), [(1, UserRecord), (0, OSError)])
def test_batched_users_failed_call_is_tried_again(retries: int, ends: type) -> None:
    tries = []

    def fetch(asked: list[int]) -> list[UserRecord | None]:
        tries.append(asked)
        if len(tries) == 1:
            raise OSError("the store is away")
        return [UserRecord({"n": user}) for user in asked]

    async def main() -> list[Any]:
        users = BatchedUsers(fetch, retries=retries)
        found = await asyncio.gather(users(1), users(2), return_exceptions=True)
        assert users.stats()["failed"] == 1
        assert users.stats()["retried"] == retries
        return found

    assert {type(found) for found in asyncio.run(main())} == {ends}
    assert tries == [[1, 2]] * (1 + retries)


def test_batched_users_late_call_raises_timeout() -> None:
    async def main() -> None:
        store = Store(held=True)
        users = BatchedUsers(store, timeout_ms=5.0)
        with pytest.raises(TimeoutError):
            await users(2)
        assert users.stats()["failed"] == 1
        store.go.set()
        assert (await users(2)).features["n"] == 2

    asyncio.run(main())


def test_batched_users_cancelled_client_is_an_error_not_a_cancelled_request() -> None:
    async def fetch(asked: list[int]) -> list[UserRecord | None]:
        raise asyncio.CancelledError

    async def main() -> None:
        with pytest.raises(UserSourceError, match="was cancelled"):
            await BatchedUsers(fetch)(2)

    asyncio.run(main())


def test_batched_users_unknown_user_is_asked_for_again_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("aif_jax.user_sources.time.monotonic", lambda: now[0])

    async def main() -> None:
        store = Store()
        users = BatchedUsers(store, unknown_s=10.0, max_unknown=2)
        for user in (1, 1, 3, 5):
            assert await users(user) is None
        assert store.calls == [[1], [3], [5]]
        assert await users(1) is None, "two are remembered"
        assert store.calls[3:] == [[1]]
        users.forget_unknown(1)
        now[0] += 9.0
        assert await users(5) is None
        assert await users(1) is None
        now[0] += 2.0
        assert await users(5) is None
        assert store.calls[4:] == [[1], [5]]
        assert users.stats()["unknown"] == 2

    asyncio.run(main())


def test_batched_users_at_random_equal_the_store() -> None:
    rng = random.Random(0)

    async def fetch(asked: list[int]) -> dict[int, UserRecord | None]:
        assert 0 < len(asked) == len(set(asked)) <= 5
        under_way.append(1)
        assert len(under_way) <= 3
        try:
            await asyncio.sleep(rng.random() / 500)
            if rng.random() < 0.5:
                raise OSError("the store is away")
        finally:
            under_way.pop()
        return {user: UserRecord({"n": user}) if user % 3 else None for user in asked}

    async def ask(user: int) -> None:
        await asyncio.sleep(rng.random() / 100)
        try:
            record = await users(user)
        except OSError:
            failed.append(user)
        else:
            assert numbers([record]) == [user if user % 3 else None]

    async def main() -> None:
        await asyncio.gather(*(ask(rng.randrange(40)) for _ in range(500)))

    under_way: list[int] = []
    failed: list[int] = []
    users = BatchedUsers(fetch, max_users=5, at_once=3, window_ms=0.2, retries=1)
    asyncio.run(main())
    asyncio.run(main())  # in another loop
    assert 0 < len(failed) < 900
    assert users.stats()["calls"] < 1000


@ways
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_engine_with_batched_users_ranks_as_with_single_ones(
    make: Make, users: InMemoryUsers, world: World, way: str, kind: str
) -> None:
    def plain(asked: list[int]) -> list[UserRecord | None]:
        return [users(user) for user in asked]

    async def coroutine(asked: list[int]) -> list[UserRecord | None]:
        return plain(asked)

    fetch: Callable[[list[int]], Any] | Callable[[list[int]], Awaitable[Any]]
    fetch = plain if kind == "plain" else coroutine
    engine, single = make(users=BatchedUsers(fetch)), make()
    ids, pair = world.candidates(30)
    for user in (2, 5, 9):
        ranking = ran(getattr(engine.begin(user, CONTEXT), way), ids, pair)
        assert_same(ranking, single.begin(user, CONTEXT).rank(ids, pair))


def test_engine_rank_many_fetches_its_users_together(make: Make, users: InMemoryUsers, world: World) -> None:
    calls: list[int] = []

    def fetch(asked: list[int]) -> list[UserRecord | None]:
        calls.append(len(asked))
        return [users(user) for user in asked]

    shapes = Shapes(candidates=(32,), histories=(24,), users=(4,))
    engine = make(users=BatchedUsers(fetch, at_once=1), shapes=shapes)
    rankings = engine.rank_many(range(8), contexts=[CONTEXT] * 8)
    assert len(rankings) == 8
    assert sum(calls) == 8
    assert len(calls) < 8
    np.testing.assert_array_equal(rankings[3].ids, make().rank(3, CONTEXT).ids)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fetch": 3}, "fetch: got 3"),
        ({"max_users": 0}, "max_users: got 0"),
        ({"at_once": 0}, "at_once: got 0"),
        ({"window_ms": -1.0}, "window_ms: got -1.0"),
        ({"timeout_ms": 0.0}, "timeout_ms: got 0.0"),
        ({"retries": -1}, "retries: got -1"),
        ({"unknown_s": "1"}, "unknown_s: got '1'"),
    ],
)
def test_batched_users_wrong_settings_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BatchedUsers(**{"fetch": print, **given})
