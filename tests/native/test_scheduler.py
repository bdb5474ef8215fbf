"""The scheduler: order, lanes, deadlines, cancellation, waiting inside tasks."""

import asyncio
import concurrent.futures
import contextvars
import gc
import math
import sys
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from aif_jax._native import Scheduler
from aif_jax.errors import ConfigError, DeadlineExceededError, OverloadedError, RequestError, SchedulerError
from aif_jax.futures import TaskFuture
from support.lanes import LANES, LONG_S, Occupied, conserved, until_queued
from support.waiting import eventually


@pytest.fixture
def scheduler():
    with Scheduler(blocking_threads=3, compute_threads=2, queue_bound=256, hang_ms=1e3 * LONG_S) as scheduler:
        yield scheduler


@pytest.fixture
def occupy(scheduler):
    made = []

    def occupy(lane, of=scheduler):
        made.append(Occupied(of, lane))
        return made[-1]

    yield occupy
    for occupied in made:
        occupied.release()


@pytest.mark.parametrize("lane", LANES)
def test_submit_result_and_exception_come_back(scheduler, lane):
    assert scheduler.submit(lane, divmod, 17, 5).result(LONG_S) == (3, 2)
    future = scheduler.submit(lane, divmod, 17, 0)
    with pytest.raises(ZeroDivisionError):
        future.result(LONG_S)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, TaskFuture)


def test_submit_traceback_leads_into_the_task(scheduler):
    def innermost():
        raise LookupError("the third shelf")

    def task():
        innermost()

    error = scheduler.submit("compute", task).exception(LONG_S)
    text = "".join(traceback.format_exception(error))
    assert "in task" in text
    assert "in innermost" in text
    assert 'raise LookupError("the third shelf")' in text


def test_submit_base_exception_reaches_result_and_worker_survives(scheduler):
    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        scheduler.submit("blocking", leave).result(LONG_S)
    assert scheduler.submit("blocking", int).result(LONG_S) == 0


def test_submit_context_variables_are_those_of_submitter(scheduler):
    variable = contextvars.ContextVar("variable", default="unset")

    def read_and_write():
        seen = variable.get()
        variable.set("changed by the task")
        return seen

    variable.set("first")
    first = scheduler.submit("compute", read_and_write)
    variable.set("second")
    second = scheduler.submit("compute", read_and_write)
    assert (first.result(LONG_S), second.result(LONG_S)) == ("first", "second")
    assert variable.get() == "second"


def test_scheduler_thread_locals_last_from_task_to_task():
    local = threading.local()

    def count():
        local.count = getattr(local, "count", 0) + 1
        return local.count, threading.get_ident()

    with Scheduler(compute_threads=1) as scheduler:
        results = [scheduler.submit("compute", count).result(LONG_S) for _ in range(3)]
    assert [count for count, _ in results] == [1, 2, 3]
    assert len({ident for _, ident in results}) == 1


def test_scheduler_earliest_deadline_starts_first(occupy):
    with Scheduler(compute_threads=1) as scheduler:
        occupied = occupy("compute", scheduler)
        order = []
        futures = [
            scheduler.submit("compute", order.append, deadline_ms, deadline_ms=deadline_ms)
            for deadline_ms in (None, 50_000, math.inf, 20_000, 40_000)
        ]
        occupied.release()
        concurrent.futures.wait(futures, LONG_S)
    assert order == [20_000, 40_000, 50_000, None, math.inf]


def test_submit_expired_task_is_dropped_with_reason(scheduler, occupy):
    occupied = occupy("compute")
    ran = []
    future = scheduler.submit("compute", ran.append, 1, deadline_ms=5, name="score")
    time.sleep(0.02)
    assert not future.done()
    occupied.release()
    with pytest.raises(
        DeadlineExceededError, match=r'"score" stood in the compute lane .* after its deadline'
    ):
        future.result(LONG_S)
    assert ran == []
    assert scheduler.stats()["compute"]["expired"] == 1


