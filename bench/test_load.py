"""The programs that load the engine, at small sizes: every answer checked, every page and picture written."""

import argparse
import asyncio
import dataclasses
import json
import time

import numpy as np
import pytest

import faults
import item_index
import open_loop
import overlap
import publish
from aif_jax.errors import DeadlineExceededError, OverloadedError
from aif_jax.types import UserRecord
from load import arrivals
from load.parts import Parts
from load.plan import workload
from load.service import KNOWN, Answer, Truth, make_service


@pytest.mark.program
@pytest.mark.benchmark(group="overlap, --quick, once")
def test_overlap(benchmark, tmp_path, capsys):
    out = benchmark.pedantic(overlap.main, (_arguments(tmp_path),), rounds=1)
    results = _written(out, tmp_path, capsys)
    cells = results["overlap"]["cells"]
    assert len(cells) == 3 * len(overlap.WAYS)
    for cell in cells:
        # The parts as they ran in the request cannot take longer than the whole.
        assert cell["overhead_own_stage"]["p50"] > 0
        assert cell["medians"]["total"] >= cell["medians"]["retrieval"] >= cell["ms"]
    assert all(cost["core_ms"]["request"] > cost["core_ms"]["retrieval"] for cost in results["core_cost"])


@pytest.mark.program
@pytest.mark.benchmark(group="open loop, --quick, once")
def test_open_loop(benchmark, tmp_path, capsys):
    out = benchmark.pedantic(open_loop.main, (_arguments(tmp_path),), rounds=1)
    results = _written(out, tmp_path, capsys)["open_loop"]
    assert [curve["way"] for curve in results["curves"]] == [
        "sequential", "overlapped in plain Python", "engine",
    ]  # fmt: skip
    for curve in results["curves"]:
        assert not curve["unexpected"]
        for load in curve["loads"]:
            assert load["answered"] == sum(load["rungs"].values())
            assert load["counted"] == load["answered"] + sum(load["errors"].values())
            assert load["goodput"] <= load["throughput"] <= load["offered"] * 1.001
    assert all((out / f"open_loop.{kind}").stat().st_size > 10_000 for kind in ("png", "svg"))


@pytest.mark.program
@pytest.mark.benchmark(group="faults, --quick, once")
def test_faults(benchmark, tmp_path, capsys):
    results = benchmark.pedantic(faults.main, (_arguments(tmp_path),), rounds=1)
    assert results["good"], results["accounts"]
    _written(tmp_path / "out", tmp_path, capsys)


@pytest.mark.program
@pytest.mark.benchmark(group="item index, --quick, once")
def test_item_index(benchmark, tmp_path, capsys):
    out = benchmark.pedantic(item_index.main, (_arguments(tmp_path),), rounds=1)
    results = _written(out, tmp_path, capsys)
    assert all(way["open_s"] > 0 for way in results["opening"]["ways"].values())
    assert results["building"]["items"] == 1000
    assert [one["offered_per_s"] for one in results["updating"]] == [200.0] * 3


@pytest.mark.program
@pytest.mark.benchmark(group="publish, --quick, once")
def test_publish(benchmark, tmp_path, capsys):
    out = benchmark.pedantic(publish.main, (_arguments(tmp_path),), rounds=1)
    results = _written(out, tmp_path, capsys)["publish"]
    assert (results["published"], results["faults"]) == (10, [])
    assert len({version for _, _, version in results["done"]}) == 2
    assert sum(phase["requests"] for phase in results["phases"].values()) == len(results["done"])
    assert all((out / f"publish.{kind}").stat().st_size > 10_000 for kind in ("png", "svg"))


@pytest.mark.thorough
def test_what_is_right_with_less_known(tmp_path):
    """The stage gives these answers for a user state without the long sequence, and for nobody's; the item
    prior the last."""
    service = make_service(workload(argparse.Namespace(quick=True)), tmp_path)
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
            told = [truth.wrong(number, dataclasses.replace(answer, rung=other)) for other in KNOWN]
            assert [other for other in KNOWN if not told[other]] == [rung], told
    assert "nothing says what is right" in truth.wrong(0, dataclasses.replace(answers[0], rung=9))


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


def test_latency_counts_from_when_a_request_was_due():
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


def test_wrong_answers_and_other_errors_are_told():
    stub = _Stub()
    with pytest.raises(AssertionError, match="request 3: wrong"):
        arrivals.open_loop(stub, 200.0, 0.1, lambda number, answer: "wrong" if number == 3 else "")
    stub = _Stub()
    stub.serve = _raising(DeadlineExceededError("late"), ValueError("surprise"))
    load = arrivals.open_loop(stub, 200.0, 0.1, lambda number, answer: "")
    assert load.unexpected == ("ValueError: surprise",)
    assert load.answered == 0
    assert np.isnan(load.quantile(0.5))


def test_callers_that_ask_again_at_once():
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


def _arguments(folder):
    return ["--quick", "--out", str(folder / "out"), "--record", str(folder / "record.md")]


def _written(out, folder, capsys):
    record = (folder / "record.md").read_text()
    assert record == (out / "page.md").read_text()
    assert record in capsys.readouterr().out
    return json.loads((out / "results.json").read_text())
