"""Spans of OpenTelemetry."""

import time
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from aif_jax.errors import RetrievalError
from aif_jax.observe.opentelemetry import OpenTelemetrySpans
from aif_jax.serving import Engine
from support.held import computed
from support.served import Make, World, ran, ways


class Exported:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def spans(self) -> dict[str, Any]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def exported() -> Exported:
    return Exported()


@pytest.fixture
def traced(make: Make, world: World, exported: Exported) -> Make:
    """A function from arguments of the observer to an engine whose retrieval ends after the user side."""

    def make_engine(**given: Any) -> Engine:
        def retrieve(request: Any) -> Any:
            if request.user == 3:
                raise ConnectionError("no route")
            assert computed(engine)
            return world.ids[:30]

        engine = make(observers=[OpenTelemetrySpans(exported.provider, **given)], retrieve=retrieve)
        return engine

    return make_engine


@ways
def test_opentelemetry_spans_show_overlap_under_callers_span(
    traced: Make, exported: Exported, way: str
) -> None:
    engine = traced()
    before_ns = time.time_ns()
    with exported.tracer.start_as_current_span("page"):
        ranking = ran(getattr(engine, way), 5)
    after_ns = time.time_ns()
    spans = exported.spans()
    root, page = spans["aif.rank"], spans["page"]
    assert root.parent.span_id == page.context.span_id
    assert root.attributes["aif.rung"] == 0
    assert root.attributes["aif.user_state"] == "computed"
    assert "enduser.id" not in root.attributes
    for name in ("retrieval", "user fetch", "user program", "real-time stage", "queued: user"):
        span = spans[name]
        assert span.parent.span_id == root.context.span_id
        assert before_ns - 10**6 <= root.start_time <= span.start_time <= span.end_time
        assert span.end_time <= root.end_time <= after_ns + 10**6
    retrieval, program = spans["retrieval"], spans["user program"]
    assert retrieval.start_time < program.start_time < program.end_time < retrieval.end_time
    assert (root.end_time - root.start_time) / 1e6 == pytest.approx(ranking.report.total_ms, abs=0.1)


def test_opentelemetry_failure_has_error_status(traced: Make, exported: Exported) -> None:
    engine = traced(with_user=True)
    with pytest.raises(RetrievalError):
        engine.rank(3)
    root = exported.spans()["aif.rank"]
    assert root.status.status_code == trace.StatusCode.ERROR
    assert "no route" in root.status.description
    assert root.attributes["error.type"] == "RetrievalError"
    assert root.attributes["enduser.id"] == "3"


def test_opentelemetry_unsampled_request_makes_no_spans(make: Make, world: World) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = make(observers=[OpenTelemetrySpans(provider)])
    engine.begin(5).rank(world.ids[:20])
    assert exporter.get_finished_spans() == ()
    assert engine.stats()["observer_errors"] == {}
