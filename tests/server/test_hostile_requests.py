"""The HTTP application under malformed, oversized and random requests: documented statuses, strict JSON."""

import asyncio
import contextlib
import gzip
import json
import math
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError
from aif_jax.nearline import Tables
from aif_jax.observe import SlowRequests
from aif_jax.observe.prometheus import PrometheusMetrics
from aif_jax.server import create_app
from aif_jax.serving import Engine, InMemoryUsers
from aif_jax.strict_json import parse
from support.served import ENGINE_CONFIG, GENRES, World

DOCUMENTED = {200, 400, 404, 405, 408, 413, 502, 503, 504}


def strict(answer: httpx.Response) -> Any:
    """Return the values of an answer that has to be strict JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a key is given twice"
        return dict(pairs)

    assert answer.headers["content-type"] == "application/json"
    values = json.loads(answer.content.decode(), parse_constant=refuse, object_pairs_hook=once)
    json.dumps(values, ensure_ascii=False).encode()  # no lone surrogates
    if answer.status_code != 200 and "status" not in values:
        assert values.keys() == {"error", "message"}
        assert len(answer.content) < 5000
    return values


class Client:
    """Speaks HTTP to an application; errors that it does not handle are answers, as behind a server."""

    def __init__(self, app: Any):
        self._transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    def send(self, method: str, path: str, **body: Any) -> httpx.Response:
        return asyncio.run(self.sent(method, path, **body))

    async def sent(self, method: str, path: str, **body: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://engine") as client:
            return await client.request(method, path, **body)

    def post(self, **body: Any) -> httpx.Response:
        return self.send("POST", "/rank", **body)


@pytest.fixture(scope="module")
def slow() -> SlowRequests:
    return SlowRequests()


@pytest.fixture(scope="module")
def observed(bundle: Bundle, tables: Tables, world: World, slow: SlowRequests) -> Iterator[Engine]:
    """An engine whose user source fails for user 8, and that retrieves 30 candidates."""
    known = InMemoryUsers({seed: world.record(seed) for seed in range(10)})

    def users(user: Any) -> Any:
        if user == 8:
            raise LookupError("the feature store is down \ud800")
        return known(user)

    def retrieve(request: Any) -> Any:
        return world.ids[:30]

    with Engine(
        bundle, tables, users=users, retrieve=retrieve, config=ENGINE_CONFIG, observers=[slow]
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(observed: Engine, slow: SlowRequests) -> Client:
    return Client(create_app(observed, slow=slow))


NUMBERS = st.one_of(
    st.integers(), st.integers(2**63 - 2, 2**64 + 2), st.floats(allow_nan=True), st.booleans()
)  # fmt: skip
SCALARS = st.one_of(st.none(), NUMBERS, st.text(st.characters(codec=None), max_size=5))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = st.sampled_from(["id", "item_id", "bid", "channel"])
KNOWN = st.integers(0, 149).map(lambda row: 2**40 + row * (2**32 + 17))
"""Ids of the catalogue's items."""

TABLES = st.lists(KNOWN, min_size=1, max_size=6).flatmap(
    lambda ids: st.fixed_dictionaries(
        {"id": st.just(ids)},
        optional={
            "bid": st.lists(st.none() | st.floats(-2, 2), min_size=len(ids), max_size=len(ids)),
            "channel": st.lists(st.sampled_from(["ann", None]), min_size=len(ids), max_size=len(ids)),
        },
    )
)
VALID = st.fixed_dictionaries(
    {"user": st.integers(0, 9)},
    optional={
        "k": st.integers(1, 20),
        "context": st.fixed_dictionaries({"hour": st.integers(0, 30)}),
        "deadline_ms": st.just(60_000),
        "candidates": TABLES | st.lists(KNOWN, min_size=1, max_size=6),
        "filters": st.fixed_dictionaries(
            {},
            optional={
                "exclude": st.lists(KNOWN),
                "categories": st.lists(st.sampled_from(GENRES), min_size=1),
            },
        ),
        "report": st.booleans(),
    },
)
MANY = st.lists(SCALARS | KNOWN, max_size=6) | VALUES
HOSTILE = st.fixed_dictionaries(
    {},
    optional={
        "user": VALUES,
        "k": VALUES,
        "context": st.fixed_dictionaries({"hour": VALUES}) | VALUES,
        "deadline_ms": NUMBERS | VALUES,
        "candidates": st.dictionaries(COLUMNS, MANY, max_size=3) | MANY,
        "pair": st.dictionaries(st.sampled_from(["bid", "channel", "hue"]), MANY, max_size=2) | VALUES,
        "filters": st.dictionaries(st.sampled_from(["exclude", "categories"]), MANY, max_size=2) | VALUES,
        "report": VALUES,
    },
)
SPOILT = st.tuples(VALID, HOSTILE).map(lambda drawn: drawn[0] | dict(list(drawn[1].items())[-1:]))
"""Valid bodies of which one field at most is anything."""


