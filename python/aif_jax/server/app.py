"""A small HTTP application around an engine: rank, health, stats.

Run it with any ASGI server, for example ``uvicorn.run(create_app(engine))``. The engine is not closed with
the application; its owner closes it.
"""

import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aif_jax.errors import (
    AifError,
    DeadlineExceededError,
    OverloadedError,
    RequestError,
    RetrievalError,
    SchedulerError,
    UnknownUserError,
)
from aif_jax.observe import SlowRequests
from aif_jax.serving import Engine, Filters, Ranking

if TYPE_CHECKING:
    from aif_jax.observe.prometheus import PrometheusMetrics

_FIELDS = {"user", "context", "k", "deadline_ms", "candidates", "pair", "filters", "report"}
_FILTERS = {field.name for field in dataclasses.fields(Filters) if field.init}
_STATUS: tuple[tuple[type[AifError], int], ...] = (
    (UnknownUserError, 404),
    (RequestError, 400),
    (OverloadedError, 503),
    (SchedulerError, 503),
    (DeadlineExceededError, 504),
    (RetrievalError, 502),
)
"""HTTP status of an error; the first that fits."""


def create_app(
    engine: Engine, *, metrics: "PrometheusMetrics | None" = None, slow: SlowRequests | None = None
) -> Starlette:
    """Return an ASGI application.

    - ``POST /rank`` takes JSON: ``user`` (integer or string); and, all optional, ``context`` (features by
      name), ``k``, ``deadline_ms``, ``candidates`` (item ids, or a table: an object of columns with the ids
      under ``id``; without them the engine's own ``retrieve`` is called), ``pair`` (pair features by name,
      one each candidate), ``filters`` (an object with ``exclude``, item ids that must not be in the answer,
      and ``categories``, of which the answer's items must be), ``report`` (true to get the report too). It
      returns ``ids``, ``scores``, ``heads``, ``version`` and, if requested, ``report``.
    - ``GET /health`` returns the version that serves, with status 503 if the engine was closed.
    - ``GET /stats`` returns `Engine.stats`.
    - ``GET /metrics``, if ``metrics`` is given, returns Prometheus's text format.
    - ``GET /slow``, if ``slow`` is given, returns the slowest and the failed recent requests, and
      ``GET /slow/trace`` their timelines as a file for https://ui.perfetto.dev.

    ``metrics`` and ``slow`` have to be among the engine's observers.

    Errors are JSON, ``{"error": name, "message": text}``, with status 400 for
    malformed requests, 404 for unknown users, 502 if retrieval failed, 503 if overloaded and 504 if late.
    """

    async def rank(http: HttpRequest) -> JSONResponse:
        body = _read(await http.body())
        user, context = body.get("user"), body.get("context")
        deadline_ms, k = body.get("deadline_ms"), body.get("k")
        filters = _filters(body.get("filters"))
        if "candidates" in body:
            pending = engine.begin(user, context, deadline_ms=deadline_ms)  # type: ignore[arg-type]
            ranking = await pending.rank_async(body["candidates"], body.get("pair"), k=k, filters=filters)
        else:
            ranking = await engine.rank_async(user, context, k=k, deadline_ms=deadline_ms, filters=filters)  # type: ignore[arg-type]
        return JSONResponse(_answer(ranking, report=bool(body.get("report"))))

    async def health(_: HttpRequest) -> JSONResponse:
        status = ("closed", 503) if engine.closed else ("ok", 200)
        return JSONResponse(
            {"status": status[0], "version": engine.version, "program": engine.bundle.kind}, status[1]
        )

    async def stats(_: HttpRequest) -> JSONResponse:
        return JSONResponse(engine.stats())

    routes = [
        Route("/rank", _explaining(rank), methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/stats", stats, methods=["GET"]),
    ]
    if metrics is not None:
        routes.append(Route("/metrics", _metrics(metrics), methods=["GET"]))
    if slow is not None:
        routes += [
            Route("/slow", _json(slow.to_json), methods=["GET"]),
            Route("/slow/trace", _trace(slow), methods=["GET"]),
        ]
    return Starlette(routes=routes)


# Plain functions: Starlette runs them in a thread, so that a long answer does not hold up requests.


def _metrics(metrics: "PrometheusMetrics") -> Callable[[HttpRequest], Response]:
    return lambda _: Response(metrics.scrape(), headers={"content-type": metrics.content_type})


def _json(values: Callable[[], Any]) -> Callable[[HttpRequest], Response]:
    return lambda _: JSONResponse(values())


def _trace(slow: SlowRequests) -> Callable[[HttpRequest], Response]:
    name = {"content-disposition": 'attachment; filename="slow.json"'}
    return lambda _: Response(slow.trace(), media_type="application/json", headers=name)


def _read(body: bytes) -> Mapping[str, Any]:
    try:
        values = json.loads(body)
    except ValueError as error:
        raise RequestError(f"body: is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise RequestError(f"body: got a JSON {type(values).__name__}, expected an object.")
    if unknown := sorted(values.keys() - _FIELDS):
        raise RequestError(f"body: fields {unknown} are unknown; known are {sorted(_FIELDS)}.")
    if "user" not in values:
        raise RequestError("body: has no user; expected an integer or a string.")
    if "pair" in values and "candidates" not in values:
        raise RequestError("body: has pair features but no candidates that they could belong to.")
    for name in ("context", "pair"):
        if not isinstance(values.get(name, {}), dict):
            raise RequestError(
                f"{name}: got a {type(values[name]).__name__}, expected an object of features."
            )
    if not isinstance(values.get("candidates", []), (list, dict)):
        given = type(values["candidates"]).__name__
        raise RequestError(f"candidates: got a {given}, expected a list of item ids or an object of columns.")
    deadline_ms = values.get("deadline_ms")
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, (int, float, type(None))):
        raise RequestError(f"deadline_ms: got {deadline_ms!r}, expected a number of milliseconds.")
    return values


def _filters(values: Any) -> Filters | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise RequestError(
            f"filters: got a {type(values).__name__}, expected an object of {sorted(_FILTERS)}."
        )
    if unknown := sorted(values.keys() - _FILTERS):
        raise RequestError(f"filters: {unknown} are unknown; known are {sorted(_FILTERS)}.")
    return Filters(**values)


def _answer(ranking: Ranking, *, report: bool) -> dict[str, Any]:
    answer = {
        "ids": np.asarray(ranking.ids).tolist(),
        "scores": ranking.scores.tolist(),
        "heads": {head: values.tolist() for head, values in ranking.heads.items()},
        "version": ranking.report.version,
    }
    return {**answer, "report": ranking.report.to_json()} if report else answer


def _explaining(
    handler: Callable[[HttpRequest], Awaitable[JSONResponse]],
) -> Callable[[HttpRequest], Awaitable[JSONResponse]]:
    """Return the errors that aif_jax raises on purpose as answers; the server logs all others."""

    async def explained(http: HttpRequest) -> JSONResponse:
        try:
            return await handler(http)
        except AifError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            return JSONResponse({"error": type(error).__name__, "message": str(error)}, status)

    return explained
