"""Observers: every request that ends is reported once to each, whatever they raise."""

import asyncio
import threading
import time
from typing import Any

import pytest

from aif_jax.errors import DeadlineExceededError, RequestError, RetrievalError, UnknownUserError
from aif_jax.serving import Engine, Failure, Observer, Ranking, Report, Threads
from support.served import Make, World, ran, ways


class Notes(Observer):
    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.reports: list[Report] = []
        self.answers: list[Ranking] = []
        self.failures: list[Failure] = []
        self.closings = 0

    def opened(self, engine: Engine) -> None:
        self.engines.append(engine)

    def ranked(self, report: Report) -> None:
        self.reports.append(report)

    def answered(self, ranking: Ranking) -> None:
        self.answers.append(ranking)

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)

    def closed(self, engine: Engine) -> None:
        assert engine is self.engines[0]
        self.closings += 1


class Broken(Observer):
    def ranked(self, report: Report) -> None:
        raise ZeroDivisionError("the observer's own")

    failed = closed = ranked  # type: ignore[assignment]


def test_observer_rankings_of_every_way_are_reported_once(make: Make, world: World) -> None:
    notes = Notes()
    engine = make(observers=[notes], retrieve=lambda request: world.ids[:30])
    rankings = [engine.begin(4).rank(world.ids[:20]), engine.rank(5), *engine.rank_many([1, 2])]
    rankings.append(asyncio.run(engine.rank_async(6)))

    async def handle() -> Any:
        return await engine.begin(7).rank_async(world.ids[:20])

    rankings.append(asyncio.run(handle()))
    assert notes.reports == [ranking.report for ranking in rankings]
    assert all(seen is ranking for seen, ranking in zip(notes.answers, rankings, strict=True))
    assert [report.user for report in notes.reports] == [4, 5, 1, 2, 6, 7]
    assert notes.engines == [engine]
    assert (notes.failures, notes.closings) == ([], 0)
    engine.close()
    engine.close()
    assert notes.closings == 1


@ways
def test_observer_failures_of_every_kind_are_reported_once(make: Make, world: World, way: str) -> None:
    def retrieve(request: Any) -> Any:
        if request.user == 3:
            raise ConnectionError("no route")
        if request.user == 4:
            time.sleep(0.05)
        return world.ids[:30]

    def rank(user: Any, **arguments: Any) -> Any:
        return ran(getattr(engine, way), user, **arguments)

    notes = Notes()
    engine = make(observers=[notes], retrieve=retrieve)
    expected: list[tuple[Any, type[Exception], dict[str, Any]]] = [
        (3, RetrievalError, {}),
        (4, DeadlineExceededError, {"deadline_ms": 20.0}),
        (10**9, UnknownUserError, {}),
        (5, RequestError, {"k": 0}),
        (5, RequestError, {"context": {"moon": 1}}),
        ([5], RequestError, {}),
    ]
    for user, error, arguments in expected:
        with pytest.raises(error):
            rank(user, **arguments)
    assert [(f.user, f.error) for f in notes.failures] == [
        ("[5]" if user == [5] else user, error.__name__) for user, error, _ in expected
    ]
    assert notes.reports == []
    assert all(f.version == engine.version and f.message for f in notes.failures)
    late = notes.failures[1]
    assert (late.deadline_ms, late.total_ms >= 20.0) == (20.0, True)
    assert {"user_fetch"} <= {task.name for task in late.tasks}
    counts = engine.stats()["requests"]
    assert sum(number for name, number in counts.items() if name.startswith("error:")) == len(expected)


def test_observer_that_raises_is_counted_and_harms_nobody(make: Make, world: World, caplog: Any) -> None:
    notes = Notes()
    engine = make(observers=[Broken(), notes])
    for user in (1, 2):
        assert len(engine.begin(user).rank(world.ids[:20])) == 10
    with pytest.raises(RequestError, match="k: got 0"):
        engine.begin(1).rank(world.ids[:20], k=0)
    assert (len(notes.reports), len(notes.failures)) == (2, 1)
    assert engine.stats()["observer_errors"] == {"Broken": 3}
    assert caplog.text.count("observer Broken raised") == 1
    engine.close()
    assert notes.closings == 1


def test_report_tasks_show_queue_times(make: Make, world: World) -> None:
    """With one thread in each lane and one of them held, what waited for it says so."""
    release = threading.Event()
    engine = make(threads=Threads(blocking=1, compute=1))
    held = engine.hooks.submit("blocking", lambda: release.wait(20))
    pending = engine.begin(6)
    time.sleep(0.05)
    release.set()
    report = pending.rank(world.ids[:20]).report
    assert held.result(20)
    assert {"user_fetch", "user", "stage"} == set(report.queue_ms)
    assert report.queue_ms["user_fetch"] >= 50
    assert report.wait_ms <= report.total_ms
    tasks = {task.name: task for task in report.tasks}
    assert tasks["user_fetch"].lane == "blocking"
    assert tasks["stage"].lane == "compute"
    assert tasks["user_fetch"].thread != tasks["user"].thread != threading.get_native_id()
    for task in report.tasks:
        assert task.submitted_s <= task.began_s <= task.ended_s
    program = next(span for span in report.spans if span.name == "user program")
    assert program.start_s == tasks["user"].began_s >= tasks["user_fetch"].began_s
