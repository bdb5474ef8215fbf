"""Closing an engine while requests are under way, and from inside its own threads."""

import asyncio
import re
import threading
from typing import Any

import pytest

from aif_jax.errors import (
    OverloadedError,
    RequestError,
    RetrievalError,
    SchedulerError,
)
from aif_jax.serving import Engine, InMemoryUsers
from aif_jax.serving.admission import Admitted
from aif_jax.serving.tasks import Deadline
from aif_jax.types import Request, UserRecord
from support.served import Make, Served, World


def test_engine_close_ends_requests_whose_coroutine_retrieves(make: Make) -> None:
    started, errors = threading.Event(), []

    async def retrieve(request: Request) -> Any:
        started.set()
        await asyncio.sleep(60)

    engine = make(retrieve=retrieve)

    def ask() -> None:
        try:
            engine.rank(3)
        except SchedulerError as error:
            errors.append(str(error))

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    assert started.wait(10)
    engine.close()
    asker.join(10)
    assert len(errors) == 1
    # Retrieval is begun before the user side: which of them met the end, depends.
    assert re.fullmatch("the engine was closed while (retrieve|a request) was under way; .*", errors[0])
    assert engine.closed


@pytest.mark.parametrize("where", ["coroutine of rank", "plain of rank_async", "user source"])
def test_engine_close_inside_own_thread_is_refused_and_engine_still_serves(
    make: Make, users: InMemoryUsers, world: World, where: str
) -> None:
    closing = True

    def close() -> None:
        if closing:
            engine.close()

    def plain(request: Request) -> Any:
        close()
        return world.ids[:5]

    async def coroutine(request: Request) -> Any:
        return plain(request)

    def source(user: Any) -> UserRecord | None:
        close()
        return users(user)

    retrieve = coroutine if where.startswith("coroutine") else plain if where.startswith("plain") else None
    engine = make(users=users if retrieve else source, retrieve=retrieve)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            if retrieve is None:
                engine.begin(3).rank(world.ids[:5])
            else:
                engine.rank(3) if retrieve is coroutine else asyncio.run(engine.rank_async(3))
        except Exception as error:
            errors.append(error)

    # In a thread that need not end, because this was a wait without an end once.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(10)
    assert not asker.is_alive()
    assert [type(error) for error in errors] == [RetrievalError if retrieve is plain else SchedulerError]
    assert "close: called inside a retrieve or a user source" in str(errors[0])
    assert not engine.closed
    closing = False
    ask()
    assert len(errors) == 1
    engine.close()
    assert engine.closed


def test_engine_close_from_callers_own_loop_closes(make: Make, world: World) -> None:
    async def retrieve(request: Request) -> Any:
        engine.close()
        return world.ids[:5]

    engine = make(retrieve=retrieve)
    with pytest.raises(RequestError, match="the engine was closed"):
        asyncio.run(asyncio.wait_for(engine.rank_async(3), 10))
    assert engine.closed


def test_engine_closed_while_retrieving_starts_no_event_loop(make: Make) -> None:
    engines: list[Engine] = []

    async def retrieve(request: Request) -> Any:
        raise AssertionError("not reached")

    def closing(request: Request) -> Any:
        engines[0].close()
        return retrieve(request)

    engines.append(make(retrieve=closing))
    before = set(threading.enumerate())
    with pytest.raises(SchedulerError, match="the engine was closed"):
        engines[0].rank(3)
    assert not set(threading.enumerate()) - before


def test_engine_closed_refuses_requests_and_ends_handles(make: Make, world: World) -> None:
    engine = make()
    pending = engine.begin(5)
    engine.close()
    engine.close()
    with pytest.raises(SchedulerError, match="closed"):
        engine.begin(5)
    with pytest.raises(RequestError, match="the engine was closed"):
        pending.rank(world.ids[:5])


def test_engine_that_refuses_while_it_closes_retires_its_generations(make: Make, one: Served) -> None:
    engine = make()

    def closes(deadline: Deadline, *_: Any) -> Admitted:
        engine.close()
        raise OverloadedError("refused")

    engine.hooks.services.admission.enter = closes  # type: ignore[method-assign]
    with pytest.raises(OverloadedError):
        engine.begin(5, deadline_ms=100.0)
    assert engine.stats()["generations"]["open"] == 0
    assert engine.closed
