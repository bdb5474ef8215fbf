"""From what a request left behind to the report of it."""

from collections.abc import Mapping
from math import isnan
from typing import Any, NamedTuple

import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving.candidates import CheckedCandidates, Chosen
from aif_jax.serving.ladder import Choice
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Found, Report, Span, Task, shown_user
from aif_jax.serving.stages import Scored
from aif_jax.serving.user_side import UserSide


class RankTimes(NamedTuple):
    """What `Pending.rank` did when, on the clock of ``time.perf_counter``.

    Attributes:
        called_s: it was called.
        checked_s: the candidates were checked, if that was done before the wait for the user side.
        supplied_s: missing item rows were there, or given up.
        ready_s: the user side was there.
        prepared_s: the candidates were encoded (and checked, if they had not been).
    """

    called_s: float
    checked_s: float
    supplied_s: float
    ready_s: float
    prepared_s: float

    @classmethod
    def of(cls, called_s: float, chosen: Chosen | None, ready_s: float, prepared_s: float) -> "RankTimes":
        """Put together the times of a request, whose candidates were chosen before the wait or not."""
        early = (called_s, called_s) if chosen is None else (chosen.checked_s, chosen.supplied_s)
        return cls(called_s, *early, ready_s, prepared_s)

    def spans(self) -> tuple[Span, ...]:
        """Return the pieces from the call to the stage, without those that did not happen."""
        pieces = (
            Span("check candidates", "request", self.called_s, self.checked_s),
            Span("wait for item rows", "request", self.checked_s, self.supplied_s),
            Span("wait for the user side", "request", self.supplied_s, self.ready_s),
            Span("encode candidates", "request", self.ready_s, self.prepared_s),
        )
        return tuple(piece for piece in pieces if piece.end_s > piece.start_s)


def _overflow(leaves: Mapping[str, Any]) -> int:
    overflow = leaves.get("state/sim_overflow")
    return 0 if overflow is None else int(np.asarray(overflow)[0])


def _why_empty(candidates: CheckedCandidates, scored: Scored) -> str:
    numbers = (
        (candidates.duplicates, "came in twice"),
        (candidates.filtered.get("exclude", 0), "excluded by the request"),
        (candidates.filtered.get("categories", 0), "of no category that the request allows"),
        (scored.missing, "without an item row"),
        (scored.not_rankable, "not rankable"),
        (scored.unscored, "without a finite score"),
    )
    reasons = ", ".join(f"{number} {reason}" for number, reason in numbers if number)
    return f"of {candidates.given} candidates none was left: {reasons}"


_PROGRAMS: dict[Found, str] = {
    "computed": "user program", "hit": "user state from cache", "joined": "another request's user program",
    "prior": "user prior",
}  # fmt: skip


def _found(side: UserSide) -> Found:
    if side.choice.rung >= 2:
        return "prior"
    return "hit" if side.state.hit else "joined" if side.joined else "computed"


def _running(task: Task, now_s: float) -> Task:
    """Return a copy of a task that does not change any more: what runs on, like the caller, ends now."""
    return Task(task.name, task.lane, task.submitted_s, task.began_s, now_s, task.thread)