def dumped(values: Any) -> bytes:
    """Return JSON as a careless client writes it: with NaN, and with surrogates escaped or as they are."""
    return json.dumps(values).encode()


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.one_of(VALID.map(dumped), SPOILT.map(dumped), SPOILT.map(dumped), VALUES.map(dumped)),
    path=st.sampled_from(["/health", "/stats", "/slow", "/slow/trace"]),
)
def test_rank_random_bodies_give_documented_status_and_strict_json(
    client: Client, body: bytes, path: str
) -> None:
    answer = client.post(content=body)
    assert answer.status_code in DOCUMENTED, (body, answer.text)
    strict(answer)
    other = client.send("GET", path)
    assert other.status_code == 200, (path, other.text)
    strict(other)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    path=st.one_of(
        st.sampled_from(["/", "/rank", "/rank/", "/health", "/stats", "/metrics", "/slow/", "//rank"]),
        st.text(st.characters(codec="utf-8", exclude_characters="?#"), max_size=8).map(
            lambda text: f"/{text}"
        ),
    ),
)
def test_random_paths_and_methods_give_documented_status_and_strict_json(
    client: Client, method: str, path: str
) -> None:
    with contextlib.suppress(httpx.InvalidURL):
        answer = client.send(method, path)
        assert answer.status_code in DOCUMENTED
        strict(answer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"user": 1, "user": 2}', "'user' is given twice"),
        (b'{"user": 1, "context": {"hour": 1, "hour": 1}}', "'hour' is given twice"),
        (b'{"user": 1, "deadline_ms": NaN}', "got NaN, which is not JSON"),
        (b'{"user": 1, "deadline_ms": -Infinity}', "got -Infinity"),
        (b'{"user": 1, "deadline_ms": 1e400}', "beyond the range of a float"),
        (b'{"user": 1, "deadline_ms": ' + b"1" * 310 + b".0}", "beyond the range of a float"),
        (b'{"user": 1, "context": {"hour": ' + b"7" * 5000 + b"}}", "at most 20 digits"),
        (b'{"user": "\xff"}', "is not UTF-8 (byte 10 is 0xff)"),
        (b'{"user": "\xed\xa0\x80"}', "is not UTF-8"),
        (rb'{"user": "\ud83d"}', "half of a surrogate pair"),
        (rb'{"user": 1, "context": {"\udc00": 1}}', "half of a surrogate pair"),
        ('{"user": 1}'.encode("utf-16"), "is not UTF-8"),
        (gzip.compress(b'{"user": 1}', mtime=0), "is not UTF-8"),
        (b"[" * 17 + b"]" * 17, "got 17 or more arrays and objects"),
        (b'{"user": 1, "candidates": ' + b"[" * 990 + b"]" * 990 + b"}", "expected at most 16; send flat"),
        (b"[" * 1_000_000, "got 17 or more"),
        (
            b'{"user": 1, "context": {"hour": [' + b"[]," * 200_000 + b"[]]}}",
            "more than 101,000 arrays and obj",
        ),
        (b'{"user": 1, "k": "' + b"9" * 3_000_000 + b'"}', "k: got"),
        (b'{"user": 1, "report": "no"}', "report: got 'no', expected true or false"),
    ],
)
def test_rank_malformed_body_is_400_with_reason(client: Client, content: bytes, message: str) -> None:
    answer = client.post(content=content)
    assert answer.status_code == 400
    assert message in strict(answer)["message"]
    assert client.send("GET", "/slow").status_code == 200