def test_submit_deadline_passing_while_worker_waits_for_gil_expires(scheduler):
    ran = []
    before = sys.getswitchinterval()
    # Threads that start ask for the GIL, and have it handed on: wait until all have.
    for lane, threads in (("blocking", 3), ("compute", 2)):
        met = threading.Barrier(threads)
        for future in [scheduler.submit(lane, met.wait, LONG_S) for _ in range(threads)]:
            future.result(LONG_S)
    assert eventually(lambda: scheduler.stats()["compute"]["run"]["count"] == 2)
    started = scheduler.stats()["compute"]
    sys.setswitchinterval(10.0)
    try:
        future = scheduler.submit("compute", ran.append, 1, deadline_ms=20)
        # Nobody else gets the GIL meanwhile, though the worker has taken the task long since.
        until = time.perf_counter() + 0.1
        while time.perf_counter() < until:
            pass
    finally:
        sys.setswitchinterval(before)
    assert isinstance(future.exception(LONG_S), DeadlineExceededError)
    assert ran == []
    stats = scheduler.stats()["compute"]
    assert stats["expired"] == 1
    assert stats["submitted"] - started["submitted"] == 1
    assert stats["run"]["count"] == started["run"]["count"]


@pytest.mark.parametrize("deadline_ms", [0, -1.5, -math.inf])
def test_submit_deadline_in_the_past_expires_at_once(scheduler, deadline_ms):
    future = scheduler.submit("compute", int, deadline_ms=deadline_ms)
    assert isinstance(future.exception(0), DeadlineExceededError)


@pytest.mark.parametrize("lane", LANES)
def test_cancel_queued_task_frees_its_place(scheduler, occupy, lane):
    occupied = occupy(lane)
    ran = []
    future = scheduler.submit(lane, ran.append, 1)
    assert scheduler.stats()[lane]["queued"] == 1
    assert future.cancel()
    assert scheduler.stats()[lane]["queued"] == 0, "its place is free before any thread gets to it"
    # It ends for `wait` and `as_completed`, too.
    assert concurrent.futures.wait([future], LONG_S).done == {future}
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(0)
    assert not occupied.futures[0].cancel(), "a running task is never interrupted"
    occupied.release()
    assert scheduler.submit(lane, int).result(LONG_S) == 0
    assert ran == []
    assert scheduler.stats()[lane]["cancelled"] == 1


def test_submit_full_queue_is_refused(occupy):
    with Scheduler(blocking_threads=1, queue_bound=3) as scheduler:
        occupied = occupy("blocking", scheduler)
        futures = [scheduler.submit("blocking", int) for _ in range(3)]
        with pytest.raises(OverloadedError, match="blocking lane already holds 3 queued tasks"):
            scheduler.submit("blocking", int)
        assert scheduler.submit("compute", int).result(LONG_S) == 0, "the other lane is open"
        futures[1].cancel()
        futures[1] = scheduler.submit("blocking", int)
        occupied.release()
        assert [future.result(LONG_S) for future in futures] == [0, 0, 0]
        assert scheduler.stats()["blocking"]["rejected"] == 1


@pytest.mark.parametrize("call", ["submit", "run"])
def test_submit_next_step_is_not_refused_by_full_queue(occupy, call):
    with Scheduler(blocking_threads=1, queue_bound=1) as scheduler, ThreadPoolExecutor(1) as caller:
        occupied = occupy("blocking", scheduler)
        waiting = scheduler.submit("blocking", int)
        step = caller.submit(getattr(scheduler, call), "blocking", pow, 2, 5, goes_on=True)
        assert until_queued(scheduler, "blocking", 2)
        with pytest.raises(OverloadedError):
            scheduler.submit("blocking", int)
        occupied.release()
        assert waiting.result(LONG_S) == 0
        result = step.result(LONG_S)
        assert (result if call == "run" else result.result(LONG_S)) == 32
        assert scheduler.stats()["blocking"]["rejected"] == 1


