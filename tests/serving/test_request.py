"""State machine of a request, driven by random events against a plain model and by threads at once."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from aif_jax.errors import OverloadedError, RequestError
from aif_jax.serving.admission import Admitted, Ticket
from aif_jax.serving.ladder import Ladder, LatencyEstimates
from aif_jax.serving.observer import Observers
from aif_jax.serving.release import OpenRequests
from aif_jax.serving.request import Pending, Phase, Services, UserPhase
from aif_jax.serving.shadow import Shadows
from aif_jax.serving.tasks import Deadline
from aif_jax.serving.user_side import UserWork
from aif_jax.types import UserRecord

SIDE: Any = SimpleNamespace(name="a user side")


UNSETTLED = {UserPhase.IDLE, UserPhase.FETCHING, UserPhase.COMPUTING}


LEGAL = {
    Phase.OPEN: {*UNSETTLED, UserPhase.READY, UserPhase.FAILED, UserPhase.SHED},
    Phase.RETRIEVING: {*UNSETTLED, UserPhase.READY, UserPhase.FAILED, UserPhase.SHED},
    Phase.RANKING: set(UserPhase) - {UserPhase.IDLE},
    Phase.OVER: {UserPhase.READY, UserPhase.FAILED, UserPhase.SHED, UserPhase.DROPPED},
}
"""The table of `Pending`'s docstring."""