def test_rank_surrogate_pair_and_brackets_in_strings_are_taken(client: Client) -> None:
    answer = client.post(content=rb'{"user": "\ud83d\ude00 [[[[[[[[[[[[[[[[[[[[{\"", "k": 1}')
    assert answer.status_code == 404
    assert "\N{GRINNING FACE}" in strict(answer)["message"]


def test_bounds_are_refused_with_given_limit_and_setting(observed: Engine, world: World) -> None:
    client = Client(create_app(observed, max_body_bytes=2000, max_candidates=40, max_depth=3))
    ids = world.ids.tolist()
    assert client.post(json={"user": 4, "candidates": ids[:40]}).status_code == 200
    cases = {
        "candidates: got 41, expected at most 40; send fewer, or raise max_candidates": ids[:41],
        "candidates: got 50, expected at most 40; ": {"id": [1], "bid": [0] * 50},
        "bytes, expected at most 2,000 bytes; send fewer candidates, or raise max_body_bytes": ids,
    }
    for message, candidates in cases.items():
        answer = client.post(json={"user": 4, "candidates": candidates})
        assert answer.status_code == 413
        assert message in strict(answer)["message"]
    nested = client.post(json={"user": 4, "candidates": {"id": [[1]]}})
    assert (nested.status_code, "max_depth" in strict(nested)["message"]) == (400, True)


def test_body_without_stated_length_is_read_up_to_the_bound(observed: Engine) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield b"[" * 1000

    answer = Client(create_app(observed, max_body_bytes=5000)).post(content=endless())
    assert answer.status_code == 413
    assert "got more, expected at most 5,000 bytes" in strict(answer)["message"]
    assert read <= 7000


@pytest.mark.parametrize(("padding", "in_loop"), [(0, True), (1 << 17, False)])
def test_body_is_parsed_in_the_event_loop_only_if_small(
    observed: Engine, padding: int, in_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def noted(content: bytes, **bounds: Any) -> Any:
        threads.append(threading.get_ident())
        return parse(content, **bounds)

    monkeypatch.setattr("aif_jax.server.body.parse", noted)
    assert Client(create_app(observed)).post(content=b" " * padding + b'{"user": 4}').status_code == 200
    assert (threads == [threading.get_ident()]) == in_loop  # the loop runs in this thread


@pytest.mark.parametrize(
    "bound",
    [{"max_body_bytes": 0}, {"max_candidates": 1.5}, {"max_depth": -1}, {"max_concurrent": True},
     {"body_timeout_s": 0}],
)  # fmt: skip
def test_create_app_impossible_bound_is_refused(observed: Engine, bound: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(bound))):
        create_app(observed, **bound)


def test_concurrent_requests_beyond_the_bound_are_503_until_one_ends(observed: Engine) -> None:
    async def run() -> list[httpx.Response]:
        client = Client(create_app(observed, max_concurrent=1))
        held, go = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b'{"user": 4'
            held.set()
            await go.wait()
            yield b"}"

        first = asyncio.create_task(client.sent("POST", "/rank", content=body()))
        await held.wait()
        refused = await client.sent("POST", "/rank", json={"user": 4})
        health = await client.sent("GET", "/health")
        go.set()
        return [await first, refused, health, await client.sent("POST", "/rank", json={"user": 4})]

    first, refused, health, after = asyncio.run(run())
    assert [answer.status_code for answer in (first, refused, health, after)] == [200, 503, 200, 200]
    assert "the limit is 1; send less, or raise max_concurrent" in strict(refused)["message"]