def test_submit_expired_tasks_make_room(occupy):
    with Scheduler(compute_threads=1, queue_bound=2) as scheduler:
        occupied = occupy("compute", scheduler)
        expiring = [scheduler.submit("compute", int, deadline_ms=1) for _ in range(2)]
        time.sleep(0.01)
        future = scheduler.submit("compute", int)
        assert [type(other.exception(0)) for other in expiring] == [DeadlineExceededError] * 2
        occupied.release()
        assert future.result(LONG_S) == 0


def test_submit_asyncio_can_await_and_cancel(scheduler, occupy):
    async def both():
        assert await asyncio.wrap_future(scheduler.submit("blocking", pow, 2, 10)) == 1024
        occupied = occupy("blocking")
        queued = scheduler.submit("blocking", int)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(queued), timeout=0.01)
        occupied.release()
        return queued

    assert asyncio.run(both()).cancelled()


def test_scheduler_busy_lane_does_not_starve_the_other(scheduler, occupy):
    occupy("blocking")
    assert scheduler.submit("compute", int).result(LONG_S) == 0


def test_submit_arguments_are_released_before_result(scheduler):
    class Big:
        pass

    big = Big()
    seen = weakref.ref(big)
    future = scheduler.submit("compute", lambda _: None, big)
    del big
    future.result(LONG_S)
    assert seen() is None


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("threads", [1, 2])
def test_wait_tasks_waiting_for_tasks_all_complete(lane, threads):
    with Scheduler(blocking_threads=threads, compute_threads=threads, queue_bound=10_000) as scheduler:

        def tree_sum(depth):
            if depth == 0:
                return 1
            halves = [scheduler.submit(lane, tree_sum, depth - 1) for _ in range(2)]
            return sum(scheduler.wait(half) for half in halves)

        assert scheduler.wait(scheduler.submit(lane, tree_sum, 6), 1e3 * LONG_S) == 2**6
        scheduler.shutdown()
        stats = scheduler.stats()[lane]
        assert stats["completed"] == stats["submitted"] == 2**7 - 1
        assert stats["wait"]["count"] <= 2**7 - 2


def test_wait_blocking_task_may_wait_for_compute_task(scheduler):
    def outer():
        return scheduler.wait(scheduler.submit("compute", pow, 3, 4))

    futures = [scheduler.submit("blocking", outer) for _ in range(50)]
    assert [future.result(LONG_S) for future in futures] == [81] * 50


@pytest.mark.parametrize("kind", ["blocking task", "foreign future", "other scheduler"])
def test_wait_compute_task_that_would_park_is_refused(scheduler, occupy, kind):
    with Scheduler() as other:
        busy = {
            "blocking task": lambda: occupy("blocking"),
            "foreign future": lambda: None,
            "other scheduler": lambda: occupy("compute", other),
        }[kind]()
        awaited = busy.futures[0] if busy else concurrent.futures.Future()
        with pytest.raises(SchedulerError, match="could only block it"):
            scheduler.submit("compute", scheduler.wait, awaited).result(LONG_S)
        if busy:
            busy.release()
        else:
            awaited.set_result(None)
        concurrent.futures.wait([awaited], LONG_S)
        assert scheduler.submit("compute", scheduler.wait, awaited).result(LONG_S) is None


def test_wait_blocking_task_may_wait_for_foreign_future(scheduler):
    foreign = concurrent.futures.Future()
    begun = threading.Event()

    def outer():
        begun.set()
        return scheduler.wait(foreign)

    future = scheduler.submit("blocking", outer)
    begun.wait(LONG_S)
    foreign.set_result("from elsewhere")
    assert future.result(LONG_S) == "from elsewhere"


def test_wait_passes_on_exceptions_and_cancellations(scheduler, occupy):
    def outer(inner):
        return scheduler.wait(inner)

    failing = scheduler.submit("compute", divmod, 1, 0)
    with pytest.raises(ZeroDivisionError):
        scheduler.submit("blocking", outer, failing).result(LONG_S)
    with pytest.raises(ZeroDivisionError):
        scheduler.wait(failing)
    occupy("compute")
    later = scheduler.submit("compute", int)
    waiting = scheduler.submit("blocking", outer, later)
    assert eventually(lambda: scheduler.stats()["blocking"]["running"])
    later.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result(LONG_S)


