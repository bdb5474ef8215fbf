"""`Scheduler.run`: work in the caller's thread, in a seat of the lane."""

import contextvars
import threading
import time
import traceback

import pytest

from aif_jax._native import Scheduler
from aif_jax.errors import ConfigError, DeadlineExceededError, OverloadedError, RequestError, SchedulerError
from support.lanes import LANES, LONG_S, Occupied, conserved, until_queued
from support.waiting import eventually


@pytest.fixture
def scheduler():
    with Scheduler(blocking_threads=2, compute_threads=1, queue_bound=256, hang_ms=1e3 * LONG_S) as scheduler:
        settle(scheduler)
        yield scheduler


def settle(scheduler):
    """Wait until the threads sleep: until then they have no seat to lend."""
    for lane in LANES:
        assert eventually(lambda: scheduler.run(lane, threading.get_ident) == threading.get_ident())  # noqa: B023


@pytest.mark.parametrize("lane", LANES)
def test_run_with_free_seat_uses_callers_thread(scheduler, lane):
    before = scheduler.stats()[lane]
    scheduler.trace(True)
    assert scheduler.run(lane, threading.get_ident, name="here") == threading.get_ident()
    (span,) = scheduler.take_trace()
    assert span["name"] == "here"
    assert span["thread"].startswith(f"aif-{lane}-")
    assert span["thread"].endswith("-guest")
    after = scheduler.stats()[lane]
    assert conserved(after)
    assert after["completed"] == before["completed"] + 1
    assert after["names"]["here"]["runs"] == 1


@pytest.mark.parametrize("full", [False, True])
def test_run_on_either_thread_has_same_result_error_and_context(scheduler, full):
    variable = contextvars.ContextVar("variable", default="unset")

    def task(divisor):
        seen = variable.get()
        variable.set("changed by the task")
        return seen, 12 // divisor, threading.get_ident()

    variable.set("the caller's")
    answers = []

    def ask():
        answers.append(scheduler.run("compute", task, 4))
        with pytest.raises(ZeroDivisionError) as raised:
            scheduler.run("compute", task, 0)
        answers.append("".join(traceback.format_exception(raised.value)))
        with pytest.raises(SystemExit):
            scheduler.run("compute", leave)

    def leave():
        raise SystemExit(3)

    if full:
        held = Occupied(scheduler, "compute", 1)
        context = contextvars.copy_context()
        caller = threading.Thread(target=context.run, args=(ask,))
        caller.start()
        assert until_queued(scheduler, "compute")
        held.release()
        caller.join(LONG_S)
        assert answers[0][2] != caller.ident
    else:
        ask()
        assert answers[0][2] == threading.get_ident()
    assert answers[0][:2] == ("the caller's", 3)
    assert "in task" in answers[1]
    assert variable.get() == "the caller's"
    stats = scheduler.stats()["compute"]
    assert stats["failed"] == 2
    assert conserved(stats)


