"""The account of one ranking: its report, put together for the most part while the stage runs."""

import dataclasses
import time
from collections.abc import Sequence
from math import isnan
from typing import Any, NamedTuple

import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving.candidates import ParsedCandidates
from aif_jax.serving.ladder import Choice
from aif_jax.serving.missing_items import PendingRows
from aif_jax.serving.report import Report, Retrieval, Span, Task, UserStateOrigin, shown_user
from aif_jax.serving.stage import Scored
from aif_jax.serving.tasks import Deadline
from aif_jax.serving.user_side import UserSide
from aif_jax.types import UserId

_USER_PROGRAMS: dict[UserStateOrigin, str] = {
    "computed": "user program", "hit": "user state from cache", "joined": "another request's user program",
    "prior": "user prior",
}  # fmt: skip


class RankTimes(NamedTuple):
    """Times of a ranking, on the clock of ``time.perf_counter``.

    Attributes:
        called_s: the call of `Pending.rank`.
        parsed_s: candidates parsed, if that was done before the wait for the user side; else ``called_s``.
        ready_s: user side and item rows there.
        prepared_s: candidates encoded.
    """

    called_s: float
    parsed_s: float
    ready_s: float
    prepared_s: float


@dataclasses.dataclass(slots=True, eq=False)
class Account:
    """Facts of one ranking before its stage is done.

    Attributes:
        user: user whom it is for.
        version: version of the bundle that scores it.
        program: kind of its programs.
        deadline: of the request.
        retrieval: origin of the candidates.
        retrieval_reason: why they are the fallback's, if they are.
        ran: tasks of the request; may still grow.
        side: the user side.
        parsed: the candidates.
        rows: missing rows that were waited for, if any.
        choice: the rung, and why.
        encoding: values of pair features and filters that encoding did not recognise.
        k: results wanted.
        times: of the ranking so far.
        known: fields of the report that are known, after `describe`.
        spans: pieces of time that are known, after `describe`.
    """

    user: UserId
    version: str
    program: str
    deadline: Deadline
    retrieval: Retrieval
    retrieval_reason: str | None
    ran: Sequence[Task]
    side: UserSide
    parsed: ParsedCandidates
    rows: PendingRows | None
    choice: Choice
    encoding: EncodeReport
    k: int
    times: RankTimes
    known: dict[str, Any] | None = None
    spans: list[Span] = dataclasses.field(default_factory=list)

    def describe(self) -> None:
        """Put together the part that does not depend on the stage."""
        side, parsed, rows, times = self.side, self.parsed, self.rows, self.times
        began_s, state = self.deadline.began_s, side.state
        called_s, parsed_s, ready_s, prepared_s = times
        supplied_s = parsed_s if rows is None else rows.ended_s
        if side.choice.rung >= 2:
            origin: UserStateOrigin = "prior"
        else:
            origin = "hit" if state.hit else "joined" if side.joined else "computed"
        spans = [Span("retrieval", "retrieval", began_s, called_s)]
        queue_ms, computed_s = {}, side.fetched_s
        for task in self.ran:
            queue_ms[task.name] = (task.began_s - task.submitted_s) * 1e3
            if task.name in ("user", "users"):
                computed_s = task.began_s
        if origin != "prior":
            spans.append(Span("user fetch", "user", side.fetch_began_s, side.fetched_s))
            spans.append(Span(_USER_PROGRAMS[origin], "user", computed_s, side.finished_s))
        for name, start_s, end_s in (
            ("check candidates", called_s, parsed_s), ("wait for item rows", parsed_s, supplied_s),
            ("wait for the user side", supplied_s, ready_s), ("encode candidates", ready_s, prepared_s),
        ):  # fmt: skip
            if end_s > start_s:
                spans.append(Span(name, "request", start_s, end_s))
        self.spans = spans
        self.encoding.add(side.encoding)
        overflow = state.leaves.get("state/sim_overflow")
        self.known = {
            "user": self.user if type(self.user) in (int, str) else shown_user(self.user),
            "version": self.version,
            "rung": self.choice.rung,
            "rung_reason": self.choice.reason,
            "retrieval": self.retrieval,
            "retrieval_reason": self.retrieval_reason,
            "program": self.program,
            "long_bucket": state.length,
            "user_fetch_ms": (side.fetched_s - side.fetch_began_s) * 1e3,
            "user_side_ms": (side.finished_s - side.fetch_began_s) * 1e3,
            "retrieval_ms": (called_s - began_s) * 1e3,
            "queue_ms": queue_ms,
            "wait_ms": (ready_s - supplied_s) * 1e3,
            "items_wait_ms": (supplied_s - parsed_s) * 1e3,
            "prepare_ms": (parsed_s - called_s + prepared_s - ready_s) * 1e3,
            "hidden_ms": max(0.0, min(side.finished_s, called_s) - side.fetch_began_s) * 1e3,
            "candidates": parsed.given,
            "duplicates": parsed.duplicates,
            "filtered": parsed.filtered,
            "computed_items": 0 if rows is None else rows.computed,
            "uncomputed_items": {} if rows is None else dict(rows.uncomputed),
            "category_overflow": 0 if overflow is None else int(np.asarray(overflow)[0]),
            "unknown_behaviours": state.unknown_behaviours,
            "truncated_behaviours": state.truncated,
            "unknown_features": self.encoding.as_dict(),
            "unknown_user": side.unknown_user,
            "user_state": origin,
            "user_batch": side.batch if origin == "computed" else 0,
            "user_state_age_ms": state.age_ms if state.hit else 0.0,
            "k_asked": self.k,
            "deadline_ms": self.deadline.ms,
        }

    def report(self, scored: Scored) -> Report:
        """Return the report, now that the candidates are scored by the stage or the item prior."""
        finished_s = time.perf_counter()
        if self.known is None:
            self.describe()
        assert self.known is not None, "just described"
        prepared_s, deadline_ms = self.times.prepared_s, self.deadline.ms
        total_ms = (finished_s - self.deadline.began_s) * 1e3
        gathered_s, given = prepared_s + scored.gather_s, len(scored.order)
        tasks = []
        for task in self.ran:
            if isnan(task.ended_s):
                # A copy that does not change any more: a task that runs on, like the caller's, ends now.
                task = dataclasses.replace(task, ended_s=finished_s)
            tasks.append(task)
        stage = "item prior" if self.choice.rung == 3 else "real-time stage"
        return Report(
            **self.known,
            bucket=scored.bucket,
            calls=scored.calls,
            gather_ms=scored.gather_s * 1e3,
            stage_ms=scored.stage_s * 1e3,
            total_ms=total_ms,
            missing_items=scored.missing,
            not_rankable=scored.not_rankable,
            unscored=scored.unscored,
            k_given=given,
            empty_because="" if given else _why_empty(self.parsed, scored),
            overrun_ms=0.0 if deadline_ms is None else max(0.0, total_ms - deadline_ms),
            spans=(
                *self.spans,
                # With several calls, all gathers are drawn before all stages.
                Span("gather rows", "request", prepared_s, gathered_s),
                Span(stage, "request", gathered_s, finished_s),
            ),
            tasks=tuple(tasks),
        )


def _why_empty(parsed: ParsedCandidates, scored: Scored) -> str:
    numbers = (
        (parsed.duplicates, "came in twice"),
        (parsed.filtered.get("exclude", 0), "excluded by the request"),
        (parsed.filtered.get("categories", 0), "of no category that the request allows"),
        (scored.missing, "without an item row"),
        (scored.not_rankable, "not rankable"),
        (scored.unscored, "without a finite score"),
    )
    reasons = ", ".join(f"{number} {reason}" for number, reason in numbers if number)
    return f"of {parsed.given} candidates none was left: {reasons}"
