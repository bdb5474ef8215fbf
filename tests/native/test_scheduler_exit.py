"""The scheduler at the end of the interpreter and after a fork, each in an interpreter of its own."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import aif_jax

PACKAGE = Path(aif_jax.__file__).parent

WITHOUT_JAX = f"""
import sys, types
package = sys.modules["aif_jax"] = types.ModuleType("aif_jax")
package.__path__ = [{str(PACKAGE)!r}]
"""
"""The package without its `__init__`, which imports jax: of that the scheduler needs nothing."""


def run(code, *, timeout_s=60, fails_with=None):
    """Run `code` in a fresh interpreter, strict about warnings; return what it printed.

    It must end well, or with one traceback that ends with `fails_with`.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_JAX + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if fails_with is None:
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    else:
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.rstrip().endswith(fails_with)
    return done.stdout


def test_exit_with_tasks_in_flight_waits_for_running_ones():
    started = time.monotonic()
    said = run("""
        import time, threading
        from aif_jax._native import Scheduler

        scheduler = Scheduler(blocking_threads=2, compute_threads=2)
        begun = threading.Barrier(5)

        def long():
            begun.wait()
            time.sleep(0.3)
            print("ended", flush=True)

        for lane in ("blocking", "compute"):
            for _ in range(2):
                scheduler.submit(lane, long)
            for _ in range(100):
                scheduler.submit(lane, time.sleep, 60)
        begun.wait()
        """)
    # Counted, not split: a line and its end are two writes, which threads may interleave.
    assert said.count("ended") == 4, "running tasks are waited for, queued ones dropped"
    assert time.monotonic() - started < 30


def test_exit_with_dropped_scheduler_waits_for_its_task():
    said = run("""
        import threading, time
        from aif_jax._native import Scheduler

        begun = threading.Event()

        def long():
            begun.set()
            time.sleep(0.3)
            print("ended", flush=True)

        Scheduler().submit("compute", long)
        begun.wait()
        """)
    assert said == "ended\n"


def test_fork_child_is_told_to_make_its_own_scheduler():
    said = run("""
        import os, sys
        from aif_jax._native import Scheduler
        from aif_jax.errors import SchedulerError

        scheduler = Scheduler()
        assert scheduler.submit("compute", int).result() == 0
        child = os.fork()
        if child == 0:
            for use in (lambda: scheduler.submit("compute", int), scheduler.stats, scheduler.shutdown):
                try:
                    use()
                except SchedulerError as error:
                    print(error, flush=True)
            with Scheduler() as own:
                print(own.submit("compute", pow, 2, 3).result(), flush=True)
            del scheduler
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(scheduler.submit("compute", int).result())
        """)
    lines = said.splitlines()
    assert len(lines) == 5
    assert all("forked" in line and "make a new Scheduler" in line for line in lines[:3])
    assert lines[3:] == ["8", "0"]


def test_exit_by_exception_waits_for_running_tasks():
    said = run(
        """
        import threading, time
        from aif_jax._native import Scheduler

        scheduler = Scheduler(blocking_threads=1)
        begun = threading.Event()

        def long():
            begun.set()
            time.sleep(0.3)
            print("ended", flush=True)

        scheduler.submit("blocking", long)
        queued = [scheduler.submit("blocking", time.sleep, 60) for _ in range(50)]
        begun.wait()
        raise LookupError("the main thread is done")
        """,
        fails_with="LookupError: the main thread is done",
    )
    assert said == "ended\n"


def test_exit_with_guest_and_waiting_threads_ends():
    said = run("""
        import threading, time
        from aif_jax._native import Scheduler
        from aif_jax.errors import SchedulerError

        scheduler = Scheduler(compute_threads=1)
        begun = threading.Event()

        def long():
            begun.set()
            time.sleep(0.3)
            print("ended", flush=True)

        def wait():
            try:
                scheduler.run("compute", time.sleep, 60)
            except SchedulerError as error:
                print("told", flush=True)

        # Daemons, so that nothing but the scheduler waits for them.
        threading.Thread(target=scheduler.run, args=("compute", long), daemon=True).start()
        begun.wait()
        for _ in range(3):
            threading.Thread(target=wait, daemon=True).start()
        while scheduler.stats()["compute"]["queued"] < 3:
            time.sleep(0.001)
        """)
    assert said.count("ended") == 1


def test_fork_in_guest_thread_lets_parent_and_child_continue():
    said = run("""
        import os, threading
        from aif_jax._native import Scheduler
        from aif_jax.errors import SchedulerError

        scheduler = Scheduler(compute_threads=1)
        # Until its thread sleeps it has no seat to lend, and `fork` would run there.
        settling = 1
        while scheduler.run("compute", threading.get_ident) != threading.get_ident():
            settling += 1
        child = scheduler.run("compute", os.fork)
        if child == 0:
            try:
                scheduler.run("compute", int)
            except SchedulerError as error:
                print("forked" in str(error), flush=True)
            with Scheduler() as own:
                print(own.run("compute", pow, 2, 3), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert scheduler.run("compute", pow, 2, 4) == 16
        stats = scheduler.stats()["compute"]
        assert stats["submitted"] == stats["completed"] == settling + 2, stats
        """)
    assert said == "True\n8\n"
