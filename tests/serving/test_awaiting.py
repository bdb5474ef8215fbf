"""Waiting in an event loop: limits, and what is left when the loop is closed meanwhile."""

import asyncio
import concurrent.futures
import gc
import time
import weakref
from typing import Any

import pytest

from aif_jax.serving.awaiting import TimeLimit, result_of


async def sleep_within(limit: float | None, seconds: float) -> str:
    async with TimeLimit(limit):
        await asyncio.sleep(seconds)
        return "done"


@pytest.mark.parametrize("limit", [None, 20.0])
def test_what_is_in_time_is_left_alone(limit: float | None) -> None:
    assert asyncio.run(sleep_within(limit, 0.001)) == "done"


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_what_is_late_is_given_up(limit: float) -> None:
    async def late() -> tuple[float, int]:
        began = time.perf_counter()
        with pytest.raises(TimeoutError):
            await sleep_within(limit, 20)
        task = asyncio.current_task()
        assert task is not None
        return time.perf_counter() - began, task.cancelling()

    seconds, cancelling = asyncio.run(late())
    assert limit <= seconds < 10
    assert cancelling == 0, "the task goes on as if nothing had been"


@pytest.mark.parametrize("limit", [None, 20.0])
def test_a_cancelled_caller_is_cancelled(limit: float | None) -> None:
    async def cancelled() -> bool:
        task = asyncio.ensure_future(sleep_within(limit, 20))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancelled())


def test_a_caller_cancelled_when_the_time_is_up_is_cancelled_all_the_same() -> None:
    async def both() -> bool:
        task: asyncio.Task[str] = asyncio.ensure_future(sleep_within(0.0, 20))
        await asyncio.sleep(0)
        # In the turn in which the limit cancels the task too.
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(both())


def test_a_task_that_is_about_to_go_on_ends_with_its_loop() -> None:
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
        loop.run_forever()  # one turn, in which the task is told
        loop.close()
        task = None
        assert there() is None
    finally:
        gc.enable()
