"""Waiting in an event loop for threads: limits, cancellation, and loops that close meanwhile."""

import asyncio
import concurrent.futures
import gc
import threading
import time
import weakref
from typing import Any

import pytest

from aif_jax.aio import TimeLimit, Waiter, result_of
from aif_jax.errors import SchedulerError


async def sleep_within(limit: float | None, seconds: float) -> str:
    async with TimeLimit(limit):
        await asyncio.sleep(seconds)
        return "done"


@pytest.mark.parametrize("limit", [None, 20.0])
def test_time_limit_in_time_returns_result(limit: float | None) -> None:
    assert asyncio.run(sleep_within(limit, 0.001)) == "done"


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_time_limit_late_raises_timeout_and_leaves_task_uncancelled(limit: float) -> None:
    async def late() -> tuple[float, int]:
        began = time.perf_counter()
        with pytest.raises(TimeoutError):
            await sleep_within(limit, 20)
        task = asyncio.current_task()
        assert task is not None
        return time.perf_counter() - began, task.cancelling()

    seconds, cancelling = asyncio.run(late())
    assert limit <= seconds < 10
    assert cancelling == 0, "the task continues as if it had not been cancelled"


@pytest.mark.parametrize("limit", [None, 20.0])
def test_time_limit_cancelled_caller_is_cancelled(limit: float | None) -> None:
    async def cancelled() -> bool:
        task = asyncio.ensure_future(sleep_within(limit, 20))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancelled())


def test_time_limit_cancelled_as_it_passes_stays_cancelled() -> None:
    async def both() -> bool:
        task: asyncio.Task[str] = asyncio.ensure_future(sleep_within(0.0, 20))
        await asyncio.sleep(0)
        # In the turn in which the limit cancels the task too.
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(both())


def test_result_of_closed_loop_frees_its_task_at_once() -> None:
    """Not by the garbage collector: it may begin at the inner coroutine, at which CPython 3.11 crashes."""
    done: concurrent.futures.Future[int] = concurrent.futures.Future()

    async def inner() -> int:
        async with TimeLimit(20):
            return await result_of(done)

    async def outer() -> int:
        return await inner()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    task: asyncio.Task[int] | None = loop.create_task(outer())
    loop.run_until_complete(asyncio.sleep(0))
    there: weakref.ref[Any] = weakref.ref(task)
    gc.collect()
    gc.disable()
    try:
        done.set_result(1)
        loop.stop()
        loop.run_forever()  # one turn, in which the task is woken
        loop.close()
        task = None
        assert there() is None
    finally:
        gc.enable()


Pool = concurrent.futures.ThreadPoolExecutor


both_ways = pytest.mark.parametrize("woken_by", ["future", "thread"])
"""By `result_of`, when the thread has resolved its future; by a `Waiter`, when the function has returned."""


def begun(pool: Pool, woken_by: str, function: Any, *arguments: Any) -> tuple[Any, Any]:
    """Give a function to a thread; return its future and the awaitable of its result."""
    if woken_by == "future":
        task = pool.submit(function, *arguments)
        return task, result_of(task)
    waiter = Waiter()
    task = pool.submit(waiter.run, function, *arguments)
    return task, waiter.of(task)


def waited(function: Any, *, late: bool, woken_by: str) -> Any:
    """Return what a coroutine gets of a thread's function, done before it waits, or while it does."""

    async def wait(pool: Pool) -> Any:
        gate = threading.Event()

        def call() -> Any:
            assert gate.wait(20)
            return function()

        task, awaitable = begun(pool, woken_by, call)
        if late:
            asyncio.get_running_loop().call_later(0.01, gate.set)
        else:
            gate.set()
            concurrent.futures.wait([task])
        return await awaitable

    with Pool(1) as pool:
        return asyncio.run(wait(pool))


@both_ways
@pytest.mark.parametrize("late", [False, True])
def test_awaitable_of_a_thread_returns_result_or_raises_error(late: bool, woken_by: str) -> None:
    assert waited(lambda: 7, late=late, woken_by=woken_by) == 7

    def broken() -> None:
        raise KeyError("shard 7")

    with pytest.raises(KeyError, match="shard 7"):
        waited(broken, late=late, woken_by=woken_by)


def test_waiter_wakes_before_the_future_is_done() -> None:
    async def wait(pool: Pool) -> tuple[Any, bool]:
        waiter, woken = Waiter(), threading.Event()

        def run() -> int:
            result: int = waiter.run(lambda: 7)
            assert woken.wait(20), "the coroutine continues before this function returns"
            return result

        task = pool.submit(run)
        result = await waiter.of(task)
        done = task.done()
        woken.set()
        return result, done

    with Pool(1) as pool:
        assert asyncio.run(wait(pool)) == (7, False)


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.01])
def test_result_of_timeout_leaves_future_alone(timeout_s: float) -> None:
    async def wait() -> int:
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        with pytest.raises(TimeoutError):
            await result_of(future, timeout_s)
        assert not future.cancelled()
        future.set_result(7)
        return await result_of(future, timeout_s)

    assert asyncio.run(wait()) == 7


def test_result_of_cancelled_caller_cancels_future() -> None:
    async def wait() -> tuple[bool, bool]:
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        task = asyncio.ensure_future(result_of(future))
        await asyncio.sleep(0)
        task.cancel("no longer wanted")
        await asyncio.wait([task])
        return task.cancelled(), future.cancelled()

    assert asyncio.run(wait()) == (True, True)


def test_result_of_future_cancelled_elsewhere_raises_scheduler_error() -> None:
    async def wait(before: bool) -> None:
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        if before:
            future.cancel()
        else:
            asyncio.get_running_loop().call_later(0.01, future.cancel)
        await result_of(future)

    for before in (True, False):
        with pytest.raises(SchedulerError, match="shut down"):
            asyncio.run(wait(before))


def test_awaitable_of_closed_loop_does_not_disturb_the_thread() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    task = loop.create_task(result_of(future))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    future.set_result(1)
    assert not task.done()
    task = None  # type: ignore[assignment]
    gc.collect()


@both_ways
def test_awaitable_many_waiters_and_cancellations_lose_no_result(woken_by: str) -> None:
    gate = threading.Event()

    def call(number: int) -> int:
        assert gate.wait(20)
        return number

    async def one(pool: Pool, number: int) -> int:
        got: int = await begun(pool, woken_by, call, number)[1]
        return got

    async def all_of_them(pool: Pool) -> tuple[int, int]:
        tasks = [asyncio.ensure_future(one(pool, number)) for number in range(2_000)]
        for number in range(0, 2_000, 7):
            await asyncio.sleep(0)
            if number == 1_001:
                gate.set()
            tasks[number].cancel()
        await asyncio.wait(tasks)
        cancelled = sum(task.cancelled() for task in tasks)
        for number, task in enumerate(tasks):
            assert task.cancelled() or task.result() == number
        return cancelled, len(tasks)

    with Pool(4) as pool:
        cancelled, made = asyncio.run(all_of_them(pool))
    assert 100 < cancelled <= -(-made // 7)
