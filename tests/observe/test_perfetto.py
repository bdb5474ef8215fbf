"""Traces for Perfetto."""

import itertools
import json
from typing import Any

import pytest

from aif_jax.errors import RequestError
from aif_jax.observe import SlowRequests, chrome_trace
from support.held import computed
from support.served import Make, World


def events_of(trace: str) -> list[dict[str, Any]]:
    events = json.loads(trace)["traceEvents"]
    for event in events:
        assert event["ph"] == "X"
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    return events


def test_chrome_trace_requests_and_threads_share_one_clock(make: Make, world: World) -> None:
    engine = make()
    reports = [engine.begin(user).rank(world.ids[:20]).report for user in (1, 2)]
    events = events_of(chrome_trace(reports))
    groups = {event["pid"] for event in events}
    assert groups == {"request 0: user 1", "request 1: user 2", "threads of the scheduler"}
    names = {event["name"] for event in events if event["pid"] == "request 0: user 1"}
    assert {"retrieval", "user fetch", "user program", "gather rows", "real-time stage"} <= names
    first = {event["pid"]: event["ts"] for event in reversed(events)}
    distance_us = (reports[1].spans[0].start_s - reports[0].spans[0].start_s) * 1e6
    assert first["request 1: user 2"] - first["request 0: user 1"] == pytest.approx(distance_us, abs=1.0)
    threads = [event for event in events if event["pid"] == "threads of the scheduler"]
    assert [event["name"] for event in threads].count("stage") == 2
    assert {event["args"]["request"] for event in threads} == {"request 0: user 1", "request 1: user 2"}
    by_thread: dict[str, list[tuple[float, float]]] = {}
    for event in threads:
        by_thread.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in by_thread.values():  # a thread runs one thing at a time
        spans.sort()
        assert all(a[1] <= b[0] + 1.0 for a, b in itertools.pairwise(spans))


def test_chrome_trace_aligned_requests_begin_at_zero(make: Make, world: World) -> None:
    engine = make()
    reports = [engine.begin(user).rank(world.ids[:20]).report for user in (1, 2)]
    events = events_of(chrome_trace(reports, aligned=True))
    starts = [min(e["ts"] for e in events if e["pid"] == pid) for pid in {e["pid"] for e in events}]
    assert starts == [0.0, 0.0]


def test_chrome_trace_failure_shows_tasks_that_ran(make: Make, world: World) -> None:
    slow = SlowRequests()
    engine = make(observers=[slow])
    pending = engine.begin(3)
    # The record was fetched, and the state was computed.
    assert computed(engine)
    with pytest.raises(RequestError):
        pending.rank(world.ids[:20], k=0)
    events = events_of(slow.trace())
    names = [event["name"] for event in events if event["pid"] == "request 0: user 3"]
    assert names[0] == "RequestError"
    assert {"user_fetch", "user"} <= set(names)


def test_chrome_trace_of_nothing_is_empty() -> None:
    assert events_of(chrome_trace([])) == []