def test_wait_timeout_leaves_task_running(scheduler, occupy):
    busy = occupy("compute").futures[0]
    for wait in (
        lambda: scheduler.wait(busy, 5),
        lambda: scheduler.submit("blocking", scheduler.wait, busy, 5).result(LONG_S),
    ):
        with pytest.raises(DeadlineExceededError, match="the task continues"):
            wait()

    def times_out():
        raise TimeoutError("the task's own")

    with pytest.raises(TimeoutError, match="the task's own"):
        scheduler.wait(scheduler.submit("blocking", times_out), 1e3 * LONG_S)


def test_wait_task_waiting_for_itself_is_refused(scheduler):
    mine = []
    known = threading.Event()

    def task():
        known.wait(LONG_S)
        return scheduler.wait(mine[0])

    mine.append(scheduler.submit("compute", task))
    known.set()
    with pytest.raises(SchedulerError, match="would never end"):
        mine[0].result(LONG_S)


def test_cancel_task_found_expired_is_counted_once(scheduler):
    # The worker finds it expired, and waits for the GIL to say so; by then its caller has given up.
    before = sys.getswitchinterval()
    sys.setswitchinterval(LONG_S)
    try:
        futures = []
        for n in range(60):
            # From the time of a submission to that in which a worker wakes, so that some lie between.
            deadline_ms = 0.02 * (1 + n % 20)
            future = scheduler.submit("compute", time.sleep, 0.0, deadline_ms=deadline_ms, goes_on=True)
            waited = time.perf_counter() + 0.001
            while time.perf_counter() < waited:
                pass
            future.cancel()
            futures.append(future)
            time.sleep(0.0005)
    finally:
        sys.setswitchinterval(before)
    concurrent.futures.wait(futures, LONG_S)
    scheduler.shutdown()
    lane = scheduler.stats()["compute"]
    cancelled = sum(future.cancelled() for future in futures)
    assert cancelled > 0, "no worker was ever in between"
    assert (lane["cancelled"], lane["expired"]) == (cancelled, len(futures) - cancelled)


