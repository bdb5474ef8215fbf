"""The account of one ranking: the facts of its report, most of them collected while the stage runs."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving.candidates import ParsedCandidates
from aif_jax.serving.ladder import Choice
from aif_jax.serving.missing_items import PendingRows
from aif_jax.serving.report import Facts, Retrieval, Span, Task, UserStateOrigin, shown_user
from aif_jax.serving.stage import Scored
from aif_jax.serving.tasks import Deadline
from aif_jax.serving.user_side import UserSide
from aif_jax.types import UserId

_USER_PROGRAMS: dict[UserStateOrigin, str] = {
    "computed": "user program", "extended": "user program", "hit": "user state from cache",
    "joined": "another request's user program", "prior": "user prior",
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


class Account(NamedTuple):
    """Account of one ranking while its stage runs, from `describe`.

    Attributes:
        values: fields of the report that are known.
        spans: pieces of time that are known.
        ran: tasks of the request.
        deadline: of the request.
        prepared_s: candidates encoded.
        rung: rung of the ladder.
    """

    values: dict[str, Any]
    spans: list[Span]
    ran: Sequence[Task]
    deadline: Deadline
    prepared_s: float
    rung: int

    def finish(self, scored: Scored) -> Facts:
        """Return the facts, now that the candidates are scored by the stage or the item prior."""
        finished_s = time.perf_counter()
        values, spans, ran, deadline, prepared_s, rung = self
        total_ms, given = (finished_s - deadline.began_s) * 1e3, len(scored.order)
        values["bucket"], values["calls"] = scored.bucket, scored.calls
        values["gather_ms"], values["stage_ms"] = scored.gather_s * 1e3, scored.stage_s * 1e3
        values["total_ms"] = total_ms
        values["missing_items"], values["not_rankable"] = scored.missing, scored.not_rankable
        values["unscored"], values["k_given"] = scored.unscored, given
        values["empty_because"] = "" if given else _why_empty(values)
        values["overrun_ms"] = 0.0 if deadline.ms is None else max(0.0, total_ms - deadline.ms)
        gathered_s = prepared_s + scored.gather_s
        # With several calls, all gathers are drawn before all stages.
        spans.append(Span("gather rows", "request", prepared_s, gathered_s))
        stage = "item prior" if rung == 3 else "real-time stage"
        spans.append(Span(stage, "request", gathered_s, finished_s))
        return Facts(values, spans, ran, finished_s)


def describe(
    request_id: str,
    user: UserId,
    version: str,
    program: str,
    deadline: Deadline,
    retrieval: Retrieval,
    retrieval_reason: str | None,
    ran: Sequence[Task],
    side: UserSide,
    parsed: ParsedCandidates,
    rows: PendingRows | None,
    choice: Choice,
    encoding: EncodeReport,
    k: int,
    times: RankTimes,
) -> Account:
    """Put together the part of an account that does not depend on the stage.

    Args:
        request_id, user, deadline: of the request.
        version, program: version of the bundle that scores it, and kind of its programs.
        retrieval, retrieval_reason: origin of the candidates, and why they are the fallback's, if they are.
        ran: tasks of the request; may still grow.
        side: the user side.
        parsed: the candidates.
        rows: missing rows that were waited for, if any.
        choice: the rung, and why.
        encoding: values of pair features and filters that encoding did not recognise.
        k: results wanted.
        times: of the ranking so far.
    """
    began_s, state = deadline.began_s, side.state
    called_s, parsed_s, ready_s, prepared_s = times
    supplied_s = parsed_s if rows is None else rows.ended_s
    if side.choice.rung >= 2:
        origin: UserStateOrigin = "prior"
    else:
        way: UserStateOrigin = "extended" if state.why == "extended" else "computed"
        origin = "hit" if state.hit else "joined" if side.joined else way
    spans = [Span("retrieval", "retrieval", began_s, called_s)]
    queue_ms, computed_s = {}, side.fetched_s
    for task in ran:
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
    encoding.add(side.encoding)
    overflow = state.leaves.get("state/sim_overflow")
    values = {
        "request_id": request_id,
        "user": user if type(user) in (int, str) else shown_user(user),
        "version": version,
        "rung": choice.rung,
        "rung_reason": choice.reason,
        "retrieval": retrieval,
        "retrieval_reason": retrieval_reason,
        "program": program,
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
        "padded": parsed.padded,
        "duplicates": parsed.duplicates,
        "filtered": parsed.filtered,
        "computed_items": 0 if rows is None else rows.computed,
        "uncomputed_items": {} if rows is None else dict(rows.uncomputed),
        "category_overflow": 0 if overflow is None else int(np.asarray(overflow)[0]),
        "unknown_behaviours": state.unknown_behaviours,
        "truncated_behaviours": state.truncated,
        "unknown_features": encoding.as_dict(),
        "unknown_user": side.unknown_user,
        "user_state": origin,
        "user_batch": side.batch if origin in ("computed", "extended") else 0,
        "user_state_age_ms": state.age_ms if state.hit else 0.0,
        "k_asked": k,
        "deadline_ms": deadline.ms,
    }
    return Account(values, spans, ran, deadline, prepared_s, choice.rung)


def _why_empty(values: Mapping[str, Any]) -> str:
    numbers = (
        (values["padded"], "were padding"),
        (values["duplicates"], "came in twice"),
        (values["filtered"].get("exclude", 0), "excluded by the request"),
        (values["filtered"].get("categories", 0), "of no category that the request allows"),
        (values["missing_items"], "without an item row"),
        (values["not_rankable"], "not rankable"),
        (values["unscored"], "without a finite score"),
    )
    reasons = ", ".join(f"{number} {reason}" for number, reason in numbers if number)
    return f"of {values['candidates']} candidates none was left: {reasons}"
