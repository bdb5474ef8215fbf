"""Result of a request: its ranking, and a report of where its time went and what was left out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from aif_jax import timeline
from aif_jax.shown import shown
from aif_jax.types import UserId, UserRecord

Retrieval = Literal["caller", "own", "fallback"]
UserStateOrigin = Literal["computed", "extended", "hit", "joined", "prior"]


class Span(NamedTuple):
    """One piece of a request's time, on the clock of ``time.perf_counter``.

    Attributes:
        name: what ran.
        lane: where: ``request`` (the thread that asked), ``user`` (the user side), ``retrieval``.
        start_s: start, in seconds.
        end_s: end, in seconds.
    """

    name: str
    lane: str
    start_s: float
    end_s: float


@dataclasses.dataclass(slots=True)
class Task:
    """Something that the scheduler ran for a request; times on the clock of ``time.perf_counter``.

    Attributes:
        name: ``user_fetch``, ``user``, ``users`` (the user program where it may be of several), ``retrieve``,
            ``candidates``, ``items`` or ``stage``.
        lane: ``blocking`` or ``compute``.
        submitted_s: when it was handed in, in seconds.
        began_s: when a thread took it up.
        ended_s: when it was done; NaN while it runs. A plain ``retrieve`` under `Engine.rank_async` may
            continue with the ``stage``, and then ends after it.
        thread: the operating system's number of that thread.
    """

    name: str
    lane: str
    submitted_s: float
    began_s: float
    ended_s: float
    thread: int


def shown_user(user: Any) -> UserId:
    """Return a user id, or what was given for one, as JSON can show it."""
    if isinstance(user, str):
        return user
    return int(user) if isinstance(user, (int, np.integer)) else shown(user)


class Report(NamedTuple):
    """Facts about one ranking. Times are milliseconds of wall time.

    Attributes:
        request_id: name of the request, the engine's own; the same in a log of requests.
        user: whom it was for.
        version: version of the bundle that scored the request.
        rung: how far the response was degraded to keep its deadline, see `aif_jax.serving.ladder`: 0 full
            quality; 1 without the long sequence; 2 with the user prior; 3 by the item prior, without the
            stage.
        rung_reason: why it is not 0: ``user source late``, ``user program late``, ``overloaded``, ``user
            source failed``, ``stage would not fit``; ``None`` on rung 0.
        retrieval: where the candidates came from: the ``caller``, the engine's ``own`` retrieve, or its
            ``fallback``.
        retrieval_reason: why they are the fallback: ``late``, ``overloaded``, ``not candidates``, or
            ``raised`` and an exception's name; otherwise ``None``.
        program: ``native`` or ``portable``.
        bucket: candidates that one call of the compiled stage takes.
        calls: calls of the stage; more than 1 if there were more candidates than the largest bucket.
        long_bucket: history length for which the user side was compiled.
        user_fetch_ms: the user source.
        user_side_ms: from the begin of the fetch to the user state, fetch included.
        retrieval_ms: from `begin` to `rank`, which the caller or the engine spent on retrieval.
        queue_ms: how long what was run for the request waited for a thread, by task: ``user_fetch``,
            ``user`` or ``users``, ``retrieve``, ``candidates``, ``items``, ``stage``.
        wait_ms: how long `rank` waited for the user state: what could not be hidden.
        items_wait_ms: how long `rank` waited for missing item rows that were being computed.
        prepare_ms: checking, filtering and encoding candidates and pair features. What needs no user side is
            done before the wait for it.
        gather_ms: until the compiled stage was called: rows gathered on the host or looked up on a device,
            where the stage does not read them itself, and operands laid out.
        stage_ms: the compiled real-time stage, from call to results.
        total_ms: from `begin` to the ranking.
        hidden_ms: user-side time that passed while retrieval was running anyway.
        candidates: ids that came in, before anything was left out.
        padded: candidates that were -1, which fills up a retrieval that found fewer; they are left out.
        duplicates: candidates that came in before in the same request; the first of each is kept, with its
            pair features.
        filtered: candidates that the request's filters left out, by filter: ``exclude``, ``categories``.
        computed_items: candidates whose item row was computed because it was missing, and came in time.
        uncomputed_items: candidates whose row should have been computed and was not, by reason:
            ``over_bound`` (more than a request may have computed), ``unknown`` to the item source, ``late``,
            ``busy`` (too many calls under way), ``error:`` and its name. Missing all the same.
        missing_items: candidates without an item row, dropped or scored as unknown by the engine's policy.
        not_rankable: candidates whose item is in the index but not rankable; always dropped.
        unscored: candidates dropped because their score is not finite (a division by a missing bid, the
            logarithm of a zero).
        unknown_behaviours: behaviours of the history whose item is not in the behaviour table.
        category_overflow: behaviours whose category found no slot among the model's ``sim_slots``.
        truncated_behaviours: behaviours beyond the model's ``long_length``, the oldest.
        unknown_features: values that encoding did not recognise, by reason and then by feature. Those of the
            user are known only when the user state was computed for this request.
        unknown_user: whether the source did not know the user.
        user_state: ``computed`` for this request, ``extended`` (the same, from what was kept with an earlier
            one), a cache ``hit``, ``joined`` (computed for another request of the same user at the same
            time), or the user ``prior``.
        user_batch: users whose states were computed in one call of the user program, this one included; 0 if
            it was not computed for this request.
        user_state_age_ms: since a cached state was computed; 0 for others.
        k_asked: results asked for.
        k_given: results given: fewer when there are fewer candidates that can be ranked.
        empty_because: why no result was given, if none was; else empty.
        deadline_ms: the deadline, if there was one.
        overrun_ms: by how much the deadline was missed in the end; a running stage is never interrupted.
        spans: the pieces of the request's time.
        tasks: what the scheduler ran for it, and when.
    """

    request_id: str
    user: UserId
    version: str
    rung: int
    rung_reason: str | None
    retrieval: Retrieval
    retrieval_reason: str | None
    program: str
    bucket: int
    calls: int
    long_bucket: int
    user_fetch_ms: float
    user_side_ms: float
    retrieval_ms: float
    queue_ms: Mapping[str, float]
    wait_ms: float
    items_wait_ms: float
    prepare_ms: float
    gather_ms: float
    stage_ms: float
    total_ms: float
    hidden_ms: float
    candidates: int
    padded: int
    duplicates: int
    filtered: Mapping[str, int]
    computed_items: int
    uncomputed_items: Mapping[str, int]
    missing_items: int
    not_rankable: int
    unscored: int
    unknown_behaviours: int
    category_overflow: int
    truncated_behaviours: int
    unknown_features: Mapping[str, Mapping[str, int]]
    unknown_user: bool
    user_state: UserStateOrigin
    user_batch: int
    user_state_age_ms: float
    k_asked: int
    k_given: int
    empty_because: str
    deadline_ms: float | None
    overrun_ms: float
    spans: tuple[Span, ...]
    tasks: tuple[Task, ...]

    def __repr__(self) -> str:
        return (
            f"Report(user={self.user!r}, rung={self.rung}, {self.total_ms:.2f} ms: retrieval "
            f"{self.retrieval_ms:.2f}, waited {self.wait_ms:.2f}, stage {self.stage_ms:.2f}, hidden "
            f"{self.hidden_ms:.2f}; {self.k_given} of {self.candidates} candidates)"
        )

    def __str__(self) -> str:
        """Draw the timeline as text."""
        return f"{self!r}\n{timeline.as_text(timeline.bars_of(self.spans))}"

    def _repr_html_(self) -> str:
        """Draw the timeline for a notebook."""
        return timeline.as_html(
            f"user {self.user}, {self.total_ms:.2f} ms", timeline.bars_of(self.spans), self._facts()
        )

    def _facts(self) -> dict[str, str]:
        facts = {
            "hidden behind retrieval": f"{self.hidden_ms:.2f} ms of {self.user_side_ms:.2f} ms of user side",
            "waited": f"{self.wait_ms:.2f} ms for the user side, {self.items_wait_ms:.2f} ms for item rows",
            "answer": f"{self.k_given} of {self.k_asked} wanted, from {self.candidates} candidates",
            "user state": self.user_state,
            "bundle": f"{self.version[:12]}, {self.program} programs",
        }
        if self.rung:
            facts["degraded"] = f"rung {self.rung}: {self.rung_reason}"
        left_out = {
            "padding": self.padded, "duplicates": self.duplicates, "filtered": sum(self.filtered.values()),
            "missing": self.missing_items, "not rankable": self.not_rankable, "unscored": self.unscored,
        }  # fmt: skip
        if shown := [f"{number} {name}" for name, number in left_out.items() if number]:
            facts["left out"] = ", ".join(shown)
        return facts

    def to_json(self) -> dict[str, Any]:
        """Return everything but spans and tasks as JSON-serialisable values."""
        return {name: value for name, value in self._asdict().items() if name not in ("spans", "tasks")}


class Facts:
    """Facts of one ranking; the report is put together from them when somebody reads it.

    Args:
        values: fields of the report, all but ``spans`` and ``tasks``.
        spans: pieces of the request's time.
        ran: tasks of the request.
        finished_s: when the ranking was there, on the clock of ``time.perf_counter``.
    """

    __slots__ = ("_finished_s", "_ran", "_report", "_spans", "values")

    def __init__(
        self, values: Mapping[str, Any], spans: Sequence[Span], ran: Sequence[Task], finished_s: float
    ):
        self.values = values
        self._spans = spans
        self._ran = ran
        self._finished_s = finished_s
        self._report: Report | None = None

    def report(self) -> Report:
        """Return the report; always the same one."""
        if self._report is None:
            finished_s, tasks = self._finished_s, []
            for task in tuple(self._ran):
                # A task that ran on, like the caller's or that of a plain retrieve, ended with the ranking.
                ended_s = task.ended_s if task.ended_s <= finished_s else finished_s
                tasks.append(dataclasses.replace(task, ended_s=ended_s))
            self._report = Report(**self.values, spans=tuple(self._spans), tasks=tuple(tasks))
        return self._report


class Served(NamedTuple):
    """Inputs of a ranking. Columns may be the caller's: read them at once, or copy them.

    Attributes:
        record: the user's record; an empty one for an unknown user, ``None`` where the user prior stood in.
        context: raw context features.
        ids: candidates that no filter left out, as they were given, each once, ``[n]``.
        pair: raw pair features by name, ``[N]`` of all that came in.
        rows: positions of the ids among all that came in, int64 ``[n]``; ``None`` if they are all of them.
    """

    record: UserRecord | None
    context: Mapping[str, Any]
    ids: np.ndarray
    pair: Mapping[str, Any]
    rows: np.ndarray | None


class Ranking:
    """The best candidates of a request, best first; equal scores in the order in which the candidates came.

    Attributes:
        ids: item ids as they were given: integers (uint64) or strings, ``[k]``.
        scores: float32 ``[k]``: the model's score expression.
        heads: float32 ``[k]`` by head: its probability, calibrated.
        facts: facts that the report is made of.
    """

    __slots__ = ("facts", "heads", "ids", "scores")

    def __init__(self, ids: np.ndarray, scores: np.ndarray, heads: Mapping[str, np.ndarray], facts: Facts):
        self.ids = ids
        self.scores = scores
        self.heads = heads
        self.facts = facts

    @property
    def report(self) -> Report:
        """Account of the request."""
        return self.facts.report()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        best = ", ".join(
            f"{id_!r}: {score:.4g}"
            for id_, score in zip(self.ids[:3].tolist(), self.scores[:3].tolist(), strict=True)
        )
        more = ", ..." if len(self) > 3 else ""
        degraded = f", rung {self.report.rung}" if self.report.rung else ""
        return f"Ranking({len(self)} items in {self.report.total_ms:.2f} ms{degraded}: {{{best}{more}}})"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
