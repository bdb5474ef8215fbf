"""Admission: the decision how far a request with a deadline can be answered, by the work owed to others.

A user side is of no use to a request whose real-time stage then comes too late, and under overload most
would: all get later together. So a request is let in only if all of its computing, after all that is owed to
requests with earlier deadlines, will be done in time. The others learn so when they begin, and cost next to
nothing.

A request is predicted to take ``max(ahead + user side, retrieval) + stage + slack``. Slack is the time by
which predictions fell short of late: threads that were woken late, a busy event loop, unannounced work.

The scheduler can refuse single tasks by a prediction of its own; the engine switches that off. Alone it keeps
a third of the full answers that this account keeps at twice the saturation, as measured in
bench/records/2026-11-30-serving.md. The ladder asks it how long the queue before the stage is.
"""

import dataclasses
import threading
import time
from typing import Literal, NamedTuple

from aif_jax.errors import OverloadedError
from aif_jax.serving.ladder import FINISH, USER, Ladder
from aif_jax.serving.tasks import Deadline
from aif_jax.types import UserId

_STAGE_SHARE = 0.5
"""The stage alone must be done within this share of the time that is left. Under a lasting overload the work
owed stays close to the limit of the deadlines, so a request without room for a full answer is shed; if it
were given the stage alone instead, which always fits a little longer, full answers would never fit again."""

_NEWEST = 0.05
"""Weight of the newest request in the moving means of retrieval and slack."""


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """Work still owed to one request that was let in, in milliseconds of a compute thread."""

    due_s: float
    user_ms: float
    stage_ms: float
    user_until_ms: float
    """Predicted end of its user side, from its beginning."""


class Admitted(NamedTuple):
    """Decision on one request.

    Attributes:
        level: ``full``; ``stage``, without a user side of its own; ``shed``, by the item prior only.
        ticket: its entry in the account; ``None`` if it is shed or has no deadline.
    """

    level: Literal["full", "stage", "shed"]
    ticket: Ticket | None


_UNLIMITED = Admitted("full", None)


class Admission:
    """The work owed to the open requests of an engine that have a deadline. Safe to use from any thread.

    Requests without a deadline are computed after all others, and are not in the account.

    Args:
        threads: compute threads.
    """

    def __init__(self, threads: int):
        self._threads = threads
        self._tickets: dict[int, Ticket] = {}
        self._lock = threading.Lock()
        self._counts = {"full": 0, "stage": 0, "shed": 0}
        self._retrieval_ms = 0.0
        self._slack_ms = 0.0

    def enter(self, deadline: Deadline, ladder: Ladder, user: UserId) -> Admitted:
        """Decide on a request, and open an entry for it.

        Args:
            deadline: the request's.
            ladder: knows how long things take, and which rungs there are.
            user: user of the request, for errors.

        Raises:
            OverloadedError: there is no time for a full answer, and the ladder has no rung for less.
        """
        if deadline.ms is None:
            return _UNLIMITED
        rungs = ladder.rungs if ladder.enabled else ()
        user_ms, stage_ms = ladder.times.expected_ms(USER), ladder.times.expected_ms(FINISH)
        now_s = time.perf_counter()
        left_ms = (deadline.due_s - now_s) * 1e3
        with self._lock:
            ahead_ms = self._ahead_ms(deadline.due_s, now_s)
            # Alone it is let in, whatever its deadline: the ladder decides, and times are measured anew.
            if not ahead_ms or self._end_ms(ahead_ms + user_ms, stage_ms) <= left_ms:
                level: Literal["full", "stage", "shed"] = "full"
            elif 2 in rungs and self._end_ms(ahead_ms, stage_ms) <= _STAGE_SHARE * left_ms:
                level = "stage"
            else:
                level = "shed"
            self._counts[level] += 1
            if level != "shed":
                own_ms = user_ms if level == "full" else 0.0
                until_ms = (now_s - deadline.began_s) * 1e3 + ahead_ms + own_ms
                ticket = Ticket(deadline.due_s, own_ms, stage_ms, until_ms)
                self._tickets[id(ticket)] = ticket
                return Admitted(level, ticket)
        if 3 in rungs:
            return Admitted("shed", None)
        raise OverloadedError(
            f"user {user!r}: requests begun before keep the compute threads busy for {ahead_ms:.1f} ms, then "
            f"this request's own computing takes {user_ms + stage_ms:.1f} ms, but its deadline allows "
            f"{left_ms:.1f} ms; send less, give requests more time, or add a replica."
        )

    def user_done(self, ticket: Ticket | None) -> None:
        """Take the user side of a request off the account: it is finished, found, or will never run."""
        if ticket is not None:
            ticket.user_ms = 0.0

    def learn(self, ticket: Ticket, total_ms: float, retrieval_ms: float, rung: int) -> None:
        """Learn from how a request went; one whose stage came too late would have ended after it."""
        ended_ms = total_ms + (ticket.stage_ms if rung == 3 else 0.0)
        predicted_ms = max(ticket.user_until_ms, retrieval_ms) + ticket.stage_ms
        with self._lock:
            self._retrieval_ms += _NEWEST * (retrieval_ms - self._retrieval_ms)
            self._slack_ms += _NEWEST * (ended_ms - predicted_ms - self._slack_ms)

    def done(self, ticket: Ticket | None) -> None:
        """Take a request off the account: it was answered, or never will be."""
        if ticket is not None:
            with self._lock:
                self._tickets.pop(id(ticket), None)

    def stats(self) -> dict[str, float]:
        """Return the numbers let in for ``full`` and for the ``stage`` alone, and ``shed``; the work owed.

        ``open`` are those on the account, ``owed_ms`` is their need of one compute thread; ``retrieval_ms``
        and ``slack_ms`` are the means that predictions go by.
        """
        with self._lock:
            self._forget_late(time.perf_counter())
            owed = sum(ticket.user_ms + ticket.stage_ms for ticket in self._tickets.values())
            return {
                **self._counts, "open": len(self._tickets), "owed_ms": owed,
                "retrieval_ms": self._retrieval_ms, "slack_ms": self._slack_ms,
            }  # fmt: skip

    def _end_ms(self, user_until_ms: float, stage_ms: float) -> float:
        return max(user_until_ms, self._retrieval_ms) + stage_ms + self._slack_ms

    def _ahead_ms(self, due_s: float, now_s: float) -> float:
        """Return how long the compute threads are busy with work that has an earlier deadline."""
        self._forget_late(now_s)
        earlier = (ticket for ticket in self._tickets.values() if ticket.due_s <= due_s)
        return sum(ticket.user_ms + ticket.stage_ms for ticket in earlier) / self._threads

    def _forget_late(self, now_s: float) -> None:
        """Nothing is computed after a deadline: a handle that nobody ranks owes nothing from then on."""
        for key in [key for key, ticket in self._tickets.items() if ticket.due_s < now_s]:
            del self._tickets[key]
