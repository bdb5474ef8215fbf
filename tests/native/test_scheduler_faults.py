"""The scheduler under faults of its callers: closed loops, cancellation storms, interrupts."""

import asyncio
import concurrent.futures
import contextlib
import logging
import signal
import threading
import time

import pytest

from aif_jax._native import Scheduler
from aif_jax.errors import DeadlineExceededError, OverloadedError, SchedulerError
from support.lanes import LONG_S, conserved, until_queued
from support.waiting import eventually


@pytest.mark.parametrize("abandon", ["cancelled", "forgotten"])
def test_event_loop_closed_midway_leaves_tasks_running(abandon, caplog):
    gate, begun = threading.Event(), threading.Semaphore(0)

    def task(n):
        begun.release()
        gate.wait(LONG_S)
        return n

    with Scheduler(blocking_threads=2) as scheduler:
        loop = asyncio.new_event_loop()
        futures = [scheduler.submit("blocking", task, n) for n in range(6)]

        async def await_all():
            await asyncio.gather(*[asyncio.wrap_future(future) for future in futures])

        waiting = loop.create_task(await_all())
        loop.run_until_complete(asyncio.sleep(0.01))
        for _ in range(2):
            assert begun.acquire(timeout=LONG_S)
        if abandon == "cancelled":
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(waiting)
        else:
            # Private, for asyncio has no switch: the abandoned task would complain when it is collected.
            setattr(waiting, "_log_destroy_pending", False)  # noqa: B010
        loop.close()
        with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
            gate.set()
            concurrent.futures.wait(futures, LONG_S)
        ended = [None if future.cancelled() else future.result(0) for future in futures]
        expected = [0, 1, None, None, None, None] if abandon == "cancelled" else [0, 1, 2, 3, 4, 5]
        assert ended == expected
        assert scheduler.submit("blocking", pow, 2, 5).result(LONG_S) == 32
    assert conserved(scheduler.stats()["blocking"])


def test_run_in_other_threads_can_be_awaited():
    async def many(scheduler):
        calls = [asyncio.to_thread(scheduler.run, "compute", pow, n, 2) for n in range(50)]
        return await asyncio.gather(*calls)

    with Scheduler(compute_threads=2) as scheduler:
        assert asyncio.run(many(scheduler)) == [n * n for n in range(50)]
        assert conserved(scheduler.stats()["compute"])


def test_cancel_storms_lose_no_task():
    threads, each = 4, 500
    ran = []

    with Scheduler(
        blocking_threads=2, compute_threads=2, queue_bound=10_000, hang_ms=1e3 * LONG_S
    ) as scheduler:
        futures = [[] for _ in range(threads)]

        def storm(thread):
            lane = ("blocking", "compute")[thread % 2]
            for n in range(each):
                futures[thread].append(scheduler.submit(lane, ran.append, (thread, n)))
                if n % 20 == 19:
                    # All of one's own and of the others', begun, ended, or cancelled already.
                    for future in [future for mine in futures for future in list(mine)]:
                        future.cancel()

        stormers = [threading.Thread(target=storm, args=(thread,)) for thread in range(threads)]
        for stormer in stormers:
            stormer.start()
        for stormer in stormers:
            stormer.join(LONG_S)
        everyone = [future for mine in futures for future in mine]
        assert not concurrent.futures.wait(everyone, LONG_S).not_done
    cancelled = sum(future.cancelled() for future in everyone)
    lanes = scheduler.stats().values()
    assert len(ran) == len(set(ran)) == threads * each - cancelled
    assert sum(lane["cancelled"] for lane in lanes) == cancelled > 0
    assert all(conserved(lane) for lane in lanes)


def test_submit_millisecond_deadlines_end_in_result_or_error():
    ends = {"ran": 0, "expired": 0, "refused": 0}

    with Scheduler(compute_threads=1, queue_bound=64, hang_ms=1e3 * LONG_S) as scheduler:
        futures = []
        for _ in range(2000):
            time.sleep(0.0001)
            try:
                futures.append(
                    scheduler.submit("compute", time.sleep, 0.0005, deadline_ms=1, name="half a millisecond")
                )
            except OverloadedError:
                ends["refused"] += 1
        for future in futures:
            try:
                future.result(LONG_S)
                ends["ran"] += 1
            except DeadlineExceededError:
                ends["expired"] += 1
        stats = scheduler.stats()["compute"]
    assert sum(ends.values()) == 2000
    assert (stats["completed"], stats["expired"]) == (ends["ran"], ends["expired"])
    assert stats["rejected"] + stats["refused_late"] == ends["refused"]
    assert ends["ran"] > 0
    assert conserved(stats)


@pytest.fixture
def interruptible():
    """Have Ctrl-C raise, also where a shell started the tests in the background, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_run_interrupted_while_waiting_takes_task_back():
    gate, begun = threading.Event(), threading.Event()

    def hold():
        begun.set()
        gate.wait(LONG_S)

    with Scheduler(compute_threads=1) as scheduler:
        held = scheduler.submit("compute", hold)
        assert begun.wait(LONG_S)
        ran = []

        def interrupt():
            assert until_queued(scheduler, "compute")
            signal.raise_signal(signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            scheduler.run("compute", ran.append, 1)
        gate.set()
        held.result(LONG_S)
        assert scheduler.submit("compute", len, ran).result(LONG_S) == 0
        stats = scheduler.stats()["compute"]
    assert stats["cancelled"] == 1
    assert conserved(stats)


def test_done_callback_that_raises_or_submits_leaves_worker_alive(caplog):
    with Scheduler(compute_threads=1) as scheduler:
        later = []

        def again(future):
            later.append(scheduler.submit("compute", pow, future.result(0), 2))

        def raises(_future):
            raise LookupError("the callback's own")

        future = scheduler.submit("compute", time.sleep, 0.02)
        future.add_done_callback(raises)
        other = scheduler.submit("compute", pow, 3, 1)
        other.add_done_callback(again)
        other.result(LONG_S)
        assert eventually(lambda: later)
        assert later[0].result(LONG_S) == 9
    assert "the callback's own" in caplog.text


def test_shutdown_while_many_submit_reaches_each_of_them():
    for cancel_futures in (False, True):
        scheduler = Scheduler(blocking_threads=2, compute_threads=2, queue_bound=10_000, hang_ms=1e3 * LONG_S)
        accepted, messages = [], []

        def submit_for_ever(scheduler=scheduler, accepted=accepted):
            while True:
                with contextlib.suppress(OverloadedError):
                    accepted.append(scheduler.submit("compute", int))
                    scheduler.run("blocking", int)

        def submit(submit_for_ever=submit_for_ever, messages=messages):
            with pytest.raises(SchedulerError) as raised:
                submit_for_ever()
            messages.append(str(raised.value))

        submitters = [threading.Thread(target=submit) for _ in range(4)]
        for submitter in submitters:
            submitter.start()
        time.sleep(0.05)
        scheduler.shutdown(cancel_futures=cancel_futures)
        for submitter in submitters:
            submitter.join(LONG_S)
        assert len(messages) == 4
        assert all("shut down" in error for error in messages)
        assert all(future.cancelled() or future.result(0) == 0 for future in accepted)
        assert all(conserved(lane) for lane in scheduler.stats().values())
