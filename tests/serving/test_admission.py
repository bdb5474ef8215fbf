"""What is let in under overload: only what will be done in time, and nothing stays on the account."""

import asyncio
import dataclasses
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import OverloadedError
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving import Engine, InMemoryUsers
from aif_jax.serving.admission import Admission
from aif_jax.serving.ladder import REST, USER, Ladder
from aif_jax.serving.stage_times import StageTimes
from aif_jax.types import UserRecord
from served import ENGINE_CONFIG, K_MAX, World


def admission(
    *, user: float, stage: float, threads: int = 1, on: bool = True, prior: bool = True
) -> Admission:
    times = StageTimes()
    times.record(USER, user)
    times.record(REST, stage)
    account = Admission(threads)
    LADDERS[account] = Ladder(times, (32,), (8,), on=on, item_prior=prior)
    return account


LADDERS: dict[Admission, Ladder] = {}
"""What the requests to an account are ranked with."""


def request(deadline_ms: float | None, began_s: float | None = None) -> Any:
    """What admission reads and writes of a request."""
    began_s = time.perf_counter() if began_s is None else began_s
    return types.SimpleNamespace(user=1, deadline_ms=deadline_ms, began_s=began_s, ticket=None, shed=False)


def enter(account: Admission, one: Any) -> None:
    one.rungs = types.SimpleNamespace(ladder=LADDERS[account])
    account.enter(one)


def what(account: Admission, one: Any) -> str:
    try:
        enter(account, one)
    except OverloadedError:
        return "stage" if one.ticket is not None else "refused"
    return "shed" if one.shed else "full"


def test_as_many_are_let_in_as_will_be_done_in_time() -> None:
    account = admission(user=1_000, stage=1_000, threads=2)
    # Each takes a second of the two threads: the ninth would end after more than nine of them.
    told = [what(account, request(9_500)) for _ in range(12)]
    assert told == ["full"] * 8 + ["shed"] * 4
    stats = account.stats()
    assert (stats["full"], stats["shed"], stats["open"]) == (8, 4, 8)
    assert stats["owed_ms"] == pytest.approx(16_000)


def test_what_has_a_later_deadline_does_not_count() -> None:
    account = admission(user=1_000, stage=1_000)
    assert [what(account, request(100_000)) for _ in range(40)] == ["full"] * 40
    assert what(account, request(2_100)) == "full"
    assert what(account, request(2_500)) == "shed"


def test_what_is_done_makes_room() -> None:
    account = admission(user=1_000, stage=1_000)
    first = request(3_500)
    assert what(account, first) == "full"
    assert what(account, request(3_500)) == "shed"
    account.user_done(first.ticket)
    assert what(account, request(3_500)) == "full"
    account.done(first.ticket)
    assert what(account, request(4_500)) == "full"


def test_the_stage_alone_where_there_is_time_for_it_at_leisure() -> None:
    account = admission(user=10_000, stage=100)
    busy = request(200)
    assert what(account, busy) == "full"  # alone: the ladder decides
    account.user_done(busy.ticket)
    assert what(account, request(1_000)) == "stage"
    assert what(account, request(350)) == "shed"


def test_one_alone_is_always_let_in() -> None:
    account = admission(user=1_000, stage=1_000)
    assert what(account, request(1)) == "full"


@pytest.mark.parametrize(("on", "prior"), [(False, True), (True, False)])
def test_without_a_rung_for_it_it_is_refused(on: bool, prior: bool) -> None:
    account = admission(user=1_000, stage=1_000, on=on, prior=prior)
    assert what(account, request(3_000)) == "full"
    with pytest.raises(OverloadedError, match=r"busy for 2000\.\d ms.*own computing takes 2000\.0 ms"):
        enter(account, request(3_000))


def test_no_deadline_is_not_on_the_account() -> None:
    account = admission(user=1_000, stage=1_000)
    assert [what(account, request(None)) for _ in range(50)] == ["full"] * 50
    assert account.stats()["open"] == 0


def test_nothing_is_owed_after_a_deadline() -> None:
    account = admission(user=1_000, stage=1_000)
    assert what(account, request(3_000, time.perf_counter() - 10)) == "full"
    assert account.stats()["open"] == 0
    assert what(account, request(2_500)) == "full"


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_against_the_plain_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    user, stage = rng.uniform(100, 5_000, 2)
    threads = int(rng.integers(1, 5))
    account, open_ = admission(user=user, stage=stage, threads=threads), []
    for _ in range(200):
        deadline_ms = float(rng.uniform(10_000, 100_000))
        one = request(deadline_ms)
        end = one.began_s + deadline_ms / 1e3
        ahead = [r for r in open_ if r.ticket.deadline_s <= end]
        ahead_ms = sum(r.ticket.user_ms + r.ticket.stage_ms for r in ahead) / threads
        needed = ahead_ms + user + stage
        told = what(account, one)
        if abs(needed - deadline_ms) > 50 and abs(ahead_ms + stage - deadline_ms / 2) > 50:
            full = not ahead or needed <= deadline_ms
            alone = ahead_ms + stage <= deadline_ms / 2
            assert told == ("full" if full else "stage" if alone else "shed")
        if one.ticket is not None:
            open_.append(one)
        if open_ and rng.random() < 0.4:
            chosen = open_[int(rng.integers(len(open_)))]
            if rng.random() < 0.5:
                account.user_done(chosen.ticket)
            else:
                account.done(chosen.ticket)
                open_.remove(chosen)
    for one in open_:
        account.done(one.ticket)
    assert account.stats()["owed_ms"] == 0


