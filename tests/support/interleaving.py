"""Systematic interleaving: a model of a few threads, run once for every order of their steps up to a bound.

The threads take turns. A step is a line of a watched function, so another thread may go on before each; so it
may where a thread has to wait for a lock, or has ended. The bound is on preemptions: turns taken away from a
thread that could go on. Orders are enumerated depth first, by running the model again with other choices.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

Job = Callable[[], None]


class Deadlock(Exception):
    """No thread can go on, and some have not ended."""


class _Abandoned(BaseException):
    """Ends a thread that waits for a turn in a run that has failed."""


class _Lock:
    """A `threading.Lock` of which the turns know who waits for it."""

    def __init__(self, turns: "Turns"):
        self._turns, self.held = turns, False

    def __enter__(self) -> None:
        while self.held:
            self._turns.wait_for(self)
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False


class Turns:
    """One run: which thread goes on at each step.

    Args:
        plan: the choice at each of the first steps; later ones continue with the first that can go on.
        preemptions: turns that may be taken away.
    """

    def __init__(self, plan: list[int], preemptions: int):
        self.chosen: list[tuple[int, int]] = []
        """The choice at each step, and the number of threads it was made from."""
        self._plan, self._preemptions = plan, preemptions
        self._running, self._wakes = -1, list[threading.Semaphore]()
        self._waiting: dict[int, _Lock] = {}
        self._ended, self._over = set[int](), threading.Event()
        self._errors: list[BaseException] = []

    def lock(self) -> _Lock:
        return _Lock(self)

    def run(self, *jobs: Job, watched: Sequence[Callable[..., Any]]) -> None:
        """Run jobs in threads, which take turns at the lines of the watched functions.

        Raises:
            Deadlock: a lock or a turn was never given back.
        """
        self._codes = {function.__code__ for function in watched}
        self._wakes = [threading.Semaphore(0) for _ in jobs]
        threads = [threading.Thread(target=self._work, args=each) for each in enumerate(jobs)]
        for thread in threads:
            thread.start()
        self._switch()
        self._over.wait()
        for wake in self._wakes:
            wake.release()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def wait_for(self, lock: _Lock) -> None:
        """Let others go on until a lock is free."""
        self._waiting[self._running] = lock
        self._switch()

    def _work(self, number: int, job: Job) -> None:
        self._wakes[number].acquire()
        try:
            if not self._over.is_set():
                sys.settrace(self._called)
                job()
        except _Abandoned:
            pass
        except BaseException as error:
            self._failed(error)
        finally:
            sys.settrace(None)
            self._ended.add(number)
            self._switch()

    def _called(self, frame: FrameType, *_: object) -> Any:
        return self._stepped if frame.f_code in self._codes else None

    def _stepped(self, _: FrameType, event: str, __: object) -> Any:
        if event == "line":
            self._switch()
        return self._stepped

    def _failed(self, error: BaseException) -> None:
        self._errors.append(error)
        self._over.set()

    def _switch(self) -> None:
        """Choose who goes on; return when it is this thread's turn again."""
        if self._over.is_set():
            return
        me, waiting = self._running, {n: lock for n, lock in self._waiting.items() if lock.held}
        ready = [n for n in range(len(self._wakes)) if n not in self._ended and n not in waiting]
        if not ready:
            if waiting:
                self._failed(Deadlock(f"threads {sorted(waiting)} wait for locks that nobody gives back"))
            self._over.set()
        else:
            first = [me] if me in ready else []
            options = [*first, *(n for n in ready if n != me)] if self._preemptions or not first else first
            step = len(self.chosen)
            choice = self._plan[step] if step < len(self._plan) else 0
            self.chosen.append((choice, len(options)))
            self._running = options[choice]
            self._waiting.pop(self._running, None)
            if self._running == me:
                return
            self._preemptions -= bool(first)
            self._wakes[self._running].release()
        if me >= 0 and me not in self._ended:
            self._wakes[me].acquire()
            if self._over.is_set():
                raise _Abandoned


def explore(model: Callable[[Turns], None], *modules: ModuleType, preemptions: int) -> int:
    """Run a model in every order of its steps; return the number of orders.

    Args:
        model: makes its objects, calls `Turns.run` once, and checks what came of it.
        modules: their ``threading.Lock`` takes turns.
        preemptions: turns that may be taken from a thread that could go on.
    """
    orders, plan = 0, list[int]()
    while True:
        turns = Turns(plan, preemptions)
        names = SimpleNamespace(**{**vars(threading), "Lock": turns.lock})
        with contextlib.ExitStack() as patched:
            for module in modules:
                patched.enter_context(mock.patch.object(module, "threading", names))
            try:
                model(turns)
            except BaseException as error:
                error.add_note(f"in order {orders + 1}, of the choices {[n for n, _ in turns.chosen]}")
                raise
        orders, taken = orders + 1, turns.chosen
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return orders
        plan = [*(choice for choice, _ in taken[:-1]), taken[-1][0] + 1]
