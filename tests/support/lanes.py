"""Schedulers whose threads are held, and the account of their tasks."""

import threading
from typing import Any

from aif_jax._native import Scheduler
from support.waiting import eventually

LANES = ("blocking", "compute")
LONG_S = 60.0


class Occupied:
    """Threads of one lane, busy until `release`.

    Args:
        scheduler: the scheduler.
        lane: the lane.
        threads: number of its threads; ``None`` for all.
        name: name of the tasks that hold them.
    """

    def __init__(self, scheduler: Scheduler, lane: str, threads: int | None = None, name: str = ""):
        threads = scheduler.stats()[lane]["threads"] if threads is None else threads
        self._gate = threading.Event()
        begun = threading.Barrier(threads + 1)

        def hold() -> None:
            begun.wait(LONG_S)
            self._gate.wait(LONG_S)

        self.futures = [scheduler.submit(lane, hold, name=name) for _ in range(threads)]
        begun.wait(LONG_S)

    def release(self) -> None:
        """Let the threads go, and wait until their tasks are over."""
        self._gate.set()
        for future in self.futures:
            future.result(LONG_S)


def until_queued(scheduler: Scheduler, lane: str, tasks: int = 1) -> bool:
    """Wait until so many tasks of a lane are queued; return whether they were in time."""
    return eventually(lambda: scheduler.stats()[lane]["queued"] >= tasks, LONG_S)


def conserved(stats: dict[str, Any]) -> bool:
    """Return whether a lane is idle and each task that was submitted to it has ended once."""
    ends = ("completed", "failed", "cancelled", "expired", "shed", "panicked")
    idle = stats["queued"] == stats["running"] == 0
    return idle and stats["submitted"] == sum(stats[name] for name in ends)