Make = Callable[..., Engine]


class Gate:
    """A user source that waits until it is let go."""

    def __init__(self, users: InMemoryUsers):
        self.users, self.gate = users, threading.Event()

    def __call__(self, user: Any) -> UserRecord | None:
        assert self.gate.wait(30)
        return self.users(user)


@pytest.fixture
def source(users: InMemoryUsers) -> Iterator[Gate]:
    made = Gate(users)
    yield made
    made.gate.set()


@pytest.fixture
def make(bundle: Bundle, index: ItemIndex, behaviours: BehaviourTable, source: Gate) -> Iterator[Make]:
    made: list[Engine] = []

    def make_engine(**settings: Any) -> Engine:
        config = dataclasses.replace(ENGINE_CONFIG, **settings)
        engine = Engine(bundle, index, behaviours, users=source, config=config)
        made.append(engine)
        for key, ms in ((USER, 1_000.0), (REST, 1_000.0)):
            for _ in range(300):
                engine._release.rungs.ladder.times.record(key, ms)
        return engine

    yield make_engine
    source.gate.set()
    for engine in made:
        engine.close()


def settled(engine: Engine) -> None:
    """Wait until nothing is owed."""
    end = time.perf_counter() + 20
    while engine.stats()["admission"]["open"] and time.perf_counter() < end:
        time.sleep(0.01)
    stats = engine.stats()["admission"]
    assert (stats["open"], stats["owed_ms"]) == (0, 0)


def test_an_overloaded_engine_ranks_by_the_item_prior_and_asks_nobody(
    make: Make, source: Gate, world: World
) -> None:
    engine = make(compute_threads=1)
    ids, pair = world.candidates(40)
    handles = [engine.begin(user, deadline_ms=10_500) for user in range(8)]
    assert [handle.shed for handle in handles] == [False] * 5 + [True] * 3
    began = time.perf_counter()
    report = handles[-1].rank(ids, pair, k=K_MAX).report
    assert time.perf_counter() - began < 5  # its user source still waits
    assert (report.rung, report.rung_reason, report.user_state) == (3, "overloaded", "prior")
    shed = asyncio.run(handles[-2].rank_async(ids, pair, k=K_MAX)).report
    assert (shed.rung, shed.rung_reason) == (3, "overloaded")
    source.gate.set()
    assert [handle.rank(ids, pair).report.rung for handle in handles[:5]] == [0] * 5
    handles[5].cancel()
    settled(engine)
    assert engine.stats()["admission"]["shed"] == 3


def test_refused_requests_are_counted_and_leave_nothing(make: Make, source: Gate) -> None:
    engine = make(compute_threads=1, late="error")
    handles = [engine.begin(user, deadline_ms=4_500) for user in range(2)]
    for user in range(3):
        with pytest.raises(OverloadedError, match="compute threads busy"):
            engine.begin(user, deadline_ms=4_500)
    assert engine.stats()["requests"]["error:OverloadedError"] == 3
    assert engine.stats()["open_handles"] == 2
    for handle in handles:
        handle.cancel()
    settled(engine)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_becomes_of_requests_nothing_stays_owed(
    make: Make, source: Gate, world: World, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    source.gate.set()
    engine = make(compute_threads=2, queue_bound=16)
    ids, pair = world.candidates(20)

    async def one() -> None:
        user = int(rng.integers(0, 60)) if rng.random() < 0.9 else "nobody knows"
        deadline = None if rng.random() < 0.2 else float(rng.choice([0.2, 5, 4_000, 60_000]))
        try:
            handle = engine.begin(user, deadline_ms=deadline)
            match int(rng.integers(4)):
                case 0:
                    handle.cancel()
                case 1:
                    await asyncio.wait_for(handle.rank_async(ids, pair), float(rng.choice([0.001, 20])))
                case 2:
                    await handle.rank_async(ids[:0] if rng.random() < 0.5 else ["x"] * 3, pair)
                case _:
                    await asyncio.to_thread(handle.rank, ids, pair)
        except Exception as error:
            told.append(type(error).__name__)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(150)))

    told: list[str] = []
    asyncio.run(all_of_them())
    assert told  # some went wrong, as they should
    settled(engine)
