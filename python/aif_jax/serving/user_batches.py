"""Which user sides are computed together, in one call of the user program.

Those of a `UserGroup` wait for each other. Others do not wait for company: where more are there than threads,
the one whose turn comes takes others along, and one that finds a thread is computed alone.
"""

import dataclasses
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from aif_jax.serving.ladder import Ladder
from aif_jax.serving.single_flight import Flight
from aif_jax.types import UserRecord

if TYPE_CHECKING:
    from aif_jax.serving.pending import Pending


@dataclasses.dataclass(slots=True, eq=False)
class UserWork:
    """A user side whose record is there and whose state is not.

    Attributes:
        pending: the request.
        record: of its user.
        length: the long bucket.
        unknown: whether the source did not know the user.
        times: when the fetch began and ended, on the clock of ``time.perf_counter``.
        moment: `UserStates.moment` before the record was fetched.
        flight: whoever else waits for the state.
        submitted_s: when it was handed to the compute lane.
    """

    pending: "Pending"
    record: UserRecord
    length: int
    unknown: bool
    times: tuple[float, float]
    moment: int
    flight: Flight | None = None
    submitted_s: float = 0.0


class UserGroup:
    """Requests whose programs start together, when all of their records are there or never will be.

    Safe to use from any thread.

    Args:
        members: how many requests it is of.
        start: starts the programs, given the user sides that need one; called once, if there are any.
    """

    def __init__(self, members: int, start: Callable[[list[UserWork]], None]):
        self._start = start
        self._works: list[UserWork] = []
        self._awaited = members
        self._fetching: set[Pending] = set()
        self._lock = threading.Lock()

    def fetches(self, pending: "Pending", task: "Future[Any]") -> None:
        """Wait for the task that fetches the record of a member."""
        self._fetching.add(pending)
        task.add_done_callback(lambda _: self._one_less())

    def left(self, pending: "Pending | None" = None) -> None:
        """Do not wait for a member, unless for the task that fetches its record: it ended, or never began."""
        if pending not in self._fetching:
            self._one_less()

    def add(self, work: UserWork) -> bool:
        """Take a user side in; return whether that was in time, before the programs were started."""
        with self._lock:
            if self._awaited <= 0:
                return False
            self._works.append(work)
            return True

    def _one_less(self) -> None:
        with self._lock:
            self._awaited -= 1
            last = not self._awaited
        if last and self._works:
            self._start(self._works)


class UserBatches:
    """Finds user sides that may be computed in one call. Safe to use from any thread.

    Args:
        sizes: users that the user program is compiled for, from 1 on, ascending.
    """

    def __init__(self, sizes: Sequence[int]):
        self._sizes = tuple(reversed(sizes[1:]))
        self._waiting: dict[int, dict[UserWork, Future[Any]]] = defaultdict(dict)
        self._lock = threading.Lock()

    def wait(self, work: UserWork, task: "Future[Any]") -> None:
        """Let others take a user side along until its own task starts."""
        if not self._sizes or not work.pending.batched:
            return
        with self._lock:
            self._waiting[work.length][work] = task
        # Called at once if the task is over by now.
        task.add_done_callback(lambda _: self._leave(work))

    def starts(self, work: UserWork) -> None:
        """Say that a user side's own task runs: nobody else takes it along any more."""
        self._leave(work)

    def taken_along(self, work: UserWork, ladder: Ladder) -> list[UserWork]:
        """Return user sides that are the caller's to compute together with one that has started.

        As many as make the largest batch that is full and predicted to be in time for all of them; fewer only
        if some of these start by themselves at this moment. The tasks of those returned will not run.
        """
        if not self._sizes or not work.pending.batched:
            return []
        for size in self._sizes:
            if not _fits(work, size, ladder):
                # Or its time would never be measured again.
                ladder.times.refused(ladder.user_key(work.length, size))
                continue
            with self._lock:
                waiting = self._waiting[work.length]
                fitting = [other for other in waiting if _fits(other, size, ladder)][: size - 1]
                if len(fitting) + 1 < size:
                    continue
                # Off the list first: a future that was cancelled once can be cancelled again.
                claimed = [(other, waiting.pop(other)) for other in fitting]
            return [other for other, task in claimed if _took(other, task)]
        return []

    def parts(self, works: Sequence[UserWork]) -> list[Sequence[UserWork]]:
        """Part user sides into calls of the user program: full ones, or more than half full, or of one."""
        parts: list[Sequence[UserWork]] = []
        left = list(works)
        while left:
            # A call takes as long as a full one.
            size = next((size for size in self._sizes if size < 2 * len(left)), 1)
            parts.append(left[:size])
            left = left[size:]
        return parts

    def _leave(self, work: UserWork) -> None:
        with self._lock:
            self._waiting[work.length].pop(work, None)


def _fits(work: UserWork, size: int, ladder: Ladder) -> bool:
    return ladder.batch_fits(work.pending.remaining_ms(), work.length, size)


def _took(work: UserWork, task: "Future[Any]") -> bool:
    """Keep a user side's own task from running; return whether it will not."""
    # Before the callbacks of the cancelled task ask for it.
    work.pending.taken_along = True
    if task.cancel():
        return True
    work.pending.taken_along = False
    return False