def test_run_callers_and_tasks_never_exceed_threads():
    running, most, lock = [0], [0], threading.Lock()

    def work(n):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.0002)
        with lock:
            running[0] -= 1
        return n, threading.get_ident()

    here = []
    with Scheduler(blocking_threads=2, queue_bound=4096, hang_ms=1e3 * LONG_S) as scheduler:
        futures = []

        def call(caller):
            for n in range(100):
                if caller % 2:
                    futures.append((n, scheduler.submit("blocking", work, n)))
                    time.sleep(0.001)
                else:
                    answer, _ = scheduler.run("blocking", work, n)
                    here.append(answer == n)

        callers = [threading.Thread(target=call, args=(caller,)) for caller in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(LONG_S)
        assert all(future.result(LONG_S)[0] == n for n, future in futures)
        stats = scheduler.stats()["blocking"]
    assert most[0] <= 2
    assert here == [True] * 300
    assert stats["completed"] == 600
    assert conserved(stats)


def test_run_nested_never_deadlocks(scheduler):
    def depth(lane, levels):
        if levels == 0:
            return 0
        other = scheduler.submit(lane, depth, lane, levels - 1)
        return 1 + scheduler.run(lane, depth, lane, levels - 1) + scheduler.wait(other)

    for lane in LANES:
        assert scheduler.run(lane, depth, lane, 6) == 2**6 - 1
        assert scheduler.submit(lane, depth, lane, 6).result(LONG_S) == 2**6 - 1

    def blocking():
        return scheduler.run("compute", depth, "compute", 4)

    futures = [scheduler.submit("blocking", blocking) for _ in range(20)]
    assert [future.result(LONG_S) for future in futures] == [2**4 - 1] * 20
    with pytest.raises(SchedulerError, match="its own lane only"):
        scheduler.run("compute", scheduler.run, "blocking", int)


def test_run_deadline_ends_wait_for_a_seat(scheduler):
    with pytest.raises(DeadlineExceededError, match='"late"'):
        scheduler.run("compute", int, deadline_ms=0, name="late")
    held = Occupied(scheduler, "compute", 1)
    ran = []
    started = time.perf_counter()
    with pytest.raises(DeadlineExceededError, match='"queued" stood in the compute lane'):
        scheduler.run("compute", ran.append, 1, deadline_ms=20, name="queued")
    assert 0.02 <= time.perf_counter() - started < LONG_S / 2
    held.release()
    assert scheduler.submit("compute", int).result(LONG_S) == 0
    assert ran == []
    stats = scheduler.stats()["compute"]
    assert (stats["expired"], stats["queued"]) == (2, 0)


@pytest.mark.parametrize("lane", LANES)
def test_idle_threads_counts_threads_without_work(scheduler, lane):
    threads = 2 if lane == "blocking" else 1

    def all_idle():
        # A thread that has just started, or has just done something, is on its way.
        assert eventually(lambda: scheduler.idle_threads(lane) >= threads)
        return scheduler.idle_threads(lane) == threads

    assert all_idle()
    held = Occupied(scheduler, lane, 1)
    assert scheduler.idle_threads(lane) == threads - 1
    held.release()
    settle(scheduler)
    assert all_idle()
    assert scheduler.run(lane, scheduler.idle_threads, lane) == threads - 1, "its seat is lent"
    with pytest.raises(ConfigError, match="lane"):
        scheduler.idle_threads("drying")


def test_run_predicted_too_late_is_refused(scheduler):
    for _ in range(8):
        scheduler.run("compute", time.sleep, 0.02, name="nap")
    settle(scheduler)
    assert 20 <= scheduler.predict_ms("compute", "nap") < 1000
    assert scheduler.predict_ms("compute", "never seen") == 0
    for call in (scheduler.run, scheduler.submit):
        with pytest.raises(OverloadedError, match=r'"nap" would end in .* its deadline allows'):
            call("compute", time.sleep, 0.02, deadline_ms=5, name="nap")
    held = Occupied(scheduler, "compute", 1)
    queued = [scheduler.submit("compute", time.sleep, 0.02, name="nap") for _ in range(10)]
    assert scheduler.predict_ms("compute", "nap") >= 220
    assert scheduler.predict_ms("compute", "never seen") >= 200
    assert scheduler.predict_ms("compute", "nap", deadline_ms=1e4) < 220, "it would go first"
    held.release()
    for future in queued:
        future.result(LONG_S)
    stats = scheduler.stats()["compute"]
    assert stats["refused_late"] == stats["names"]["nap"]["refused_late"] == 2
    assert stats["names"]["nap"]["mean_us"] >= 20_000
    with Scheduler(admission=False) as lenient:
        for _ in range(8):
            lenient.run("compute", time.sleep, 0.02, name="nap")
        lenient.run("compute", time.sleep, 0.02, deadline_ms=5, name="nap")
        assert lenient.stats()["compute"]["overrun"] == 1


def test_run_hanging_calls_open_circuit_of_their_name():
    with Scheduler(blocking_threads=4, hang_ms=20, hang_share=0.5) as scheduler:
        held = [Occupied(scheduler, "blocking", 1, "stuck") for _ in range(2)]
        time.sleep(0.04)
        for call in (scheduler.submit, scheduler.run):
            with pytest.raises(
                OverloadedError, match='circuit of "stuck" in the blocking lane has been open'
            ):
                call("blocking", int, name="stuck")
        name = scheduler.stats()["blocking"]["names"]["stuck"]
        assert (name["circuit"], name["running"], name["refused_open"]) == ("open", 2, 2)
        assert scheduler.run("blocking", int, name="other") == 0
        for one in held:
            one.release()
        # A future has its result a moment before its task stops counting.
        assert eventually(lambda: scheduler.stats()["blocking"]["names"]["stuck"]["running"] == 0)
        assert scheduler.run("blocking", int, name="stuck") == 0
        assert scheduler.stats()["blocking"]["names"]["stuck"]["circuit"] == "closed"
        assert scheduler.stats()["blocking"]["refused_open"] == 2


def test_shutdown_waits_for_guests_and_refuses_later_runs(scheduler):
    begun, gate = threading.Event(), threading.Event()
    order = []

    def work():
        begun.set()
        gate.wait(LONG_S)
        order.append("the guest is done")

    guest = threading.Thread(target=scheduler.run, args=("compute", work))
    guest.start()
    begun.wait(LONG_S)
    scheduler.shutdown(wait=False)
    threading.Timer(0.05, gate.set).start()
    scheduler.shutdown()
    order.append("the threads are gone")
    guest.join(LONG_S)
    assert order == ["the guest is done", "the threads are gone"]
    with pytest.raises(SchedulerError, match="shut down"):
        scheduler.run("compute", int)


def test_shutdown_cancelling_queue_reaches_callers_waiting_in_run():
    scheduler = Scheduler(compute_threads=1)
    held = Occupied(scheduler, "compute", 1)
    said = []

    def call():
        with pytest.raises(SchedulerError, match='while task "waiting" waited for a thread') as raised:
            scheduler.run("compute", int, name="waiting")
        said.append(raised.value)

    caller = threading.Thread(target=call)
    caller.start()
    assert until_queued(scheduler, "compute")
    scheduler.shutdown(wait=False, cancel_futures=True)
    caller.join(LONG_S)
    held.release()
    scheduler.shutdown()
    assert len(said) == 1


def test_run_impossible_arguments_are_refused(scheduler):
    with pytest.raises(TypeError, match=r"run\(\) takes a lane, .* 3 is not callable"):
        scheduler.run("compute", 3)
    with pytest.raises(RequestError, match="deadline_ms is not a number"):
        scheduler.run("compute", int, deadline_ms=float("nan"))
    with pytest.raises(RequestError, match="hang_ms is not a number"):
        Scheduler(hang_ms=float("nan"))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="hang_share is"):
            Scheduler(hang_share=share)
    with pytest.raises(ValueError, match="hang_ms is 0"):
        Scheduler(hang_ms=-1)
