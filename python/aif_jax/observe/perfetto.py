"""Requests as a trace file for Perfetto: a group of tracks for each request, and a track for each thread.

Format: Chrome's "Trace Event Format", complete events (``"ph": "X"``), times in microseconds.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from aif_jax.checks import typed
from aif_jax.serving import Failure, Report, Task
from aif_jax.strict_json import dumps

_THREADS = "threads of the scheduler"


@typed
def chrome_trace(requests: Iterable[Report | Failure], *, aligned: bool = False) -> str:
    """Return a trace file of several requests for https://ui.perfetto.dev or chrome://tracing.

    A request shows its retrieval, its user side and its caller's waits one under the other; another group of
    tracks shows the tasks of each thread of the scheduler, their requests, and their time in the queue.

    Args:
        requests: reports of rankings, and failures.
        aligned: lets all requests begin at 0, to compare them, instead of at their real times. Threads are
            then left out: they would seem to run several tasks at once.
    """
    requests = list(requests)
    began = [_began_s(request) for request in requests]
    origin = min(began, default=0.0)
    events: list[dict[str, Any]] = []
    for number, (request, at) in enumerate(zip(requests, began, strict=True)):
        name = f"request {number}: user {request.user}"
        events.extend(_request_events(request, name, at if aligned else origin))
        if not aligned:
            events.extend(_task_event(task, origin, name) for task in request.tasks)
    return dumps({"traceEvents": events, "displayTimeUnit": "ms"}).decode()


def _began_s(request: Report | Failure) -> float:
    return request.began_s if isinstance(request, Failure) else min(span.start_s for span in request.spans)


def _request_events(request: Report | Failure, name: str, origin: float) -> Iterator[dict[str, Any]]:
    if isinstance(request, Report):
        for span in request.spans:
            yield _event(span.name, name, span.lane, origin, span.start_s, span.end_s)
        return
    ended_s = request.began_s + request.total_ms / 1e3
    error = {"error": request.error, "message": request.message}
    yield _event(request.error, name, "request", origin, request.began_s, ended_s, error)
    for task in request.tasks:
        yield _event(task.name, name, task.lane, origin, task.began_s, min(_ended_s(task), ended_s))


def _task_event(task: Task, origin: float, request: str) -> dict[str, Any]:
    about = {"request": request, "queued_ms": (task.began_s - task.submitted_s) * 1e3}
    thread = f"{task.lane} {task.thread}"
    return _event(task.name, _THREADS, thread, origin, task.began_s, _ended_s(task), about)


def _ended_s(task: Task) -> float:
    return task.began_s if task.ended_s != task.ended_s else task.ended_s


def _event(
    name: str, group: str, track: str, origin: float, start_s: float, end_s: float, about: Any = None
) -> dict[str, Any]:
    return {
        "name": name, "ph": "X", "pid": group, "tid": track, "cat": track,
        "ts": (start_s - origin) * 1e6, "dur": max(0.0, end_s - start_s) * 1e6, "args": about or {},
    }  # fmt: skip
