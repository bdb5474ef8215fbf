"""The loops that offer load, and the right answers of every rung."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest

from aif_jax.errors import DeadlineExceededError, OverloadedError
from aif_jax.types import UserRecord
from load import arrivals
from load.overlapping import Parts
from load.service import KNOWN, Answer, Truth, make_service
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
            faults = [truth.wrong(number, dataclasses.replace(answer, rung=other)) for other in KNOWN]
            assert [other for other in KNOWN if not faults[other]] == [rung], faults
    assert "no definition" in truth.wrong(0, dataclasses.replace(answers[0], rung=9))


class _Stub:
    """Takes ten milliseconds for each request, one after the other; refuses every tenth."""

    name = "one at a time"

    def __init__(self):
        self.turn = None

    async def serve(self, number, deadline_ms):
        if number % 10 == 9:
            raise OverloadedError("full")
        self.turn = self.turn or asyncio.Lock()
        async with self.turn:
            await asyncio.sleep(0.01)
        return Answer(np.array([number]), np.zeros(1), number % 2)

    def close(self):
        pass


def test_open_loop_counts_latency_from_when_a_request_was_due():
    """At twice what it can do, a server keeps the last as long again as arrivals took."""
    stub = _Stub()
    load = arrivals.open_loop(stub, 200.0, 1.0, lambda number, answer: "", deadline_ms=50.0)
    assert load.errors == {"OverloadedError": load.counted - load.answered}
    assert 0.05 < load.errors["OverloadedError"] / load.counted < 0.15
    assert load.rungs.keys() == {0, 1}
    assert sum(load.rungs.values()) == load.answered
    # 0.9 x 200 a second arrive, under 100 are served: at the end the queue is more than 0.3 s long.
    assert load.latencies_ms[-1] > 300
    assert load.in_time < load.throughput / 2
    assert load.unexpected == ()


def test_open_loop_reports_wrong_answers_and_other_errors():
    stub = _Stub()
    with pytest.raises(AssertionError, match="request 3: wrong"):
        arrivals.open_loop(stub, 200.0, 0.1, lambda number, answer: "wrong" if number == 3 else "")
    stub = _Stub()
    stub.serve = _raising(DeadlineExceededError("late"), ValueError("surprise"))
    load = arrivals.open_loop(stub, 200.0, 0.1, lambda number, answer: "")
    assert load.unexpected == ("ValueError: surprise",)
    assert load.answered == 0
    assert np.isnan(load.quantile(0.5))


def test_closed_loop_counts_answers_a_second():
    stub = _Stub()
    stub.serve = _answering
    began = time.perf_counter()
    rate, core_ms = arrivals.closed_loop(stub, 5, 0.3, lambda number, answer: "")
    assert time.perf_counter() - began >= 0.3
    # Ten milliseconds each, five at a time: at most 500 a second.
    assert 0 < rate <= 510
    assert core_ms >= 0


def _raising(*errors):
    async def serve(number, deadline_ms):
        raise errors[number % len(errors)]

    return serve


async def _answering(number, deadline_ms):
    await asyncio.sleep(0.01)
    return Answer(np.array([number]), np.zeros(1))
