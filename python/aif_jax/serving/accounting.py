"""From what a request left behind to the report of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving.candidates import CheckedCandidates
from aif_jax.serving.ladder import Choice
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Report, Span
from aif_jax.serving.stages import Scored
from aif_jax.serving.user_side import UserSide


def added(encoding: EncodeReport) -> EncodeReport:
    """Return a copy that can be added to."""
    copy = EncodeReport()
    for name in EncodeReport.__slots__:
        getattr(copy, name).update(getattr(encoding, name))
    return copy


def _overflow(leaves: Mapping[str, Any]) -> int:
    overflow = leaves.get("state/sim_overflow")
    return 0 if overflow is None else int(np.asarray(overflow)[0])


def make_report(
    pending: Pending,
    side: UserSide,
    candidates: CheckedCandidates,
    scored: Scored,
    choice: Choice,
    encoding: EncodeReport,
    k: int,
    called_s: float,
    ready_s: float,
    prepared_s: float,
    finished_s: float,
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
        called_s: when ``rank`` was called, on the clock of ``time.perf_counter`` as the others are.
        ready_s: when the user side was there.
        prepared_s: when the candidates were checked and encoded.
        finished_s: when the ranking was there.
    """
    began = pending.began_s
    state = side.state
    total_ms = (finished_s - began) * 1e3
    gathered_s = prepared_s + scored.gather_s
    prior = side.choice.rung == 2
    program = "user state from cache" if state.hit else "user program"
    user_spans = (
        ()
        if prior
        else (
            Span("user fetch", "user", side.fetch_began_s, side.fetched_s),
            Span(program, "user", side.fetched_s, side.finished_s),
        )
    )
    spans = (
        Span("retrieval", "retrieval", began, called_s),
        *user_spans,
        Span("wait for the user side", "request", called_s, ready_s),
        Span("check and encode candidates", "request", ready_s, prepared_s),
        # With several calls, all gathers are drawn before all stages.
        Span("gather rows", "request", prepared_s, gathered_s),
        Span("item prior" if choice.rung == 3 else "real-time stage", "request", gathered_s, finished_s),
    )
    return Report(
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
        retrieval_ms=(called_s - began) * 1e3,
        wait_ms=(ready_s - called_s) * 1e3,
        prepare_ms=(prepared_s - ready_s) * 1e3,
        gather_ms=scored.gather_s * 1e3,
        stage_ms=scored.stage_s * 1e3,
        total_ms=total_ms,
        hidden_ms=max(0.0, min(side.finished_s, called_s) - side.fetch_began_s) * 1e3,
        candidates=candidates.given,
        duplicates=candidates.duplicates,
        missing_items=scored.missing,
        not_rankable=scored.not_rankable,
        unscored=scored.unscored,
        category_overflow=_overflow(state.leaves),
        unknown_behaviours=state.unknown_behaviours,
        truncated_behaviours=state.truncated,
        unknown_features=encoding.as_dict(),
        unknown_user=side.unknown_user,
        user_state="prior" if prior else "hit" if state.hit else "computed",
        k_asked=k,
        k_given=len(scored.order),
        deadline_ms=pending.deadline_ms,
        overrun_ms=0.0 if pending.deadline_ms is None else max(0.0, total_ms - pending.deadline_ms),
        spans=spans,
    )