class Account:
    """What is known of a request before its stage is done, put together while that runs.

    Args:
        pending: its handle.
        side: its user side.
        candidates: what is ranked.
        choice: the rung, and why.
        encoding: what encoding did not recognise, user, context and pair features together.
        k: results asked for.
        times: when what was done since ``rank`` was called.
    """

    __slots__ = (
        "_candidates",
        "_choice",
        "_encoding",
        "_k",
        "_known",
        "_pending",
        "_side",
        "_spans",
        "_times",
    )

    def __init__(
        self,
        pending: Pending,
        side: UserSide,
        candidates: CheckedCandidates,
        choice: Choice,
        encoding: EncodeReport,
        k: int,
        times: RankTimes,
    ):
        self._pending = pending
        self._side = side
        self._candidates = candidates
        self._choice = choice
        self._encoding = encoding
        self._k = k
        self._times = times
        self._known: dict[str, Any] | None = None
        self._spans: tuple[Span, ...] = ()

    def prepare(self) -> None:
        """Put together what does not depend on the stage."""
        pending, side, candidates, times = self._pending, self._side, self._candidates, self._times
        began, state, found = pending.began_s, side.state, _found(side)
        tasks = tuple(pending.tasks)
        user_spans: tuple[Span, ...] = ()
        if found != "prior":
            computed_s = next(
                (task.began_s for task in tasks if task.name in ("user", "users")), side.fetched_s
            )
            user_spans = (
                Span("user fetch", "user", side.fetch_began_s, side.fetched_s),
                Span(_PROGRAMS[found], "user", computed_s, side.finished_s),
            )
        self._spans = (Span("retrieval", "retrieval", began, times.called_s), *user_spans, *times.spans())
        self._known = {
            "user": shown_user(pending.user),
            "version": pending.version,
            "rung": self._choice.rung,
            "rung_reason": self._choice.reason,
            "retrieval": pending.retrieval,
            "retrieval_reason": pending.retrieval_reason,
            "program": pending.generation.bundle.kind,
            "long_bucket": state.length,
            "user_fetch_ms": (side.fetched_s - side.fetch_began_s) * 1e3,
            "user_side_ms": (side.finished_s - side.fetch_began_s) * 1e3,
            "retrieval_ms": (times.called_s - began) * 1e3,
            "queue_ms": {task.name: (task.began_s - task.submitted_s) * 1e3 for task in tasks},
            "wait_ms": (times.ready_s - times.supplied_s) * 1e3,
            "items_wait_ms": (times.supplied_s - times.checked_s) * 1e3,
            "prepare_ms": (times.checked_s - times.called_s + times.prepared_s - times.ready_s) * 1e3,
            "hidden_ms": max(0.0, min(side.finished_s, times.called_s) - side.fetch_began_s) * 1e3,
            "candidates": candidates.given,
            "duplicates": candidates.duplicates,
            "filtered": dict(candidates.filtered),
            "computed_items": candidates.computed,
            "uncomputed_items": dict(candidates.uncomputed),
            "category_overflow": _overflow(state.leaves),
            "unknown_behaviours": state.unknown_behaviours,
            "truncated_behaviours": state.truncated,
            "unknown_features": self._encoding.as_dict(),
            "unknown_user": side.unknown_user,
            "user_state": found,
            "user_batch": side.batch if found == "computed" else 0,
            "user_state_age_ms": state.age_ms if state.hit else 0.0,
            "k_asked": self._k,
            "deadline_ms": pending.deadline_ms,
        }

    def report(self, scored: Scored, finished_s: float) -> Report:
        """Return the report of the request, now that it is finished.

        Args:
            scored: what the stage, or the item prior, made of the candidates.
            finished_s: when the ranking was there.
        """
        if self._known is None:
            self.prepare()
        assert self._known is not None, "just prepared"
        pending, prepared_s = self._pending, self._times.prepared_s
        total_ms, deadline_ms = (finished_s - pending.began_s) * 1e3, pending.deadline_ms
        gathered_s, given = prepared_s + scored.gather_s, len(scored.order)
        stage = "item prior" if self._choice.rung == 3 else "real-time stage"
        return Report(
            **self._known,
            bucket=scored.bucket,
            calls=scored.calls,
            gather_ms=scored.gather_s * 1e3,
            stage_ms=scored.stage_s * 1e3,
            total_ms=total_ms,
            missing_items=scored.missing,
            not_rankable=scored.not_rankable,
            unscored=scored.unscored,
            k_given=given,
            empty_because="" if given else _why_empty(self._candidates, scored),
            overrun_ms=0.0 if deadline_ms is None else max(0.0, total_ms - deadline_ms),
            spans=(
                *self._spans,
                # With several calls, all gathers are drawn before all stages.
                Span("gather rows", "request", prepared_s, gathered_s),
                Span(stage, "request", gathered_s, finished_s),
            ),
            tasks=tuple([_running(t, finished_s) if isnan(t.ended_s) else t for t in pending.tasks]),
        )
