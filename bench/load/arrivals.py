"""Open and closed loops of requests, and the outcome of each.

In the open loop requests arrive whether or not those before them were answered, as a Poisson process, drawn
beforehand. Latency counts from the moment at which a request was due, not from when it was sent: a server
that falls behind makes its callers wait, and so does a generator that does, which counts against the server
here. Requests are sent from the event loop that also serves, as in a web server.
"""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from aif_jax.errors import DeadlineExceededError, OverloadedError
from load.service import Answer
from load.ways import Way

Wrong = Callable[[int, Answer], str]
"""Takes a request's number and its answer; returns the fault of the answer, or nothing."""


@dataclasses.dataclass(slots=True)
class Sent:
    """One request: when it was due and done, in seconds from the start, and what came of it."""

    number: int
    due_s: float
    sent_s: float = 0.0
    done_s: float = 0.0
    answer: Answer | None = None
    error: Exception | None = None


@dataclasses.dataclass(frozen=True)
class Load:
    """The outcome of the requests of one run; those that were due in the first fifth are not counted."""

    offered: float  # requests a second that were due
    latencies_ms: np.ndarray  # of the answered ones, ascending
    throughput: float  # answers a second, late ones included
    in_time: float  # answers a second within the deadline, on any rung
    in_full: float  # those of them on rung 0
    answered: int  # requests with an answer, late ones included
    counted: int
    rungs: dict[int, int]  # answered requests by rung
    errors: dict[str, int]  # others by the type of their error; refused ones are `OverloadedError`
    unexpected: tuple[str, ...]  # errors of other types than refusal and deadline, as texts
    core_ms: float  # processor time of the process per request answered, generator included
    late_ms: float  # how late the generator sent, 99th percentile

    def quantile(self, share: float) -> float:
        """Return a quantile of latency in milliseconds; not a number if nothing was answered."""
        return float(np.quantile(self.latencies_ms, share)) if len(self.latencies_ms) else float("nan")


_SETTLING = 0.2
REFUSALS = (OverloadedError, DeadlineExceededError)


def open_loop(
    way: Way, rate: float, seconds: float, wrong: Wrong, *, deadline_ms: float | None = None, seed: int = 0
) -> Load:
    """Send requests at a mean rate a second for some seconds and wait for all of them; then check answers.

    A deadline counts from when a request was due; the way gets what is left of it.

    Raises:
        AssertionError: an answer is wrong, or a request got neither answer nor error.
    """
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, max(8, round(rate * seconds)))
    requests = [Sent(number, due) for number, due in enumerate(np.cumsum(gaps).tolist())]
    cpu = time.process_time()
    asyncio.run(send(way, requests, time.perf_counter() + 0.02, deadline_ms))
    return _summary(requests, wrong, deadline_ms, time.process_time() - cpu)


async def send(way: Way, requests: list[Sent], origin: float, deadline_ms: float | None = None) -> None:
    """Send requests when they are due, by a time of `time.perf_counter`, and wait for all of them."""

    async def serve(request: Sent) -> None:
        left = None
        if deadline_ms is not None:
            # One that has passed before its request was sent is refused by the way like any other.
            left = max(1e-3, deadline_ms - (request.sent_s - request.due_s) * 1e3)
        try:
            request.answer = await way.serve(request.number, left)
        except Exception as error:
            request.error = error
        request.done_s = time.perf_counter() - origin

    tasks = []
    for request in requests:
        wait = origin + request.due_s - time.perf_counter()
        # Also when it is late: others must get their turn.
        await asyncio.sleep(max(0.0, wait))
        request.sent_s = time.perf_counter() - origin
        tasks.append(asyncio.create_task(serve(request)))
    await asyncio.gather(*tasks)


def _summary(requests: list[Sent], wrong: Wrong, deadline_ms: float | None, cpu_s: float) -> Load:
    end = requests[-1].due_s
    begin = end * _SETTLING
    counted = [request for request in requests if request.due_s >= begin]
    for request in requests:
        if request.answer is None:
            assert request.error is not None, f"request {request.number} got neither answer nor error"
        else:
            fault = wrong(request.number, request.answer)
            assert not fault, f"request {request.number}: {fault}"
    errors = [request.error for request in requests if request.error is not None]
    unexpected = [error for error in errors if not isinstance(error, REFUSALS)]
    found = [(request, request.answer) for request in counted if request.answer is not None]
    latencies = np.array([(request.done_s - request.due_s) * 1e3 for request, _ in found])
    in_time = latencies <= (float("inf") if deadline_ms is None else deadline_ms)
    full = np.array([answer.rung == 0 for _, answer in found], bool)
    window = end - begin
    return Load(
        offered=len(counted) / window,
        latencies_ms=np.sort(latencies),
        throughput=len(latencies) / window,
        in_time=int(in_time.sum()) / window,
        in_full=int((in_time & full).sum()) / window,
        answered=len(latencies),
        counted=len(counted),
        rungs=dict(Counter(answer.rung for _, answer in found)),
        errors=dict(Counter(type(request.error).__name__ for request in counted if request.error)),
        unexpected=tuple(sorted({f"{type(error).__name__}: {error}" for error in unexpected})),
        core_ms=cpu_s * 1e3 / max(1, len(requests) - len(errors)),
        late_ms=float(np.quantile([(r.sent_s - r.due_s) * 1e3 for r in requests], 0.99)),
    )


def closed_loop(way: Way, callers: int, seconds: float, wrong: Wrong) -> tuple[float, float]:
    """Return answers a second, and core-milliseconds each, of callers that always ask again at once.

    Raises:
        AssertionError: an answer is wrong.
        Exception: what a request raised.
    """
    number, done = iter(range(1 << 40)), []

    async def caller(start: float) -> None:
        while True:
            mine = next(number)
            done.append((mine, await way.serve(mine, None)))
            if time.perf_counter() - start >= seconds:
                return

    async def run() -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller(start) for _ in range(callers)))
        return time.perf_counter() - start, time.process_time() - cpu

    spent, cpu = asyncio.run(run())
    for mine, answer in done:
        assert not (fault := wrong(mine, answer)), f"request {mine}: {fault}"
    return len(done) / spent, cpu * 1e3 / len(done)
