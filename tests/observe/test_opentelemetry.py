import asyncio
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
from support.served import World


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


def retrieve_slowly(world: World) -> Any:
    def retrieve(request: Any) -> Any:
        if request.user == 3:
            raise ConnectionError("no route")
        time.sleep(0.03)
        return world.ids[:30]

    return retrieve


@pytest.mark.parametrize("way", ["rank", "rank_async"])
def test_spans_show_the_overlap_under_the_callers_own(
    make: Any, world: World, exported: Exported, way: str
) -> None:
    engine = make(OpenTelemetrySpans(exported.provider), retrieve=retrieve_slowly(world))
    before_ns = time.time_ns()
    with exported.tracer.start_as_current_span("page"):
        ranking = engine.rank(5) if way == "rank" else asyncio.run(engine.rank_async(5))
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


def test_failures_have_a_status_and_what_was_run(make: Any, world: World, exported: Exported) -> None:
    observer = OpenTelemetrySpans(exported.provider, with_user=True)
    engine = make(observer, retrieve=retrieve_slowly(world))
    with pytest.raises(RetrievalError):
        engine.rank(3)
    root = exported.spans()["aif.rank"]
    assert root.status.status_code == trace.StatusCode.ERROR
    assert "no route" in root.status.description
    assert root.attributes["error.type"] == "RetrievalError"
    assert root.attributes["enduser.id"] == "3"


def test_what_is_not_sampled_makes_no_spans(make: Any, world: World) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = make(OpenTelemetrySpans(provider))
    engine.begin(5).rank(world.ids[:20])
    assert exporter.get_finished_spans() == ()
    assert engine.stats()["observer_errors"] == {}