def messages_of(app: Any, received: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what an application sends to a client that sends this and then leaves."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/rank",
        "raw_path": b"/rank", "query_string": b"", "headers": [], "scheme": "http", "server": ("engine", 80),
    }  # fmt: skip
    incoming, sent = iter(received), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_client_that_leaves_in_its_body_loses_no_place_and_logs_nothing(
    observed: Engine, parts: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(observed, max_concurrent=1)
    part = {"type": "http.request", "body": b'{"user":', "more_body": True}
    before = observed.stats()
    for _ in range(3):
        messages_of(app, [part] * parts)
    assert not caplog.records
    assert observed.stats()["requests"] == before["requests"]
    assert Client(app).post(json={"user": 4}).status_code == 200


def test_body_that_does_not_end_is_408(observed: Engine) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b'{"user"'
        await asyncio.Event().wait()

    client = Client(create_app(observed, max_concurrent=1, body_timeout_s=0.05))
    answer = client.post(content=stalled())
    assert answer.status_code == 408
    assert "7 bytes had come in 0.05 s" in strict(answer)["message"]
    assert client.post(json={"user": 4}).status_code == 200


def test_errors_of_the_framework_are_json(client: Client) -> None:
    absent, method, slash = (
        client.send(*given) for given in (("GET", "/rang"), ("GET", "/rank"), ("POST", "/rank/"))
    )
    assert (absent.status_code, strict(absent)["error"]) == (404, "NotFound")
    assert "there are /rank, /health, /stats, /slow" in strict(absent)["message"]
    assert (method.status_code, strict(method)["error"]) == (405, "MethodNotAllowed")
    assert method.headers["allow"] == "POST"
    assert (slash.status_code, strict(slash)["error"]) == (404, "NotFound")


def test_user_source_that_raises_is_502(client: Client) -> None:
    for body in ({"user": 8}, {"user": 8, "candidates": [1]}):
        answer = client.post(json=body)
        assert (answer.status_code, strict(answer)["error"]) == (502, "UserSourceError")
        assert (
            "user 8: the user source raised LookupError: the feature store is down"
            in strict(answer)["message"]
        )
    assert strict(client.send("GET", "/slow"))["failures"][0]["error"] == "UserSourceError"


def test_error_that_nobody_foresaw_is_500_in_json(observed: Engine) -> None:
    class Broken(SlowRequests):
        def to_json(self) -> dict[str, Any]:
            raise ZeroDivisionError("a bug \udc80")

    answer = Client(create_app(observed, slow=Broken())).send("GET", "/slow")
    assert (answer.status_code, strict(answer)) == (
        500, {"error": "ZeroDivisionError", "message": r"a bug \udc80"},
    )  # fmt: skip


def test_slow_route_is_strict_json_whatever_came_in(bundle: Bundle, tables: Tables, world: World) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            return "\ud800" * 5000

    def users(user: Any) -> Any:
        raise Mute

    slow, metrics = SlowRequests(failures=20), PrometheusMetrics()
    with Engine(bundle, tables, users=users, config=ENGINE_CONFIG, observers=[slow, metrics]) as engine:
        client = Client(create_app(engine, slow=slow, metrics=metrics))
        strange = [
            "\0\x1b\r\n\x7f\u2028",
            b"\xff\xfe",
            "\ud800",
            math.nan,
            10**5000,
            "x" * 1_000_000,
            None,
            object(),
            ("a", b"b"),
        ]
        for user in strange:
            with pytest.raises(Exception):  # noqa: B017, PT011, any error at all
                engine.begin(user, deadline_ms=None).rank([1])
        for deadline_ms in (math.nan, math.inf, -math.inf, 1e300):
            with pytest.raises(Exception):  # noqa: B017, PT011
                engine.begin(1, deadline_ms=deadline_ms)
        answer = client.send("GET", "/slow")
        failures = strict(answer)["failures"]
        assert len(failures) == len(strange) + 4
        assert [failure["deadline_ms"] for failure in failures[:4]] == [None] * 4, "they were refused"
        assert len(answer.content) < 40_000
        strict(client.send("GET", "/slow/trace"))
        strict(client.send("GET", "/stats"))
        families = text_string_to_metric_families(client.send("GET", "/metrics").text)
        assert sum(
            sample.value for family in families for sample in family.samples if "failed" in sample.name
        )