def test_submit_many_threads_end_every_task_once():
    threads, each = 8, 1250
    started = threading.Barrier(threads)
    counts = [0] * threads
    refused = [0] * threads
    futures = [[] for _ in range(threads)]

    def bump(thread):
        counts[thread] += 1

    with Scheduler(blocking_threads=1, compute_threads=1, queue_bound=512, hang_ms=1e3 * LONG_S) as scheduler:
        # One thread a lane and one lane a submitter, so that `bump` needs no lock of its own.
        def submit(thread):
            started.wait()
            for n in range(each):
                try:
                    deadline_ms = 2.0 if n % 5 == 0 else None
                    future = scheduler.submit(LANES[thread % 2], bump, thread, deadline_ms=deadline_ms)
                except OverloadedError:
                    refused[thread] += 1
                    continue
                futures[thread].append(future)
                if n % 7 == 0:
                    future.cancel()
                elif n % 101 == 0:
                    concurrent.futures.wait([future])

        workers = [threading.Thread(target=submit, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    stats = scheduler.stats()
    accepted = [future for mine in futures for future in mine]
    assert len(accepted) + sum(refused) == threads * each == 10_000
    assert sum(lane["submitted"] for lane in stats.values()) == len(accepted)
    assert sum(lane["rejected"] + lane["refused_late"] for lane in stats.values()) == sum(refused)
    assert all(future.done() for future in accepted)
    cancelled = sum(future.cancelled() for future in accepted)
    expired = sum(
        isinstance(future.exception(0), DeadlineExceededError)
        for future in accepted
        if not future.cancelled()
    )
    assert sum(lane["cancelled"] for lane in stats.values()) == cancelled
    assert sum(lane["expired"] for lane in stats.values()) == expired
    assert sum(lane["completed"] for lane in stats.values()) == sum(counts)
    assert sum(counts) == len(accepted) - cancelled - expired
    for lane in stats.values():
        assert conserved(lane)
        assert lane["run"]["count"] == lane["queue"]["count"] == lane["completed"]


def test_scheduler_stats_and_trace_agree(scheduler):
    scheduler.trace(True)
    before = time.perf_counter()
    for lane in LANES:
        scheduler.submit(lane, time.sleep, 0.01, name=f"nap in {lane}").result(LONG_S)
    after = time.perf_counter()
    scheduler.trace(False)
    spans = scheduler.take_trace()
    stats = scheduler.stats()
    scheduler.submit("compute", int).result(LONG_S)
    assert [(span["name"], span["lane"]) for span in spans] == [(f"nap in {lane}", lane) for lane in LANES]
    for span in spans:
        assert before * 1e6 <= span["queued_us"] <= span["start_us"] <= span["end_us"] - 1e4
        assert span["end_us"] <= after * 1e6
        assert span["thread"].startswith(f"aif-{span['lane']}-")
        run_times = stats[span["lane"]]["run"]
        assert run_times["max_us"] == pytest.approx(span["end_us"] - span["start_us"], abs=1.0)
        assert 0 < run_times["p50_us"] <= run_times["p99_us"] <= run_times["max_us"]
    assert scheduler.take_trace() == []


def test_trace_span_is_named_after_its_function(scheduler):
    scheduler.trace(True)
    for function in (divmod, test_trace_span_is_named_after_its_function, Occupied):
        scheduler.submit("compute", function, 1, 2).exception(LONG_S)
    names = [span["name"] for span in scheduler.take_trace()]
    assert sorted(names) == ["Occupied", "divmod", "test_trace_span_is_named_after_its_function"]


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_shutdown_runs_or_cancels_queued_tasks(cancel_futures):
    scheduler = Scheduler(blocking_threads=1)
    occupied = Occupied(scheduler, "blocking")
    futures = [scheduler.submit("blocking", int) for _ in range(5)]
    scheduler.shutdown(wait=False, cancel_futures=cancel_futures)
    with pytest.raises(SchedulerError, match="shut down"):
        scheduler.submit("compute", int)
    occupied.release()
    scheduler.shutdown()
    scheduler.shutdown()
    assert [future.cancelled() for future in futures] == [cancel_futures] * 5
    assert "shut down" in repr(scheduler)


def test_shutdown_waiting_inside_own_task_is_refused():
    scheduler = Scheduler()
    with pytest.raises(SchedulerError, match="cannot wait for the scheduler that runs it"):
        scheduler.submit("blocking", scheduler.shutdown).result(LONG_S)
    assert scheduler.submit("blocking", int).result(LONG_S) == 0
    scheduler.submit("blocking", scheduler.shutdown, False).result(LONG_S)
    scheduler.shutdown()


def test_scheduler_dropped_is_collected_and_finishes_its_work():
    scheduler = Scheduler(blocking_threads=1)
    occupied = Occupied(scheduler, "blocking")
    future = scheduler.submit("blocking", pow, 2, 5)
    gone = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert gone() is None
    occupied.release()
    assert future.result(LONG_S) == 32


def test_scheduler_impossible_arguments_are_refused(scheduler):
    with pytest.raises(ConfigError, match="blocking_threads is 0"):
        Scheduler(blocking_threads=0)
    with pytest.raises(ConfigError, match="queue_bound is 0"):
        Scheduler(queue_bound=0)
    with pytest.raises(ConfigError, match='no lane "gpu"'):
        scheduler.submit("gpu", int)
    with pytest.raises(TypeError, match="3 is not callable"):
        scheduler.submit("compute", 3)
    with pytest.raises(RequestError, match="deadline_ms is not a number"):
        scheduler.submit("compute", int, deadline_ms=math.nan)
    with pytest.raises(TypeError, match=r"concurrent\.futures\.Future"):
        scheduler.wait(3)
