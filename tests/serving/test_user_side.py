"""User sides of one user at the same time: one computation, and the same scores for all."""

import asyncio
import contextlib
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import AifError
from aif_jax.serving import Pending, Shapes, Threads, user_side
from aif_jax.types import UserRecord
from support.held import Held, settled
from support.served import UNCACHED, Make, World, assert_same
from support.waiting import eventually


@pytest.fixture
def revisions() -> dict[Any, int]:
    return {}


@pytest.fixture
def engine_of(make: Make, world: World, revisions: dict[Any, int]) -> Make:
    """A function from fields of `EngineConfig` to an engine with two compute threads."""

    def source(user: Any) -> UserRecord:
        return world.record(int(user), revision=revisions.get(user, 0))

    shapes = Shapes(candidates=(32,), histories=(8, 24))
    return partial(make, users=source, shapes=shapes, threads=Threads(compute=2, blocking=4))


def ranked(pendings: list[Pending], world: World) -> list[Any]:
    return [pending.rank(*world.candidates(20)) for pending in pendings]


def found(rankings: list[Any]) -> list[str]:
    return [ranking.report.user_state for ranking in rankings]


@pytest.mark.parametrize("cached", [True, False])
def test_user_side_concurrent_requests_of_one_user_share_one_program(
    engine_of: Make, world: World, cached: bool
) -> None:
    engine = engine_of() if cached else engine_of(user_states=UNCACHED)
    held = Held(engine)
    pendings = [engine.begin(user) for user in (1, np.int64(1), 1, "1", 2)]
    held.until_queued(fetched=5, programs=3)
    held.release()
    rankings = ranked(pendings, world)
    assert sorted(found(rankings[:3])) == ["computed", "joined", "joined"]
    assert found(rankings[3:]) == ["computed", "computed"]  # "1" is another user, as is 2
    for ranking in (*rankings[1:4], engine_of().begin(1).rank(*world.candidates(20))):
        assert_same(ranking, rankings[0])
    for ranking in rankings[:3]:
        assert ranking.report.unknown_features == rankings[3].report.unknown_features
    assert engine.stats()["requests"]["user_state:joined"] == engine.stats()["user_sides"]["shared"] == 2
    assert settled(engine)


def test_user_side_joined_requests_have_own_contexts(engine_of: Make, world: World) -> None:
    engine = engine_of(user_states=UNCACHED)
    hours: list[dict[str, Any]] = [{"hour": 3}, {"hour": 17}, {"hour": 99}, {}]
    alone = [engine.begin(1, hour).rank(*world.candidates(20)) for hour in hours]
    held = Held(engine)
    pendings = [engine.begin(1, hour) for hour in hours]
    held.until_queued(fetched=8, programs=1)
    held.release()
    together = ranked(pendings, world)
    assert sorted(found(together)) == ["computed", "joined", "joined", "joined"]
    for one, other in zip(alone, together, strict=True):
        assert one.scores.tobytes() == other.scores.tobytes()
        assert one.report.unknown_features == other.report.unknown_features
    assert len({ranking.scores.tobytes() for ranking in together}) >= 3


def test_user_side_other_revision_or_invalidation_is_not_joined(
    engine_of: Make, world: World, revisions: dict[Any, int]
) -> None:
    engine = engine_of()
    held = Held(engine)
    pendings = [engine.begin(1)]
    held.until_queued(fetched=1, programs=1)
    revisions[1] = 1
    pendings.append(engine.begin(1))
    held.until_queued(fetched=2, programs=2)
    engine.invalidate(1)
    pendings.append(engine.begin(1))
    held.until_queued(fetched=3, programs=3)
    held.release()
    assert found(ranked(pendings, world)) == ["computed"] * 3
    assert engine.begin(1).rank(*world.candidates(20)).report.user_state == "hit"


def test_user_side_later_due_computation_is_not_joined(engine_of: Make, world: World) -> None:
    engine = engine_of()
    held = Held(engine)
    pendings = [engine.begin(1, deadline_ms=60_000)]
    held.until_queued(fetched=1, programs=1)
    pendings.append(engine.begin(1, deadline_ms=30_000))
    held.until_queued(fetched=2, programs=2)
    pendings.append(engine.begin(1, deadline_ms=90_000))
    pendings.append(engine.begin(1))
    held.until_queued(fetched=4, programs=2)
    held.release()
    assert found(ranked(pendings, world)) == ["computed", "computed", "joined", "joined"]


@pytest.mark.parametrize("end", ["cancelled", "late", "failed"])
def test_user_side_leader_ending_without_state_is_replaced(
    engine_of: Make, world: World, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(on_deadline="error")
    held = Held(engine)
    first = engine.begin(1, deadline_ms=1_000.0 if end == "late" else None)
    held.until_queued(fetched=1, programs=1)
    others = [engine.begin(1) for _ in range(5)]
    held.until_queued(fetched=6, programs=1)
    if end == "cancelled":
        first.cancel()
        held.until_queued(fetched=6, programs=1)
    elif end == "late":
        with pytest.raises(AifError):
            first.rank(*world.candidates(20))
    else:
        real, failed = user_side.compute_states, []

        def compute_states(*arguments: Any, **options: Any) -> Any:
            if not failed:
                failed.append(1)
                raise MemoryError("no room for a state")
            return real(*arguments, **options)

        monkeypatch.setattr(user_side, "compute_states", compute_states)
    held.release()
    if end == "failed":
        with pytest.raises(MemoryError):
            first.rank(*world.candidates(20))
    rankings = ranked(others, world)
    assert sorted(found(rankings)) == ["computed", "joined", "joined", "joined", "joined"]
    for ranking in rankings[1:]:
        assert_same(ranking, rankings[0])
    assert settled(engine)


def test_user_side_close_ends_joined_requests(engine_of: Make, world: World) -> None:
    engine = engine_of()
    held = Held(engine)
    pendings = [engine.begin(1) for _ in range(4)]
    held.until_queued(fetched=4, programs=1)
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert eventually(lambda: engine.closed)
    held.release()
    closing.join(30)
    assert not closing.is_alive()
    for pending in pendings:
        with pytest.raises(AifError):
            pending.rank(*world.candidates(20))


def test_user_side_storm_with_cancellations_is_answered_alike(
    engine_of: Make, world: World, revisions: dict[Any, int]
) -> None:
    engine = engine_of(user_states=UNCACHED)
    expected = {user: engine.rank(user).scores.tobytes() for user in (1, 2, 3)}

    async def storm() -> list[tuple[int, Any]]:
        async def one(number: int) -> tuple[int, Any]:
            user = 1 + number % 3
            task = asyncio.create_task(engine.rank_async(user, deadline_ms=5_000.0 if number % 2 else None))
            if number % 7 == 0:
                await asyncio.sleep(0.0005 * (number % 5))
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    return user, await task
                return user, None
            return user, await task

        return await asyncio.gather(*(one(number) for number in range(300)))

    answers = asyncio.run(storm())
    assert all(ranking is None or ranking.scores.tobytes() == expected[user] for user, ranking in answers)
    assert sum(ranking is not None for _, ranking in answers) >= 250
    assert settled(engine)
