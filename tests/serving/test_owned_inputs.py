"""Arrays that callers, sources and retrieval use again while a request is under way."""

import asyncio
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import RequestError
from aif_jax.serving import Engine, Filters, InMemoryUsers
from aif_jax.types import Candidates, Request, UserRecord
from support.held import Held, settled
from support.served import CONTEXT, UNCACHED, Make, World, assert_same


def test_rank_async_candidates_changed_after_the_call_are_ranked_as_given(
    engine: Engine, world: World
) -> None:
    ids, pair = world.candidates(20)
    expected = engine.begin(5).rank(ids, pair)

    async def changed() -> Any:
        mine, bids = ids.copy(), {"bid": list(pair["bid"]), "channel": pair["channel"].copy()}
        ranking = engine.begin(5).rank_async(mine, bids)
        mine[:], bids["bid"][:], bids["channel"][:] = world.ids[-1], [0.0] * 20, "new"
        return await ranking

    assert_same(asyncio.run(changed()), expected)


def test_rank_async_candidates_that_cannot_be_copied_leave_the_handle(engine: Engine, world: World) -> None:
    pending = engine.begin(5)
    with pytest.raises(RequestError, match="cannot be copied"):
        pending.rank_async(number for number in (1, 2))
    assert len(pending.rank(world.ids[:5])) == 5


def test_requests_context_changed_after_the_call_counts_as_given(make: Make, world: World) -> None:
    engine = make()
    expected = engine.rank(5, CONTEXT)
    context = dict(CONTEXT)

    async def changed() -> list[Any]:
        later = [engine.rank_async(5, context), engine.rank_many_async(users, contexts=contexts)]
        context["hour"], users[0] = 3, 6
        return await asyncio.gather(*later)

    users, contexts = [5], [context]
    one, (other,) = asyncio.run(changed())
    assert_same(one, expected)
    assert_same(other, expected)


def test_retrieve_changing_its_request_changes_nothing(make: Make, world: World) -> None:
    def retrieve(request: Request) -> Candidates:
        request.context.clear()  # type: ignore[attr-defined]
        return Candidates(*world.candidates(30))

    assert_same(make(retrieve=retrieve).rank(5, CONTEXT), make().rank(5, CONTEXT))


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_retrieve_using_its_array_again_ranks_what_was_returned(make: Make, world: World, kind: str) -> None:
    """Both retrieve into one array before any of them is ranked."""
    ids, _ = world.candidates(30)
    buffer, asked = np.empty(30, np.uint64), []

    def retrieve(request: Request) -> np.ndarray:
        asked.append(request.user)
        buffer[:] = ids if request.user == 5 else world.ids[-30:]
        return buffer

    async def coroutine(request: Request) -> np.ndarray:
        return retrieve(request)

    expected = make(retrieve=lambda request: ids).rank(5)
    engine = make(retrieve=retrieve if kind == "plain" else coroutine, user_states=UNCACHED)
    held = Held(engine)

    async def both() -> Any:
        first = asyncio.create_task(engine.rank_async(5))
        while asked != [5]:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(engine.rank_async(6))
        while asked != [5, 6]:
            await asyncio.sleep(0.001)
        held.release()
        return (await asyncio.gather(first, second))[0]

    assert_same(asyncio.run(both()), expected)


def test_user_source_changing_its_record_later_ranks_what_was_returned(make: Make, world: World) -> None:
    items, types = world.record(5).items.copy(), world.record(5).types.copy()
    record = UserRecord({"country": "de"}, items, types)
    expected = make(users=lambda user: record).rank(5)
    engine = make(users=lambda user: record)
    held = Held(engine)
    pending = engine.begin(5)
    held.until_queued(fetched=1, programs=1)
    items[:], types[:] = world.ids[0], 2
    held.release()
    assert_same(pending.rank(*world.candidates(30)), expected)
    assert settled(engine)


def test_fallback_changed_after_the_engine_was_made_is_as_given(make: Make, world: World) -> None:
    def retrieve(request: Request) -> None:
        raise OSError("away")

    fallback = world.ids[:20].copy()
    engine = make(retrieve=retrieve, fallback=fallback)
    fallback[:] = world.ids[-1]
    assert len(engine.rank(5)) == 10


def test_in_memory_users_keep_what_was_put(world: World) -> None:
    users, items, tags = InMemoryUsers({"bob": UserRecord()}), [1, 2], ["a"]
    users.put("ann", {"tags": tags}, items, ["click", "like"])
    items[0], tags[0] = 7, "b"
    ann = users("ann")
    assert ann is not None
    assert (ann.items, ann.features) == ([1, 2], {"tags": ["a"]})
    assert users.put("bob", {}).revision == 0
    assert users.put("bob", {}).revision == 1


def test_filters_of_a_list_changed_later_exclude_what_was_given(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    seen, genres = ids[:3].tolist(), ["drama", "noir"]
    filters = Filters(exclude=seen, categories=genres)
    expected = engine.begin(5).rank(ids, pair, filters=filters)
    seen.clear()
    genres.clear()
    assert_same(engine.begin(5).rank(ids, pair, filters=filters), expected)
