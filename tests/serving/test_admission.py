"""Admission under overload: only what will be done in time, and nothing left owed."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import OverloadedError
from aif_jax.serving import Engine, InMemoryUsers, Threads
from aif_jax.serving.admission import Admission, Admitted
from aif_jax.serving.ladder import FINISH, USER, Ladder, LatencyEstimates
from aif_jax.serving.tasks import Deadline
from support.held import GatedUsers, until
from support.served import K_MAX, Make, World


class Account:
    """An admission with a ladder that knows how long user sides and stages take."""

    def __init__(
        self, *, user: float, stage: float, threads: int = 1, enabled: bool = True, prior: bool = True
    ):
        times = LatencyEstimates()
        times.record(USER, user)
        times.record(FINISH, stage)
        self.admission = Admission(threads)
        self.ladder = Ladder(times, (32,), (8,), enabled=enabled, rungs=(0, 1, 2, 3) if prior else (0, 1, 2))

    def enter(self, deadline_ms: float | None, began_s: float | None = None) -> Admitted:
        began_s = time.perf_counter() if began_s is None else began_s
        return self.admission.enter(Deadline(deadline_ms, began_s), self.ladder, 1)


def test_admission_many_requests_lets_in_those_done_in_time() -> None:
    account = Account(user=1_000, stage=1_000, threads=2)
    # Each takes a second of the two threads: the ninth would end after more than nine of them.
    levels = [account.enter(9_500).level for _ in range(12)]
    assert levels == ["full"] * 8 + ["shed"] * 4
    stats = account.admission.stats()
    assert (stats["full"], stats["shed"], stats["open"]) == (8, 4, 8)
    assert stats["owed_ms"] == pytest.approx(16_000)


def test_admission_later_deadlines_do_not_count_as_ahead() -> None:
    account = Account(user=1_000, stage=1_000)
    assert [account.enter(100_000).level for _ in range(40)] == ["full"] * 40
    assert account.enter(2_100).level == "full"
    assert account.enter(2_500).level == "shed"


def test_admission_finished_work_makes_room() -> None:
    account = Account(user=1_000, stage=1_000)
    first = account.enter(3_500)
    assert first.level == "full"
    assert account.enter(3_500).level == "shed"
    account.admission.user_done(first.ticket)
    assert account.enter(3_500).level == "full"
    account.admission.done(first.ticket)
    assert account.enter(4_500).level == "full"


def test_admission_half_of_the_time_left_lets_in_the_stage_alone() -> None:
    account = Account(user=10_000, stage=100)
    busy = account.enter(200)
    assert busy.level == "full"  # alone: the ladder decides
    account.admission.user_done(busy.ticket)
    assert account.enter(1_000).level == "stage"
    assert account.enter(350).level == "shed"


def test_admission_idle_engine_lets_one_request_in() -> None:
    account = Account(user=1_000, stage=1_000)
    assert account.enter(1).level == "full"


@pytest.mark.parametrize(("enabled", "prior"), [(False, True), (True, False)])
def test_admission_without_item_prior_refuses(enabled: bool, prior: bool) -> None:
    account = Account(user=1_000, stage=1_000, enabled=enabled, prior=prior)
    assert account.enter(3_000).level == "full"
    with pytest.raises(OverloadedError, match=r"busy for 2000\.\d ms.*own computing takes 2000\.0 ms"):
        account.enter(3_000)


def test_admission_request_without_deadline_owes_nothing() -> None:
    account = Account(user=1_000, stage=1_000)
    assert [account.enter(None) for _ in range(50)] == [Admitted("full", None)] * 50
    assert account.admission.stats()["open"] == 0


def test_admission_passed_deadline_owes_nothing() -> None:
    account = Account(user=1_000, stage=1_000)
    assert account.enter(3_000, time.perf_counter() - 10).level == "full"
    assert account.admission.stats()["open"] == 0
    assert account.enter(2_500).level == "full"


@pytest.mark.parametrize("seed", range(20))
def test_admission_random_traffic_agrees_with_plain_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    user, stage = rng.uniform(100, 5_000, 2)
    threads = int(rng.integers(1, 5))
    account, open_ = Account(user=user, stage=stage, threads=threads), []
    for _ in range(200):
        deadline_ms, began_s = float(rng.uniform(10_000, 100_000)), time.perf_counter()
        end_s = began_s + deadline_ms / 1e3
        ahead = [ticket for ticket in open_ if ticket.due_s <= end_s]
        ahead_ms = sum(ticket.user_ms + ticket.stage_ms for ticket in ahead) / threads
        needed = ahead_ms + user + stage
        one = account.enter(deadline_ms, began_s)
        if abs(needed - deadline_ms) > 50 and abs(ahead_ms + stage - deadline_ms / 2) > 50:
            full = not ahead or needed <= deadline_ms
            alone = ahead_ms + stage <= deadline_ms / 2
            assert one.level == ("full" if full else "stage" if alone else "shed")
        if one.ticket is not None:
            open_.append(one.ticket)
        if open_ and rng.random() < 0.4:
            chosen = open_[int(rng.integers(len(open_)))]
            if rng.random() < 0.5:
                account.admission.user_done(chosen)
            else:
                account.admission.done(chosen)
                open_ = [ticket for ticket in open_ if ticket is not chosen]
    for ticket in open_:
        account.admission.done(ticket)
    assert account.admission.stats()["owed_ms"] == 0


@pytest.fixture
def source(users: InMemoryUsers) -> GatedUsers:
    return GatedUsers(users, closed=True)


@pytest.fixture
def slow(make: Make, source: GatedUsers) -> Make:
    """A function that makes engines over `source`, to which user side and stage seem to take a second."""

    def make_engine(compute: int, max_queued: int = 64, **settings: Any) -> Engine:
        engine = make(users=source, threads=Threads(compute=compute, max_queued=max_queued), **settings)
        for key in (USER, FINISH):
            for _ in range(300):
                engine.hooks.generations.current.ladder.times.record(key, 1_000.0)
        return engine

    return make_engine


def owes_nothing(engine: Engine) -> None:
    """Wait until nothing is owed, and check it."""
    assert until(engine, lambda stats: not stats["admission"]["open"])
    stats = engine.stats()["admission"]
    assert (stats["open"], stats["owed_ms"]) == (0, 0)


def test_engine_overloaded_ranks_by_item_prior_without_user_source(
    slow: Make, source: GatedUsers, world: World
) -> None:
    engine = slow(compute=1)
    ids, pair = world.candidates(40)
    handles, shed_by_then = [], []
    for user in range(8):
        handles.append(engine.begin(user, deadline_ms=10_500))
        shed_by_then.append(engine.stats()["admission"]["shed"])
    assert shed_by_then == [0] * 5 + [1, 2, 3]
    report = handles[-1].rank(ids, pair, k=K_MAX).report  # while its user source still waits
    assert (report.rung, report.rung_reason, report.user_state) == (3, "overloaded", "prior")
    shed = asyncio.run(handles[-2].rank_async(ids, pair, k=K_MAX)).report
    assert (shed.rung, shed.rung_reason) == (3, "overloaded")
    source.gate.set()
    assert [handle.rank(ids, pair).report.rung for handle in handles[:5]] == [0] * 5
    handles[5].cancel()
    owes_nothing(engine)
    assert engine.stats()["admission"]["shed"] == 3


def test_engine_refused_request_is_counted_and_owes_nothing(slow: Make, source: GatedUsers) -> None:
    engine = slow(compute=1, on_deadline="error")
    handles = [engine.begin(user, deadline_ms=4_500) for user in range(2)]
    for user in range(3):
        with pytest.raises(OverloadedError, match="compute threads busy"):
            engine.begin(user, deadline_ms=4_500)
    assert engine.stats()["requests"]["error:OverloadedError"] == 3
    assert engine.stats()["open_handles"] == 2
    for handle in handles:
        handle.cancel()
    owes_nothing(engine)


@pytest.mark.parametrize("seed", range(4))
def test_engine_random_ends_of_requests_leave_nothing_owed(
    slow: Make, source: GatedUsers, world: World, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    source.gate.set()
    engine = slow(compute=2, max_queued=16)
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
            errors.append(type(error).__name__)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(150)))

    errors: list[str] = []
    asyncio.run(all_of_them())
    assert errors  # some went wrong, as they should
    owes_nothing(engine)
