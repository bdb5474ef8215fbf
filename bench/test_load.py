"""The loops that offer load, and the right answers of every rung."""

import asyncio
import dataclasses

import numpy as np
import pytest

from aif_jax.errors import DeadlineExceededError, OverloadedError
from aif_jax.types import UserRecord
from load import arrivals
from load.overlapping import Parts
from load.service import RUNGS, Answer, Truth, make_service
from workload import SMALL


@pytest.mark.thorough
def test_truth_knows_every_rung(tmp_path):
    """The stage gives these answers for a user state without the long sequence, and for nobody's; the item
    prior the last."""
    service = make_service(SMALL, tmp_path)
    truth, parts = Truth(service, "linear"), Parts(service)
    for number in (0, 5):
        record = service.user(number)
        answers = (
            parts.stage(number, parts.user_side_of(record)),
            parts.stage(number, parts.user_side_of(record, long_sequence=False)),
            parts.stage(number, parts.user_side_of(UserRecord())),
            parts.by_item_prior(number),
        )
        for rung, answer in enumerate(answers):
            faults = [truth.wrong(number, dataclasses.replace(answer, rung=other)) for other in RUNGS]
            assert [other for other in RUNGS if not faults[other]] == [rung], faults
    assert "no definition" in truth.wrong(0, dataclasses.replace(answers[0], rung=9))


class Stub:
    """A server with a coroutine function in place of `serve`."""

    name = "stub"

    def __init__(self, serve):
        self.serve = serve


def one_at_a_time():
    """Take ten milliseconds for each request, one after the other; refuse every tenth."""
    turn = asyncio.Semaphore()

    async def serve(number, _):
        if number % 10 == 9:
            raise OverloadedError("full")
        async with turn:
            await asyncio.sleep(0.01)
        return Answer(np.array([number]), np.zeros(1), number % 2)

    return Stub(serve)


def right(number, answer):
    return ""


def test_open_loop_counts_latency_from_when_a_request_was_due():
    """At twice what it can do, a server keeps the last as long again as arrivals took."""
    load = arrivals.open_loop(one_at_a_time(), 200.0, 1.0, right, deadline_ms=50.0)
    assert load.errors == {"OverloadedError": load.counted - load.answered}
    assert 0.05 < load.errors["OverloadedError"] / load.counted < 0.15
    assert load.rungs.keys() == {0, 1}
    assert sum(load.rungs.values()) == load.answered
    # 0.9 x 200 a second arrive, under 100 are served: at the end the queue is more than 0.3 s long.
    assert load.latencies_ms[-1] > 300
    assert load.in_time < load.throughput / 2
    assert load.unexpected == ()


def test_open_loop_reports_wrong_answers_and_other_errors():
    with pytest.raises(AssertionError, match="request 3: wrong"):
        arrivals.open_loop(one_at_a_time(), 200.0, 0.1, lambda number, _: "wrong" if number == 3 else "")

    async def serve(number, _):
        raise (DeadlineExceededError("late"), ValueError("surprise"))[number % 2]

    load = arrivals.open_loop(Stub(serve), 200.0, 0.1, right)
    assert load.unexpected == ("ValueError: surprise",)
    assert load.answered == 0


def test_closed_loop_counts_answers_a_second():
    async def serve(number, _):
        await asyncio.sleep(0.01)
        return Answer(np.array([number]), np.zeros(1))

    rate, core_ms = arrivals.closed_loop(Stub(serve), 5, 0.3, right)
    # Ten milliseconds each, five at a time: at most 500 a second.
    assert 0 < rate <= 510
    assert core_ms >= 0
