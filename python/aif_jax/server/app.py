"""A small HTTP application around an engine: rank, health, stats.

Run it with any ASGI server, for example ``uvicorn.run(create_app(engine))``. The engine is not closed with
the application; its owner closes it.
"""

import http as protocol
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from aif_jax.checks import typed
from aif_jax.errors import (
    AifError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    RetrievalError,
    SchedulerError,
    UnknownUserError,
    UserSourceError,
)
from aif_jax.observe import SlowRequests
from aif_jax.server.body import BodyTimeoutError, Bounds, TooLargeError, read_body
from aif_jax.server.openapi import describe
from aif_jax.serving import Engine, Ranking
from aif_jax.strict_json import dumps, plain, shortened, text_of

if TYPE_CHECKING:
    from aif_jax.observe.prometheus import PrometheusMetrics

_log = logging.getLogger(__name__)

_MAX_MESSAGE = 1000
"""Characters of an error's message that are sent."""

_TABLES = ("item_index", "behaviour_table")

_STATUS: tuple[tuple[type[AifError], int], ...] = (
    (UnknownUserError, 404),
    (TooLargeError, 413),
    (BodyTimeoutError, 408),
    (RequestError, 400),
    (OverloadedError, 503),
    (SchedulerError, 503),
    (DeadlineExceededError, 504),
    (RetrievalError, 502),
    (UserSourceError, 502),
)
"""HTTP status of an error; the first that fits."""


