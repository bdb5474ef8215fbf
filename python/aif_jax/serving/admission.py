"""Admission: how far a request with a deadline can be answered, by the work that earlier ones still need.

A user side is of no use to a request whose real-time stage then comes too late, and under overload most
would: all get later together. So a request is let in only if all of its computing, after all that is owed to
requests with earlier deadlines, will be done in time. The others are told when they begin, and cost next to
nothing.

A request is predicted to take ``max(ahead + user side, retrieval) + stage + slack``. Slack is what
predictions fell short of lately: threads that were woken late, a busy event loop, work that nobody announced.
"""

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

from aif_jax.errors import OverloadedError
from aif_jax.serving.ladder import REST, USER
from aif_jax.serving.report import Report

if TYPE_CHECKING:
    from aif_jax.serving.pending import Pending

_STAGE_ALONE_WITHIN = 0.5
"""The stage alone must be done within this share of the time that is left. Under a lasting overload what is
owed stays close to what the deadlines allow, so what is short of room for a full answer is shed; if it were
given the stage alone instead, which always fits a little longer, full answers would never fit again."""


_MEMORY = 0.05
"""Weight of the newest request in what is remembered of retrieval and slack."""


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """What is still owed to one request that was let in, in milliseconds of a compute thread."""

    deadline_s: float
    user_ms: float
    stage_ms: float
    user_until_ms: float
    """When its user side was predicted to be done, from its beginning."""


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

    def enter(self, pending: "Pending") -> None:
        """Let a request in, or mark it as shed. One without a deadline always is let in.

        Raises:
            OverloadedError: there is no time for its user side, though for its stage (then it has a ticket);
                or for neither, and the ladder has no rung that needs neither.
        """
        if pending.deadline_ms is None:
            return
        ladder = pending.rungs.ladder
        times = ladder.times
        user, stage = times.expected_ms(USER), times.expected_ms(REST)
        deadline_s, now_s = pending.began_s + pending.deadline_ms / 1e3, time.perf_counter()
        left_ms = (deadline_s - now_s) * 1e3
        with self._lock:
            ahead_ms = self._ahead_ms(deadline_s, now_s)
            # Alone it is let in, whatever its deadline: the ladder decides, and times are measured anew.
            if not ahead_ms or self._end_ms(ahead_ms + user, stage) <= left_ms:
                admitted = "full"
            elif ladder.on and self._end_ms(ahead_ms, stage) <= _STAGE_ALONE_WITHIN * left_ms:
                admitted, user = "stage", 0.0
            else:
                admitted = "shed"
            self._counts[admitted] += 1
            if admitted != "shed":
                until_ms = (now_s - pending.began_s) * 1e3 + ahead_ms + user
                pending.ticket = Ticket(deadline_s, user, stage, until_ms)
                self._tickets[id(pending.ticket)] = pending.ticket
        if admitted == "full":
            return
        pending.shed = admitted == "shed" and ladder.on and ladder.item_prior
        if not pending.shed:
            raise OverloadedError(
                f"user {pending.user!r}: what was begun before keeps the compute threads busy "
                f"for {ahead_ms:.1f} ms, then this request's own computing takes {user + stage:.1f} ms, but "
                f"its deadline allows {left_ms:.1f} ms; send less, give requests more time, or add a replica."
            )

    def user_done(self, ticket: Ticket | None) -> None:
        """Take the user side of a request off the account: it is finished, found, or will never run."""
        if ticket is not None:
            ticket.user_ms = 0.0

    def learn(self, ticket: Ticket | None, report: Report) -> None:
        """Learn from how a request went; one whose stage came too late would have ended after it."""
        if ticket is None:
            return
        ended_ms = report.total_ms + (ticket.stage_ms if report.rung == 3 else 0.0)
        predicted_ms = max(ticket.user_until_ms, report.retrieval_ms) + ticket.stage_ms
        with self._lock:
            self._retrieval_ms += _MEMORY * (report.retrieval_ms - self._retrieval_ms)
            self._slack_ms += _MEMORY * (ended_ms - predicted_ms - self._slack_ms)

    def done(self, ticket: Ticket | None) -> None:
        """Take a request off the account: it was answered, or never will be."""
        if ticket is not None:
            with self._lock:
                self._tickets.pop(id(ticket), None)

    def stats(self) -> dict[str, float]:
        """Return how many were let in for ``full`` and for the ``stage`` alone, and ``shed``; what is owed.

        ``open`` are those on the account, ``owed_ms`` is what they need of one compute thread;
        ``retrieval_ms`` and ``slack_ms`` are what predictions go by.
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

    def _ahead_ms(self, deadline_s: float, now_s: float) -> float:
        """Return how long the compute threads are busy with what has an earlier deadline."""
        self._forget_late(now_s)
        earlier = (ticket for ticket in self._tickets.values() if ticket.deadline_s <= deadline_s)
        return sum(ticket.user_ms + ticket.stage_ms for ticket in earlier) / self._threads

    def _forget_late(self, now_s: float) -> None:
        """Nothing is computed after a deadline: a handle that nobody ranks owes nothing from then on."""
        for key in [key for key, ticket in self._tickets.items() if ticket.deadline_s < now_s]:
            del self._tickets[key]
