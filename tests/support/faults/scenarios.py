"""Faults under load, one scenario each: what is done, and what may become of the requests."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from aif_jax.serving import Threads
from support.faults import injection
from support.faults.callers import Callers
from support.faults.injection import Fault, Faults, Hang, as_retrieval, as_source, some
from support.faults.ledger import CANCELLED, Ledger
from support.faults.service import Service

DEADLINE_MS = 250.0
LATE = frozenset({"DeadlineExceededError", "OverloadedError"})
"""Errors that a request with a deadline may end in while threads hang."""

Drive = Callable[[Callers, int, int], Ledger]
"""Makes requests: from callers, how many, and the first number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fault.

    Attributes:
        name: what tables call it.
        faults: what goes wrong with which request.
        drive: makes the requests.
        errors: what a request may end in whose own fault has happened.
        others: what the others may end in.
        answers: whether a request whose fault has happened may be answered at full quality.
        let_go: ends what hangs, when the requests are over.
        config: changes of the engine's settings.
        noisy: whether native code writes to the error stream about it, once for each request.
    """

    name: str
    drive: Drive
    faults: Faults = lambda _: injection.NONE
    errors: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    answers: bool = False
    let_go: Callable[[], None] = lambda: None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    noisy: bool = False


def scenarios(service: Service) -> list[Scenario]:
    """Return every scenario; what hangs in one of them hangs for that one alone."""
    retrieval_hangs, source_hangs = Hang(), Hang()
    late = frozenset(LATE)
    return [
        Scenario(name="nothing goes wrong", drive=_ask),
        Scenario(
            name="retrieval raises", drive=_ask, faults=some(Fault(retrieve=injection.down), 3),
            errors=frozenset({"RetrievalError"}),
        ),
        Scenario(
            name="retrieval hangs", drive=_ask_in_time, let_go=retrieval_hangs.let_go,
            faults=some(
                # A plain function cannot be interrupted: in `rank` it holds its caller up, here for a while.
                as_retrieval((retrieval_hangs.then(service.candidates, 0.5), injection.hanging_coroutine)), 5
            ),
            errors=late, others=late,
        ),
        Scenario(
            name="retrieval returns garbage", drive=_ask,
            faults=some(as_retrieval(injection.garbage_candidates(service)), 3),
            errors=frozenset({"RetrievalError"}),
        ),
        Scenario(
            name="retrieval returns duplicates and unknown items", drive=_ask,
            faults=some(as_retrieval(injection.strange_candidates(service)), 3), answers=True,
        ),
        Scenario(
            name="user source raises", drive=_ask, faults=some(Fault(user=injection.down), 3),
            errors=frozenset({"UserSourceError"}),
        ),
        Scenario(
            name="user source hangs", drive=_ask_in_time, let_go=source_hangs.let_go,
            faults=some(Fault(user=source_hangs.then(service.user)), 5), errors=late, others=late,
        ),
        Scenario(
            name="user source returns garbage", drive=_ask,
            faults=some(as_source(injection.garbage_records(service)), 3),
            errors=frozenset({"UserSourceError"}),
        ),
        Scenario(
            name="a worker panics", drive=_ask, noisy=True,
            faults=some(Fault(user=injection.panic(injection.panics())), 3),
            errors=frozenset({"SchedulerError", "PanicException"}),
        ),
        Scenario(
            name="deadlines of 1 ms",
            drive=lambda callers, requests, first: callers.ask(requests, 1.0, first), others=late,
        ),
        Scenario(
            name="more requests at once than may wait",
            drive=_crowd, config={"threads": Threads(max_queued=4)}, others=frozenset({"OverloadedError"}),
        ),
        Scenario(
            # Handles whose coroutine is cancelled between `begin` and `rank_async` must expire.
            name="requests cancelled at random", config={"max_pending_age_s": 0.5},
            drive=lambda callers, requests, first: callers.storm(requests, 0.012, first),
            others=frozenset({CANCELLED}),
        ),
        Scenario(
            name="event loops closed midway", config={"max_pending_age_s": 0.5},
            drive=lambda callers, requests, first: callers.close_loops(max(2, requests // 8), first),
            others=frozenset({CANCELLED}),
        ),
    ]  # fmt: skip


def _ask(callers: Callers, requests: int, first: int) -> Ledger:
    return callers.ask(requests, None, first)


def _ask_in_time(callers: Callers, requests: int, first: int) -> Ledger:
    # A fraction of them: each that hangs takes as long as its deadline.
    return callers.ask(max(40, requests // 4), DEADLINE_MS, first)


def _crowd(callers: Callers, requests: int, first: int) -> Ledger:
    return callers.more(40).ask(requests, None, first)