class Parts:
    """Everything that a request lets go of, counted; its user side does only what the test says."""

    def __init__(self, level: str = "full", *, full_queue: bool = False):
        self.level, self.full_queue = level, full_queue
        self.left = 0
        self.given_back: Counter[int] = Counter()
        self.tickets: list[Ticket] = []
        self.works: list[UserWork] = []
        self.version, self.missing = "v", None
        self.ladder = Ladder(LatencyEstimates(), (32,), (8,), enabled=True, rungs=(0, 1, 2, 3))
        self.user_sides = SimpleNamespace(start=self.start)
        self.retrieval = SimpleNamespace(is_coroutine=False)
        observers = Observers(())
        self.services = Services(
            workers=SimpleNamespace(check_outside=lambda: None),  # type: ignore[arg-type]
            admission=self,  # type: ignore[arg-type]
            observers=observers,
            open=OpenRequests(30.0, observers),
            shadows=Shadows(),
        )

    # of the release
    def leave(self) -> None:
        self.left += 1

    def start(self, work: UserWork) -> None:
        if self.full_queue:
            raise OverloadedError("full")
        self.works.append(work)

    # of admission
    def enter(self, deadline: Deadline, *_: Any) -> Admitted:
        if self.level == "refused":
            raise OverloadedError("refused")
        if self.level == "shed":
            return Admitted("shed", None)
        self.tickets.append(Ticket(deadline.due_s, 1.0, 1.0, 1.0))
        return Admitted("stage" if self.level == "stage" else "full", self.tickets[-1])

    def user_done(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            ticket.user_ms = 0.0

    def done(self, ticket: Ticket | None) -> None:
        assert ticket is not None
        self.given_back[id(ticket)] += 1

    def pending(self, *, own: bool = False, deadline_ms: float | None = 1e6) -> Pending:
        release: Any = self
        return Pending(self.services, release, 5, {}, Deadline(deadline_ms, time.perf_counter()), own=own)

    def check_over(self) -> None:
        """Everything was let go of, once."""
        assert self.left == 1
        assert self.given_back == Counter({id(ticket): 1 for ticket in self.tickets})
        assert len(self.services.open) == 0


class Model:
    """Plain model of one request."""

    def __init__(self, *, own: bool):
        self.phase = "retrieving" if own else "open"
        self.user = "idle"
        self.went_on = False
        self.late = 0

    def ended(self) -> None:
        self.phase = "over"
        if self.user in ("idle", "fetching", "computing"):
            self.user = "dropped"

    def claim(self) -> bool:
        if self.phase not in ("open", "retrieving"):
            return False
        self.phase = "ranking"
        return True

    def rank_ends(self) -> None:
        if self.phase == "ranking":
            self.ended()

    def give_up(self, phases: tuple[str, ...]) -> None:
        if self.phase in phases:
            self.ended()

    def fetched(self) -> None:
        if self.user == "fetching":
            self.user = "computing"

    def settled(self, name: str) -> None:
        if self.user in ("idle", "fetching", "computing"):
            self.user = name
        elif self.went_on and name == "ready":
            self.late += 1

    def goes_on(self) -> None:
        if self.user != "ready":
            self.went_on = True
            if self.user in ("idle", "fetching", "computing"):
                self.user = "dropped"

    def take_over(self) -> None:
        if self.phase == "retrieving":
            self.phase = "open"


# The transitions of a request are private: the engine's threads make them, in an order that no public call
# can choose. The state machine is the unit here, so these tests make them themselves.
def claimed(pending: Pending) -> bool:
    try:
        pending._claim()
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("seed", range(300))
def test_request_random_events_agree_with_the_plain_model(seed: int) -> None:
    rng = random.Random(seed)
    level = rng.choice(["full", "full", "shed", "stage", "refused"])
    own, parts = rng.random() < 0.5, Parts(level, full_queue=rng.random() < 0.1)
    pending, model = parts.pending(own=own), Model(own=own)
    start = not own or rng.random() < 0.5
    try:
        pending.begin(start=start)
    except OverloadedError:
        model.ended()
        assert level == "refused"
    else:
        if level in ("shed", "stage"):
            model.user = "shed" if level == "shed" else "failed"
        elif start:
            model.user = "failed" if parts.full_queue else "fetching"

    def started() -> None:
        if model.user == "idle" and model.phase != "over":
            pending._start()
            model.user = "failed" if parts.full_queue else "fetching"

    def claim() -> None:
        started()  # a request is not ranked before its user side was started
        assert claimed(pending) == model.claim()

    def event(real: Callable[[], Any], plain: Callable[[], Any]) -> Callable[[], None]:
        def both() -> None:
            before, after = real(), plain()
            if after is not None:
                assert before == after

        return both

    events: list[Callable[[], None]] = [
        started,
        event(lambda: pending._user_fetched(UserRecord()), model.fetched),
        event(lambda: pending._user_computed(SIDE), lambda: model.settled("ready")),
        event(lambda: pending._user_failed(ValueError("broken")), lambda: model.settled("failed")),
        claim,
        event(pending._take_over, model.take_over),
        event(pending.cancel, lambda: model.give_up(("open", "retrieving"))),
        event(pending.close, lambda: model.give_up(("open", "retrieving"))),
        event(lambda: pending.expire(30.0), lambda: None if own else model.give_up(("open",))),
        event(lambda: pending._end((Phase.RANKING,), "it was ranked already"), model.rank_ends),
    ]
    late = event(pending._go_on_without, model.goes_on)
    for _ in range(40):
        # Only the thread that ranks continues without a user side.
        rng.choice([*events, late] if model.phase == "ranking" else events)()
        assert (pending.phase.value, pending.user_phase.value) == (model.phase, model.user)
        assert pending.user_phase in LEGAL[pending.phase]
        assert (len(parts.services.open) == 1) == (model.phase in ("open", "retrieving"))
        assert parts.left == (model.phase == "over")
        if model.user in ("ready", "failed", "shed", "dropped"):
            assert all(ticket.user_ms == 0 for ticket in parts.tickets) or model.user == "dropped"
    pending.close()
    pending._end((Phase.RANKING,), "it was ranked already")
    parts.check_over()
    assert parts.services.observers.counts().get("late_user_sides", 0) == model.late


@pytest.mark.parametrize("seed", range(20))
def test_request_events_from_many_threads_let_go_of_everything_once(seed: int) -> None:
    rng = random.Random(seed)
    parts = Parts(rng.choice(["full", "shed"]))
    pending = parts.pending(own=rng.random() < 0.5)
    pending.begin(start=True)
    events: list[Callable[[], Any]] = [
        lambda: pending._user_computed(SIDE), lambda: pending._user_failed(ValueError("broken")),
        lambda: pending._user_fetched(UserRecord()), pending.cancel, pending.close,
        lambda: claimed(pending) and pending._end((Phase.RANKING,), "it was ranked already"),
        lambda: claimed(pending) and pending._go_on_without(), lambda: pending.expire(30.0),
        pending._take_over,
    ]  # fmt: skip
    barrier = threading.Barrier(len(events))

    def run(event: Callable[[], Any]) -> None:
        barrier.wait(10)
        event()

    threads = [threading.Thread(target=run, args=(event,)) for event in rng.sample(events, len(events))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    pending._end((Phase.RANKING,), "it was ranked already")
    assert pending.phase is Phase.OVER
    assert pending.user_phase in LEGAL[Phase.OVER]
    parts.check_over()


def test_request_closed_while_admission_refuses_lets_go_once() -> None:
    """A close met a refusal once, and the release was left twice: retired later, it never closed."""
    parts = Parts()
    pending = parts.pending()

    def closes_and_refuses(*_: Any) -> Admitted:
        parts.services.open.close()
        raise OverloadedError("refused")

    parts.enter = closes_and_refuses  # type: ignore[method-assign]
    with pytest.raises(OverloadedError):
        pending.begin(start=True)
    assert pending.phase is Phase.OVER
    parts.check_over()
    assert parts.services.observers.counts() == {"begun": 1, "error:OverloadedError": 1}


def test_request_closed_while_admission_lets_it_in_gives_the_ticket_back() -> None:
    parts = Parts()
    pending = parts.pending()
    enter = parts.enter

    def closes(*given: Any) -> Admitted:
        parts.services.open.close()
        return enter(*given)

    parts.enter = closes  # type: ignore[method-assign]
    pending.begin(start=True)
    with pytest.raises(RequestError, match="the engine was closed"):
        pending.rank([1, 2])
    parts.check_over()
    assert not parts.works, "no user side for nobody"


def test_request_without_a_deadline_asks_no_admission() -> None:
    parts = Parts("refused")
    pending = parts.pending(deadline_ms=None)
    pending.begin(start=True)
    assert pending.deadline.due_s == math.inf
    pending.cancel()
    parts.check_over()