@typed
def create_app(
    engine: Engine,
    *,
    metrics: "PrometheusMetrics | None" = None,
    slow: SlowRequests | None = None,
    max_body_bytes: int = 4 << 20,
    max_candidates: int = 50_000,
    max_depth: int = 16,
    max_concurrent: int = 256,
    body_timeout_s: float = 30.0,
) -> Starlette:
    """Return an ASGI application.

    - ``POST /rank`` takes JSON: ``user`` (integer or string); and, all optional, ``context`` (features by
      name), ``k``, ``deadline_ms``, ``candidates`` (item ids, or a table: an object of columns with the ids
      under ``id``; without them the engine's own ``retrieve`` is called), ``pair`` (pair features by name,
      one each candidate), ``filters`` (an object with ``exclude``, item ids that must not be in the answer,
      and ``categories``, of which the answer's items must be), ``report`` (true to get the report too). It
      returns ``ids``, ``scores``, ``heads``, ``version`` and, if requested, ``report``.
    - ``GET /health`` returns the version that serves, with status 503 if the engine was closed, was made
      before this process was forked, or serves rows from a mapped file that somebody has written to.
    - ``GET /stats`` returns `Engine.stats`.
    - ``GET /metrics``, if ``metrics`` is given, returns Prometheus's text format.
    - ``GET /slow``, if ``slow`` is given, returns the slowest and the failed recent requests, and
      ``GET /slow/trace`` their timelines as a file for https://ui.perfetto.dev.
    - ``GET /openapi.json`` returns the OpenAPI document of these routes, for the bundle that serves.

    ``metrics`` and ``slow`` have to be among the engine's observers.

    JSON is strict both ways: UTF-8 without lone surrogates, without NaN and infinities, and no key twice in
    an object. A number that is not finite is sent as ``null``. Ids are answered as the candidates have them:
    integers of 64 bits stay JSON numbers, which a client must not read as floats (exact up to 2^53 only).

    Errors of every status are JSON, ``{"error": name, "message": text}``: 400 for malformed requests, 404
    for unknown users and paths, 405 for other methods, 408 for a body that does not arrive, 413 for one
    beyond a bound, 502 if retrieval or the user source failed, 503 if overloaded, closed or forked, 504 if
    late, and 500, with an entry in the log, for what nobody foresaw.

    Args:
        engine: ranks.
        metrics: see above.
        slow: see above.
        max_body_bytes: bytes of a body.
        max_candidates: candidates of a body, which may have 1,000 arrays and objects, and two more for each.
        max_depth: arrays and objects of a body that may stand one inside the other.
        max_concurrent: requests to rank at a time, those whose bodies are on their way included: times
            ``max_body_bytes``, the memory that bodies can take. More are refused with status 503.
        body_timeout_s: seconds in which a body has to arrive.

    Raises:
        ConfigError: a bound is not positive.
    """
    bounds = Bounds(
        max_body_bytes=max_body_bytes, max_candidates=max_candidates, max_depth=max_depth,
        max_concurrent=max_concurrent, body_timeout_s=body_timeout_s,
    )  # fmt: skip
    places = threading.BoundedSemaphore(max_concurrent)

    async def rank(http: HttpRequest) -> Response:
        if not places.acquire(blocking=False):
            raise OverloadedError(
                f"rank: {max_concurrent} requests are under way, and the limit is {max_concurrent}; send "
                "less, or raise max_concurrent of create_app."
            )
        try:
            return await admitted(http)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            places.release()

    async def admitted(http: HttpRequest) -> Response:
        body = await read_body(http, bounds)
        if body.candidates is not None:
            pending = engine.begin(body.user, body.context, deadline_ms=body.deadline_ms)
            ranking = await pending.rank_async(body.candidates, body.pair, k=body.k, filters=body.filters)
        else:
            ranking = await engine.rank_async(
                body.user, body.context, k=body.k, deadline_ms=body.deadline_ms, filters=body.filters
            )
        return _json(_answer(ranking, report=body.report))

    async def health(_: HttpRequest) -> Response:
        state = "forked" if engine.forked else "closed" if engine.closed else "ok"
        if state == "ok" and any(engine.stats()[name]["overwritten"] for name in _TABLES):
            state = "overwritten"
        answer = {"status": state, "version": engine.version, "program": engine.bundle.kind}
        return _json(answer, 200 if state == "ok" else 503)

    def document() -> Any:
        schema, k_max = engine.bundle.schema, engine.bundle.k_max
        return describe(schema, k_max, bounds, _STATUS, [route.path for route in routes])

    routes = [
        Route("/rank", rank, methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/stats", _json_of(engine.stats), methods=["GET"]),
    ]
    if metrics is not None:
        routes.append(Route("/metrics", _metrics(metrics), methods=["GET"]))
    if slow is not None:
        routes += [
            Route("/slow", _json_of(slow.to_json), methods=["GET"]),
            Route("/slow/trace", _trace(slow), methods=["GET"]),
        ]

    routes.append(Route("/openapi.json", _json_of(document), methods=["GET"]))

    async def refused(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, given = protocol.HTTPStatus(error.status_code), f"{http.method} {shortened(http.url.path)}"
        if status == protocol.HTTPStatus.NOT_FOUND:
            message = (
                f"{given}: there is no such path; there are {', '.join(route.path for route in routes)}."
            )
        elif status == protocol.HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"{given}: got another method than the path takes, which is in the header Allow."
        else:
            message = f"{given}: {error.detail}"
        name = status.phrase.title().replace(" ", "")
        return _error(status, name, message, error.headers)

    app = Starlette(
        routes=routes,
        exception_handlers={AifError: _foreseen, HTTPException: refused, Exception: _unforeseen},
    )
    app.router.redirect_slashes = False  # a redirect would be an answer without JSON
    return app


# Plain functions: Starlette runs them in a thread, so that a long answer does not hold up requests.


def _metrics(metrics: "PrometheusMetrics") -> Callable[[HttpRequest], Response]:
    return lambda _: Response(metrics.scrape(), headers={"content-type": metrics.content_type})


def _json_of(values: Callable[[], Any]) -> Callable[[HttpRequest], Response]:
    return lambda _: _json(values())


def _trace(slow: SlowRequests) -> Callable[[HttpRequest], Response]:
    name = {"content-disposition": 'attachment; filename="slow.json"'}
    return lambda _: Response(slow.trace(), media_type="application/json", headers=name)


def _json(values: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(dumps(values), status, headers, media_type="application/json")


def _error(status: int, name: str, message: str, headers: Any = None) -> Response:
    return _json({"error": name, "message": plain(message, max_chars=_MAX_MESSAGE)}, status, headers)


def _answer(ranking: Ranking, *, report: bool) -> dict[str, Any]:
    answer = {
        "ids": np.asarray(ranking.ids).tolist(),
        "scores": ranking.scores.tolist(),
        "heads": {head: values.tolist() for head, values in ranking.heads.items()},
        "version": ranking.report.version,
    }
    return {**answer, "report": ranking.report.to_json()} if report else answer


async def _foreseen(_: HttpRequest, error: Exception) -> Response:
    """Return an error that aif_jax raises on purpose as an answer."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        _log.error("a request to rank failed", exc_info=error)
    return _error(status, type(error).__name__, text_of(error))


async def _unforeseen(_: HttpRequest, error: Exception) -> Response:
    """Return any other error as an answer; the server logs it, too."""
    return _error(500, type(error).__name__, text_of(error))
