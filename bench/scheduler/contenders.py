"""The contenders, each behind the same few calls, with the same number of threads in total."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

from aif_jax import Scheduler
from aif_jax.errors import DeadlineExceededError, OverloadedError
from scheduler.work import Ran, answer_of

Lane = Literal["blocking", "compute"]


class Contender(Protocol):
    """How a contender is driven."""

    name: str

    def one(self, lane: Lane, task: Callable[[], Ran]) -> tuple[float, Ran]:
        """Run one task; return when it was submitted, and what it saw."""
        ...

    def many(self, numbers: Sequence[int]) -> list[int]:
        """Run `answer_of` on all numbers, each a task; return the answers."""
        ...

    def play(self, plan: Sequence[Any]) -> list[Ran | None]:
        """Submit each arrival of a plan at its time, and return what each saw; none if it did not run."""
        ...

    def close(self) -> None: ...


def _wait_until(at_s: float) -> None:
    left = at_s - time.perf_counter()
    if left > 0:
        time.sleep(left)


class Ours:
    """`aif_jax.Scheduler`: two lanes, deadlines passed on."""

    name = "Scheduler.submit"

    def __init__(self, blocking: int, compute: int) -> None:
        self._scheduler = Scheduler(blocking_threads=blocking, compute_threads=compute, queue_bound=100_000)

    def one(self, lane: Lane, task: Callable[[], Ran]) -> tuple[float, Ran]:
        submitted = time.perf_counter()
        return submitted, self._scheduler.submit(lane, task, name="one").result()

    def many(self, numbers: Sequence[int]) -> list[int]:
        submit = self._scheduler.submit
        return [future.result() for future in [submit("blocking", answer_of, n) for n in numbers]]

    def play(self, plan: Sequence[Any]) -> list[Ran | None]:
        begin = time.perf_counter()
        futures: list[Future[Ran] | None] = []
        for arrival in plan:
            _wait_until(begin + arrival.at_s)
            left_ms = 1e3 * (begin + arrival.at_s + arrival.deadline_s - time.perf_counter())
            try:
                future = self._scheduler.submit(
                    arrival.lane, arrival.task, deadline_ms=left_ms, name=arrival.kind
                )
            except OverloadedError:
                future = None
            futures.append(future)
        outcomes = [_outcome(future) for future in futures]
        return [ran and _since(begin, ran) for ran in outcomes]

    def close(self) -> None:
        self._scheduler.shutdown()


class OursHere(Ours):
    """`Scheduler.run`: the caller's thread in a seat of the lane."""

    name = "Scheduler.run"

    def one(self, lane: Lane, task: Callable[[], Ran]) -> tuple[float, Ran]:
        submitted = time.perf_counter()
        return submitted, self._scheduler.run(lane, task, name="one")

    def many(self, numbers: Sequence[int]) -> list[int]:
        return [self._scheduler.run("blocking", answer_of, n) for n in numbers]


class Executor:
    """`concurrent.futures.ThreadPoolExecutor`."""

    name = "ThreadPoolExecutor"

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)

    def one(self, lane: Lane, task: Callable[[], Ran]) -> tuple[float, Ran]:
        submitted = time.perf_counter()
        return submitted, self._pool.submit(task).result()

    def many(self, numbers: Sequence[int]) -> list[int]:
        submit = self._pool.submit
        return [future.result() for future in [submit(answer_of, n) for n in numbers]]

    def play(self, plan: Sequence[Any]) -> list[Ran | None]:
        begin = time.perf_counter()
        futures = []
        for arrival in plan:
            _wait_until(begin + arrival.at_s)
            futures.append(self._pool.submit(arrival.task))
        return [_since(begin, future.result()) for future in futures]

    def close(self) -> None:
        self._pool.shutdown()


class ToThread:
    """`asyncio.to_thread`, on a loop whose executor has as many threads as the others."""

    name = "asyncio.to_thread"

    def __init__(self, threads: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(threads)
        self._loop.set_default_executor(self._pool)

    def one(self, lane: Lane, task: Callable[[], Ran]) -> tuple[float, Ran]:
        async def one() -> tuple[float, Ran]:
            submitted = time.perf_counter()
            return submitted, await asyncio.to_thread(task)

        return self._loop.run_until_complete(one())

    def many(self, numbers: Sequence[int]) -> list[int]:
        async def many() -> list[int]:
            return list(await asyncio.gather(*[asyncio.to_thread(answer_of, n) for n in numbers]))

        return self._loop.run_until_complete(many())

    def play(self, plan: Sequence[Any]) -> list[Ran | None]:
        async def play() -> list[Ran]:
            begin = time.perf_counter()
            running = []
            for arrival in plan:
                left = begin + arrival.at_s - time.perf_counter()
                # Even without a wait, so that what was created before gets to its thread.
                await asyncio.sleep(max(0.0, left))
                running.append(asyncio.create_task(asyncio.to_thread(arrival.task)))
            return [_since(begin, ran) for ran in await asyncio.gather(*running)]

        return list(self._loop.run_until_complete(play()))

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def _outcome(future: Future[Ran] | None) -> Ran | None:
    if future is None:
        return None
    try:
        return future.result()
    except (DeadlineExceededError, OverloadedError):
        return None


def _since(begin: float, ran: Ran) -> Ran:
    return Ran(ran.start_s - begin, ran.end_s - begin, ran.answer)
