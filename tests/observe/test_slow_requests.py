"""The slowest requests and the newest failures."""

import itertools
import json
import random
from typing import Any

import pytest

from aif_jax.errors import ConfigError, RequestError
from aif_jax.observe import SlowRequests
from aif_jax.serving import Report
from support.served import Make, World


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def report(make: Make, world: World) -> Report:
    return make().begin(5).rank(world.ids[:20]).report


def taking(report: Report, total_ms: float) -> Report:
    return report._replace(total_ms=total_ms)


def totals(slow: SlowRequests) -> list[float]:
    return [report.total_ms for report in slow.worst()]


@pytest.mark.parametrize("seed", range(5))
def test_slow_requests_random_times_keep_slowest_of_two_windows(report: Report, seed: int) -> None:
    random_ = random.Random(seed)
    clock = Clock()
    slow = SlowRequests(worst=4, window_s=10.0, clock=clock)
    windows: list[list[float]] = []
    for window in range(4):
        clock.now = 10.0 * window + 1.0 + window  # the first request of a window begins it
        windows.append([random_.choice([1.0, 2.0, 3.0, random_.random() * 5]) for _ in range(20)])
        for total_ms in windows[-1]:
            slow.ranked(taking(report, total_ms))
        expected = sorted(itertools.chain(*windows[-2:]), reverse=True)[:4]
        assert totals(slow) == expected
    clock.now += 100.0
    assert totals(slow) == []


def test_slow_requests_failures_are_newest_first(make: Make, world: World) -> None:
    slow = SlowRequests(failures=3)
    engine = make(observers=[slow])
    for k in (-1, -2, -3, -4):
        with pytest.raises(RequestError):
            engine.begin(5).rank(world.ids[:20], k=k)
    assert [failure.message[:9] for failure in slow.failures()] == ["k: got -4", "k: got -3", "k: got -2"]
    assert json.loads(json.dumps(slow.to_json()))["failures"][0]["error"] == "RequestError"
    slow.clear()
    assert (slow.worst(), slow.failures()) == ([], [])


@pytest.mark.parametrize("arguments", [{"worst": 0}, {"failures": 0}, {"window_s": 0.0}])
def test_slow_requests_impossible_sizes_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected at least 1"):
        SlowRequests(**arguments)
