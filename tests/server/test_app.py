"""The HTTP application: routes, status codes, messages."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import ItemIndex, Tables
from aif_jax.observe import SlowRequests
from aif_jax.observe.prometheus import PrometheusMetrics
from aif_jax.server import create_app
from aif_jax.serving import Engine, Filters, InMemoryUsers
from aif_jax.types import Candidates, Request
from support.served import ENGINE_CONFIG, World


class Client:
    """Speaks HTTP to an application in this process, each request in an event loop of its own."""

    def __init__(self, engine: Engine, **observers: Any):
        self._transport = httpx.ASGITransport(app=create_app(engine, **observers))

    def post(self, path: str, **body: Any) -> httpx.Response:
        return asyncio.run(self._send("POST", path, **body))

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self._send("GET", path))

    async def _send(self, method: str, path: str, **body: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://engine") as client:
            return await client.request(method, path, **body)


@pytest.fixture(scope="module")
def own(bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World) -> Iterator[Engine]:
    """An engine with a retrieve of its own, which fails for user 8 and is slow for user 9."""

    def retrieve(request: Request) -> Candidates:
        if request.user == 8:
            raise ConnectionError("index is down")
        if request.user == 9:
            time.sleep(0.2)
        return Candidates(*world.candidates(30))

    with Engine(bundle, tables, users=users, retrieve=retrieve, config=ENGINE_CONFIG) as made:
        yield made


@pytest.fixture(scope="module")
def client(own: Engine) -> Client:
    return Client(own)


def test_rank_route_given_candidates_are_ranked(client: Client, own: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    body = {
        "user": 4, "context": {"hour": 9}, "k": 6, "candidates": ids.tolist(),
        "pair": {name: values.tolist() for name, values in pair.items()},
    }  # fmt: skip
    answer = client.post("/rank", json=body)
    assert answer.status_code == 200
    expected = own.begin(4, {"hour": 9}).rank(ids, pair, k=6)
    given = answer.json()
    assert given["ids"] == expected.ids.tolist()  # above 2^32, and none lost a bit
    np.testing.assert_array_equal(np.float32(given["scores"]), expected.scores)
    assert given["heads"].keys() == {"ctr", "cvr"}
    assert given["version"] == own.version
    assert "report" not in given


@pytest.mark.parametrize("kind", [int, "item {}".format])
def test_rank_route_ids_are_answered_as_given(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World, kind: Callable[[int], Any]
) -> None:
    ids = [kind(2**64 - 1 - place) for place in range(20)]  # as floats, the integers would be one
    columns = {name: column[:20] for name, column in world.columns.items()}
    index = ItemIndex.build(bundle, ids, columns, world.content[:20])
    with Engine(bundle, Tables(index, tables.behaviours), users=users, config=ENGINE_CONFIG) as engine:
        body = {"user": 4, "k": 10, "candidates": ids, "filters": {"exclude": ids[10:15]}}
        answer = json.loads(Client(engine).post("/rank", json=body).text)
    assert len(answer["ids"]) == 10
    assert set(answer["ids"]) <= {*ids[:10], *ids[15:]}


def test_rank_route_without_candidates_retrieves(client: Client, own: Engine) -> None:
    answer = client.post("/rank", json={"user": 4, "report": True}).json()
    assert answer["ids"] == own.rank(4).ids.tolist()
    assert answer["report"]["candidates"] == 30


def test_rank_route_table_of_candidates_ranks_as_ids(client: Client, own: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    table = {"id": ids.tolist(), **{name: values.tolist() for name, values in pair.items()}}
    answer = client.post("/rank", json={"user": 4, "k": 6, "candidates": table}).json()
    assert answer["ids"] == own.begin(4).rank(ids, pair, k=6).ids.tolist()


@pytest.mark.parametrize("own_candidates", [True, False])
def test_rank_route_filters_leave_out_the_same(
    client: Client, own: Engine, world: World, own_candidates: bool
) -> None:
    ids, pair = world.candidates(30)
    table = {"id": ids.tolist(), **{name: values.tolist() for name, values in pair.items()}}
    best = own.begin(4).rank(ids, pair).ids.tolist()
    body = {"user": 4, "report": True, "filters": {"exclude": best[:3], "categories": ["noir", "drama"]}}
    answer = client.post("/rank", json=body if own_candidates else {**body, "candidates": table}).json()
    expected = own.begin(4).rank(ids, pair, filters=Filters(best[:3], ["noir", "drama"]))
    assert answer["ids"] == expected.ids.tolist()
    assert answer["report"]["filtered"] == expected.report.filtered
    assert answer["report"]["filtered"]["exclude"] == 3


@pytest.mark.parametrize(
    ("body", "status", "error", "message"),
    [
        ({"user": "nobody"}, 404, "UnknownUserError", "'nobody'"),
        ({}, 400, "RequestError", "body: has no user"),
        ([1], 400, "RequestError", "got a JSON list"),
        ({"user": 1, "colour": 3}, 400, "RequestError", "['colour'] are unknown"),
        ({"user": 1, "candidates": []}, 400, "RequestError", "there are none"),
        ({"user": 1, "candidates": [1.5]}, 400, "RequestError", "float"),
        ({"user": 1, "candidates": "abc"}, 400, "RequestError", "got a str"),
        ({"user": 1, "context": [1]}, 400, "RequestError", "context: got a list"),
        ({"user": 1, "context": {"wind": 1}}, 400, "RequestError", "['wind']"),
        ({"user": 1, "pair": {"bid": [1]}}, 400, "RequestError", "no candidates"),
        ({"user": 1, "candidates": [1, 2], "pair": {"bid": [1]}}, 400, "RequestError", "'bid'"),
        ({"user": 1, "k": 1000}, 400, "RequestError", "k: got 1000"),
        ({"user": 1, "deadline_ms": "soon"}, 400, "RequestError", "deadline_ms: got 'soon'"),
        ({"user": 1, "filters": [1]}, 400, "RequestError", "filters: got a list"),
        ({"user": 1, "filters": {"brand": "x"}}, 400, "RequestError", "['brand'] are unknown"),
        ({"user": 1, "filters": {"exclude": [1.5]}}, 400, "RequestError", "exclude: row 0 is 1.5"),
        ({"user": 1, "filters": {"exclude": ["a"]}}, 400, "RequestError", "exclude: got strings"),
        ({"user": 1, "filters": {"categories": "noir"}}, 400, "RequestError", "categories: got 'noir'"),
        ({"user": 1, "filters": {"categories": ["opera"]}}, 400, "RequestError", "knows none of these"),
        ({"user": 1, "candidates": {"item": [1]}}, 400, "RequestError", "one named 'id'"),
        ({"user": 1, "candidates": {"id": [1], "hue": [2]}}, 400, "RequestError", "columns ['hue']"),
        ({"user": 1.5}, 400, "RequestError", "user: got float"),
        ({"user": 8}, 502, "RetrievalError", "index is down"),
        ({"user": 9, "deadline_ms": 30}, 504, "DeadlineExceededError", "retrieval was not done"),
    ],
)
def test_rank_route_bad_request_gives_status_and_message(
    client: Client, body: Any, status: int, error: str, message: str
) -> None:
    answer = client.post("/rank", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert message in answer.json()["message"]


def test_rank_route_body_not_json_is_refused(client: Client) -> None:
    answer = client.post("/rank", content=b"{")
    assert answer.status_code == 400
    assert "body: is not JSON" in answer.json()["message"]


def test_health_and_stats_routes_show_engine(client: Client, own: Engine) -> None:
    assert client.get("/health").json() == {"status": "ok", "version": own.version, "program": "native"}
    client.post("/rank", json={"user": 4})
    stats = client.get("/stats").json()
    assert stats["requests"]["ranked"] >= 1
    assert stats["compilations"] == 0
    assert stats["item_index"]["rows"] == 150
    assert client.get("/rank").status_code == 405


def test_routes_closed_engine_is_unavailable(bundle: Bundle, tables: Tables, users: InMemoryUsers) -> None:
    engine = Engine(bundle, tables, users=users, config=ENGINE_CONFIG)
    engine.close()
    health = Client(engine).get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "closed")
    answer = Client(engine).post("/rank", json={"user": 1, "candidates": [1]})
    assert (answer.status_code, answer.json()["error"]) == (503, "SchedulerError")


def test_metrics_and_slow_routes_exist_only_where_given(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World
) -> None:
    metrics, slow = PrometheusMetrics(), SlowRequests()
    with Engine(bundle, tables, users=users, config=ENGINE_CONFIG, observers=[metrics, slow]) as engine:
        client = Client(engine, metrics=metrics, slow=slow)
        ids, _ = world.candidates(20)
        assert client.post("/rank", json={"user": 4, "candidates": ids.tolist()}).status_code == 200
        assert client.post("/rank", json={"user": 4, "candidates": ids.tolist(), "k": 0}).status_code == 400
        scraped = client.get("/metrics")
        assert scraped.headers["content-type"] == metrics.content_type
        assert "aif_requests_ranked_total 1.0" in scraped.text
        kept = client.get("/slow").json()
        assert [report["user"] for report in kept["worst"]] == [4]
        assert [failure["error"] for failure in kept["failures"]] == ["RequestError"]
        events = client.get("/slow/trace").json()["traceEvents"]
        assert {"real-time stage", "RequestError"} <= {event["name"] for event in events}
        plain = Client(engine)
        assert [plain.get(path).status_code for path in ("/metrics", "/slow", "/slow/trace")] == [404] * 3
