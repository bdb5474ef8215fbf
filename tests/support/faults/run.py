"""Running the scenarios, and the account of each: nothing wrong, nothing lost, nothing left over."""

import contextlib
import dataclasses
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from aif_jax.errors import OverloadedError
from aif_jax.serving import Engine
from support.faults.callers import Callers
from support.faults.injection import NONE, Injected
from support.faults.ledger import Entry, Ledger
from support.faults.scenarios import Scenario
from support.faults.service import CONTEXT, REQUESTS, Service, Truth

RETRIEVAL_S = 0.002
_SETTLES_S = 30.0


@dataclasses.dataclass(frozen=True)
class Account:
    """Outcomes of the requests of a scenario.

    Attributes:
        scenario: its name.
        requests: made.
        hit: those whose own fault has happened.
        rungs: answered ones by rung.
        errors: others by the type of their error.
        wrong: answers that are wrong, in words; they must be none.
        unexpected: ends that the scenario does not allow, in words; they must be none.
        lost: requests with neither answer nor error; they must be none.
        left: what is left over when all is quiet, in words; it must be nothing.
        healthy: whether the engine answers every request afterwards, rightly and in full.
        seconds: how long it took.
    """

    scenario: str
    requests: int
    hit: int
    rungs: dict[int, int]
    errors: dict[str, int]
    wrong: tuple[str, ...]
    unexpected: tuple[str, ...]
    lost: int
    left: tuple[str, ...]
    healthy: bool
    seconds: float

    @property
    def good(self) -> bool:
        """Return whether everything is as it must be."""
        return not (self.wrong or self.unexpected or self.lost or self.left) and self.healthy


def run(
    service: Service, truth: Truth, scenario: Scenario, requests: int, *, threads: int = 4, first: int = 0
) -> Account:
    """Run one scenario over an engine of its own.

    Args:
        service: what is asked.
        truth: what the right answers are.
        scenario: what goes wrong.
        requests: how many are made, more or less: the scenario may make fewer.
        threads: callers in threads; there are twice as many in an event loop.
        first: number of the first request, a multiple of `REQUESTS`.
    """
    began = time.perf_counter()
    injected = Injected(service, RETRIEVAL_S)
    before = _threads()
    with Engine(
        service.bundle, service.tables, users=injected.users, retrieve=injected.retrieve,
        config=service.engine_config(**scenario.config),
    ) as engine:  # fmt: skip
        callers = Callers(engine, service, threads, 2 * threads)
        injected.faults = scenario.faults
        with _muted() if scenario.noisy else contextlib.nullcontext():
            ledger = scenario.drive(callers, requests, first)
        scenario.let_go()
        injected.faults = lambda _: NONE
        left = _settled(engine)
        healthy = _healthy(engine, Callers(engine, service, 2, 2), truth, first + (1 << 24))
        left += _settled(engine)
    left += _threads_left(before)
    return Account(
        scenario=scenario.name,
        requests=len(ledger.entries),
        hit=sum(entry.number in injected.hit for entry in ledger.entries),
        rungs=dict(ledger.rungs()),
        errors=dict(ledger.errors()),
        wrong=_texts(ledger, lambda entry: _wrong(entry, scenario, injected.hit, truth)),
        unexpected=_texts(ledger, lambda entry: _unexpected(entry, scenario, injected.hit)),
        lost=sum(entry.lost for entry in ledger.entries),
        left=tuple(dict.fromkeys(left)),
        healthy=healthy,
        seconds=time.perf_counter() - began,
    )


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Send the process's error stream nowhere, of native code too."""
    sys.stderr.flush()
    stream = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stream, 2)
        os.close(stream)


def _texts(ledger: Ledger, of: Callable[[Entry], str]) -> tuple[str, ...]:
    return tuple(f"request {entry.number}: {text}" for entry in ledger.entries if (text := of(entry)))


def _wrong(entry: Entry, scenario: Scenario, hit: set[int], truth: Truth) -> str:
    if entry.answer is None:
        return ""
    if entry.number in hit and not scenario.answers and entry.answer.rung == 0:
        return "answered in full although its part failed"
    return truth.wrong(entry.number, entry.answer)


def _unexpected(entry: Entry, scenario: Scenario, hit: set[int]) -> str:
    allowed = scenario.errors if entry.number in hit else scenario.others
    return f"{entry.error}: {entry.text}" if entry.error and entry.error not in allowed else ""


def _settled(engine: Engine) -> tuple[str, ...]:
    """Return what an engine has under way although nobody asks any more, after some time to finish."""
    end = time.perf_counter() + _SETTLES_S
    gc.collect()
    while (left := _under_way(engine)) and time.perf_counter() < end:
        # Not collected at every look: that takes Python's lock for longer than what is waited for needs it.
        time.sleep(0.02)
    if left:
        gc.collect()
        left = _under_way(engine)
    return left


def _under_way(engine: Engine) -> tuple[str, ...]:
    stats, left = engine.stats(), []
    if stats["open_handles"]:
        left.append(f"{stats['open_handles']} open handles")
    for lane, counts in stats["scheduler"].items():
        left += [
            f"{counts[name]} tasks {name} in lane {lane}" for name in ("queued", "running") if counts[name]
        ]
    counts = stats["requests"]
    ended = sum(
        count
        for name, count in counts.items()
        if name in ("ranked", "expired", "abandoned") or name.startswith("error:")
    )
    # Requests refused by `begin` are counted as errors, not as begun.
    if counts["begun"] > ended:
        left.append(f"{counts['begun'] - ended} requests begun of which no count says how they ended")
    return tuple(left)


def _healthy(engine: Engine, callers: Callers, truth: Truth, first: int) -> bool:
    """Return whether an engine answers rightly, all at once, after a first request got through alone.

    Calls that hung opened a circuit, which closes when one call has ended; those beside that one are refused.
    """
    end = time.perf_counter() + _SETTLES_S
    while True:
        try:
            engine.rank(first - 1, CONTEXT)
            break
        except OverloadedError:
            if time.perf_counter() > end:
                return False
            time.sleep(0.02)
    ledger = callers.ask(REQUESTS, None, first)
    answers = [(entry.number, entry.answer) for entry in ledger.entries if entry.answer is not None]
    return len(answers) == REQUESTS and not any(
        answer.rung or truth.wrong(number, answer) for number, answer in answers
    )


def _threads() -> tuple[set[int], int]:
    return {thread.ident or 0 for thread in threading.enumerate()}, len(
        list(Path("/proc/self/task").iterdir())
    )


def _threads_left(before: tuple[set[int], int]) -> tuple[str, ...]:
    end = time.perf_counter() + _SETTLES_S
    while True:
        new = [t.name for t in threading.enumerate() if t.ident not in before[0]]
        more = len(list(Path("/proc/self/task").iterdir())) - before[1]
        if not new and more <= 0:
            return ()
        if time.perf_counter() > end:
            return (f"{max(more, len(new))} threads ({', '.join(new) or 'native ones'})",)
        time.sleep(0.02)
