"""The OpenAPI document, and Schemathesis's requests by it: every answer is as the document says."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.applications import Starlette

from aif_jax.bundle import Bundle
from aif_jax.nearline import Tables
from aif_jax.observe import SlowRequests
from aif_jax.observe.prometheus import PrometheusMetrics
from aif_jax.server import create_app
from aif_jax.serving import Engine, InMemoryUsers
from support.served import ENGINE_CONFIG, K_MAX, SCHEMA, World

PATHS = ["/rank", "/health", "/stats", "/metrics", "/slow", "/slow/trace", "/openapi.json"]


@pytest.fixture(scope="module")
def app(bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World) -> Iterator[Starlette]:
    """Every route, over an engine that retrieves, and whose user source is down for strings."""

    def source(user: Any) -> Any:
        if isinstance(user, str):
            raise ConnectionError("the feature store is down")
        return users(abs(user) % 10)

    metrics, slow = PrometheusMetrics(), SlowRequests()
    with Engine(
        bundle, tables, users=source, retrieve=lambda request: world.ids[:30], config=ENGINE_CONFIG,
        observers=[metrics, slow],
    ) as engine:  # fmt: skip
        yield create_app(engine, metrics=metrics, slow=slow)


@pytest.fixture(scope="module")
def document(app: Starlette) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app).raw_schema


def answered(app: Starlette, path: str, examples: int) -> set[int]:
    """Send requests that fit the document, and others; check the answers by it; return their statuses."""
    # A schema cannot say that columns are of one length and ids of one kind: such requests are refused.
    excluded = [not_a_server_error, positive_data_acceptance]
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operation = schema[path]["POST" if path == "/rank" else "GET"]
    seen = set[int]()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
    def send(case: Any) -> None:
        response = case.call()
        case.validate_response(response, excluded_checks=excluded)
        assert response.status_code != 500
        seen.add(response.status_code)

    send()
    return seen


def test_document_has_every_route_and_no_other(document: Any) -> None:
    assert list(document["paths"]) == PATHS
    body = document["components"]["schemas"]["RankBody"]
    assert body["properties"]["k"]["maximum"] == K_MAX
    assert list(body["properties"]["context"]["properties"]) == [f.name for f in SCHEMA.context]
    responses = document["paths"]["/rank"]["post"]["responses"]
    assert {"200", "400", "404", "408", "413", "500", "502", "503", "504"} == responses.keys()
    assert "UserSourceError: The user source raised" in responses["502"]["description"].replace("`", "")


@pytest.mark.thorough
def test_rank_answers_to_generated_requests_conform_to_the_document(app: Starlette) -> None:
    assert {200, 400, 502} <= answered(app, "/rank", 600)


@pytest.mark.parametrize("path", PATHS[1:])
def test_other_answers_conform_to_the_document_whatever_was_ranked(app: Starlette, path: str) -> None:
    answered(app, "/rank", 20)
    assert 200 in answered(app, path, 10)
