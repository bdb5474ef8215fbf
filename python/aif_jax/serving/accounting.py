"""From what a request left behind to the report of it."""

import math
from collections.abc import Iterable, Mapping
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
        finished_s: the ranking was there.
    """

    called_s: float
    checked_s: float
    supplied_s: float
    ready_s: float
    prepared_s: float
    finished_s: float

    @classmethod
    def of(
        cls, called_s: float, chosen: Chosen | None, ready_s: float, prepared_s: float, finished_s: float
    ) -> "RankTimes":
        """Put together the times of a request, whose candidates were chosen before the wait or not."""
        early = (called_s, called_s) if chosen is None else (chosen.checked_s, chosen.supplied_s)
        return cls(called_s, *early, ready_s, prepared_s, finished_s)

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


def _ended(task: Task, now_s: float) -> Task:
    """Return a copy of a task that does not change any more; what runs on, like the caller, ends now."""
    ended_s = now_s if math.isnan(task.ended_s) else task.ended_s
    return Task(task.name, task.lane, task.submitted_s, task.began_s, ended_s, task.thread)


def _queued_ms(tasks: Iterable[Task]) -> dict[str, float]:
    return {task.name: (task.began_s - task.submitted_s) * 1e3 for task in tasks}


def make_report(
    pending: Pending,
    side: UserSide,
    candidates: CheckedCandidates,
    scored: Scored,
    choice: Choice,
    encoding: EncodeReport,
    k: int,
    times: RankTimes,
) -> Report:
    """Put together what is known of a finished request.

    Args:
        pending: its handle.
        side: its user side.
        candidates: what was ranked.
        scored: what the stage, or the item prior, made of it.
        choice: the rung, and why.
        encoding: what encoding did not recognise, user, context and pair features together.
        k: results asked for.
        times: when what was done since ``rank`` was called.
    """
    began = pending.began_s
    state = side.state
    total_ms = (times.finished_s - began) * 1e3
    gathered_s = times.prepared_s + scored.gather_s
    found = _found(side)
    tasks = tuple(_ended(task, times.finished_s) for task in tuple(pending.tasks))
    program = _PROGRAMS[found]
    computed_s = next((task.began_s for task in tasks if task.name == "user"), side.fetched_s)
    user_spans = (
        ()
        if found == "prior"
        else (
            Span("user fetch", "user", side.fetch_began_s, side.fetched_s),
            Span(program, "user", computed_s, side.finished_s),
        )
    )
    stage = "item prior" if choice.rung == 3 else "real-time stage"
    spans = (
        Span("retrieval", "retrieval", began, times.called_s),
        *user_spans,
        *times.spans(),
        # With several calls, all gathers are drawn before all stages.
        Span("gather rows", "request", times.prepared_s, gathered_s),
        Span(stage, "request", gathered_s, times.finished_s),
    )
    return Report(
        user=shown_user(pending.user),
        version=pending.version,
        rung=choice.rung,
        rung_reason=choice.reason,
        retrieval=pending.retrieval,
        retrieval_reason=pending.retrieval_reason,
        program=pending.generation.bundle.kind,
        bucket=scored.bucket,
        calls=scored.calls,
        long_bucket=state.length,
        user_fetch_ms=(side.fetched_s - side.fetch_began_s) * 1e3,
        user_side_ms=(side.finished_s - side.fetch_began_s) * 1e3,
        retrieval_ms=(times.called_s - began) * 1e3,
        queue_ms=_queued_ms(tasks),
        wait_ms=(times.ready_s - times.supplied_s) * 1e3,
        items_wait_ms=(times.supplied_s - times.checked_s) * 1e3,
        prepare_ms=(times.checked_s - times.called_s + times.prepared_s - times.ready_s) * 1e3,
        gather_ms=scored.gather_s * 1e3,
        stage_ms=scored.stage_s * 1e3,
        total_ms=total_ms,
        hidden_ms=max(0.0, min(side.finished_s, times.called_s) - side.fetch_began_s) * 1e3,
        candidates=candidates.given,
        duplicates=candidates.duplicates,
        filtered=dict(candidates.filtered),
        computed_items=candidates.computed,
        uncomputed_items=dict(candidates.uncomputed),
        missing_items=scored.missing,
        not_rankable=scored.not_rankable,
        unscored=scored.unscored,
        category_overflow=_overflow(state.leaves),
        unknown_behaviours=state.unknown_behaviours,
        truncated_behaviours=state.truncated,
        unknown_features=encoding.as_dict(),
        unknown_user=side.unknown_user,
        user_state=found,
        user_state_age_ms=state.age_ms if state.hit else 0.0,
        k_asked=k,
        k_given=len(scored.order),
        empty_because="" if len(scored.order) else _why_empty(candidates, scored),
        deadline_ms=pending.deadline_ms,
        overrun_ms=0.0 if pending.deadline_ms is None else max(0.0, total_ms - pending.deadline_ms),
        spans=spans,
        tasks=tasks,
    )
