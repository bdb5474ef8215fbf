"""Requests as OpenTelemetry spans, which show the overlap. Needs the extra ``tracing``.

The spans are made when a request has ended, from the times of its report: nothing is traced while it runs,
and a request that is not sampled costs almost nothing. Their parent is the caller's current span when the
ranking reaches it.
"""

import time

from aif_jax.extras import needs

needs("opentelemetry.trace", what=__name__)

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

from aif_jax.serving import Failure, Observer, Report

_ATTRIBUTES = (
    "version", "rung", "rung_reason", "retrieval", "retrieval_reason", "program", "bucket", "calls",
    "candidates", "missing_items", "user_state", "user_state_age_ms", "hidden_ms", "wait_ms", "k_given",
    "deadline_ms", "overrun_ms",
)  # fmt: skip


class OpenTelemetrySpans(Observer):
    """Makes a span ``aif.rank`` of each request, with one child for each piece of its time.

    Pieces of the user side and of retrieval overlap; attribute ``aif.lane`` distinguishes them. The
    user's id is left out, because traces go far; set ``with_user`` to have it as ``enduser.id``.

    Args:
        provider: provider of the tracer; ``None`` for the global one.
        with_user: puts the user's id on the spans.
    """

    def __init__(self, provider: TracerProvider | None = None, *, with_user: bool = False):
        self._tracer = trace.get_tracer("aif_jax", tracer_provider=provider)
        self._with_user = with_user

    def ranked(self, report: Report) -> None:
        """Make the spans of a ranking."""
        clock = _Clock()
        began_s = min(span.start_s for span in report.spans)
        root = self._tracer.start_span("aif.rank", kind=SpanKind.INTERNAL, start_time=clock.ns(began_s))
        if root.is_recording():
            for name in _ATTRIBUTES:
                if (value := getattr(report, name)) is not None:
                    root.set_attribute(f"aif.{name}", value)
            self._name_user(root, report.user)
            inside = trace.set_span_in_context(root)
            for span in report.spans:
                self._child(inside, span.name, span.lane, clock, span.start_s, span.end_s)
            for task in report.tasks:
                self._child(inside, f"queued: {task.name}", "queue", clock, task.submitted_s, task.began_s)
        root.end(clock.ns(max(span.end_s for span in report.spans)))

    def failed(self, failure: Failure) -> None:
        """Make the span of a request that ended in an error, with the tasks that had run for it."""
        clock = _Clock()
        ended_s = failure.began_s + failure.total_ms / 1e3
        root = self._tracer.start_span("aif.rank", start_time=clock.ns(failure.began_s))
        if root.is_recording():
            root.set_status(Status(StatusCode.ERROR, failure.message))
            root.set_attribute("aif.version", failure.version)
            root.set_attribute("error.type", failure.error)
            if failure.deadline_ms is not None:
                root.set_attribute("aif.deadline_ms", failure.deadline_ms)
            self._name_user(root, failure.user)
            inside = trace.set_span_in_context(root)
            for task in failure.tasks:
                self._child(inside, f"queued: {task.name}", "queue", clock, task.submitted_s, task.began_s)
                # A task that still runs, or had no end when the error came, ends with the request.
                end_s = task.ended_s if task.ended_s < ended_s else ended_s
                self._child(inside, task.name, task.lane, clock, task.began_s, max(task.began_s, end_s))
        root.end(clock.ns(ended_s))

    def _child(
        self, inside: Context, name: str, lane: str, clock: "_Clock", start_s: float, end_s: float
    ) -> None:
        span = self._tracer.start_span(
            name, context=inside, attributes={"aif.lane": lane}, start_time=clock.ns(start_s)
        )
        span.end(clock.ns(end_s))

    def _name_user(self, span: trace.Span, user: int | str) -> None:
        if self._with_user:
            span.set_attribute("enduser.id", str(user))


class _Clock:
    """``time.perf_counter`` in nanoseconds since the epoch, as of now: the two clocks may drift apart."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.perf_counter_ns()

    def ns(self, seconds: float) -> int:
        return round(seconds * 1e9) + self._offset
