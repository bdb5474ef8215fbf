"""The body of a request to rank: read within bounds, parsed, and checked."""

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from aif_jax.checks import check, whole
from aif_jax.errors import RequestError
from aif_jax.serving import Filters
from aif_jax.strict_json import parse, shortened

FIELDS = ("user", "context", "k", "deadline_ms", "candidates", "pair", "filters", "report")
"""Fields of a body."""

FILTERS = tuple(field.name for field in dataclasses.fields(Filters) if field.init)
"""Fields of its filters."""

_IN_LOOP_BYTES = 1 << 16
"""Larger bodies are parsed in a thread."""

_NESTED, _NESTED_EACH = 1000, 2
"""Arrays and objects that a body may have, and those for each candidate: a list for each of two features."""


class TooLargeError(RequestError):
    """A body, or the number of its candidates, is beyond a bound of the application."""


class BodyTimeoutError(RequestError):
    """A body did not arrive in time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of a request, see `create_app`."""

    max_body_bytes: int
    max_candidates: int
    max_depth: int
    max_concurrent: int
    body_timeout_s: float

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_candidates", "max_depth", "max_concurrent"):
            whole(name, getattr(self, name), 1)
        seconds = self.body_timeout_s
        fits = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds > 0
        check("body_timeout_s", seconds, fits, "more than 0 seconds")


class RankBody(NamedTuple):
    """Arguments of a ranking; ``candidates`` is ``None`` where the engine retrieves."""

    user: Any
    context: Mapping[str, Any] | None
    k: Any
    deadline_ms: float | None
    candidates: Any
    pair: Mapping[str, Any] | None
    filters: Filters | None
    report: bool


async def read_body(http: HttpRequest, bounds: Bounds) -> RankBody:
    """Read the body of a request.

    Raises:
        TooLargeError: it, or the number of candidates, is beyond its bound; no more of it was read.
        BodyTimeoutError: it did not arrive in time.
        RequestError: it is not strict JSON, or not as `create_app` says.
        ClientDisconnect: the client left before its end.
    """
    content = await _content(http, bounds)
    if len(content) > _IN_LOOP_BYTES:
        return await run_in_threadpool(_checked, content, bounds)
    return _checked(content, bounds)


async def _content(http: HttpRequest, bounds: Bounds) -> bytes:
    stated = http.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and (len(stated) > 18 or int(stated) > bounds.max_body_bytes):
        raise _too_large(f"{shortened(stated)} bytes", bounds)
    parts, size = [], 0
    try:
        async with asyncio.timeout(bounds.body_timeout_s):
            async for part in http.stream():
                size += len(part)
                if size > bounds.max_body_bytes:
                    raise _too_large("more", bounds)
                parts.append(part)
    except TimeoutError as error:
        raise BodyTimeoutError(
            f"body: {size:,} bytes had come in {bounds.body_timeout_s:g} s, and not its end; send it at "
            "once, or raise body_timeout_s of create_app."
        ) from error
    return b"".join(parts)


def _too_large(given: str, bounds: Bounds) -> TooLargeError:
    return TooLargeError(
        f"body: got {given}, expected at most {bounds.max_body_bytes:,} bytes; send fewer candidates, or "
        "raise max_body_bytes of create_app."
    )


def _checked(content: bytes, bounds: Bounds) -> RankBody:
    # The engine copies lists of lists in the event loop, at some microseconds each.
    nested = _NESTED + _NESTED_EACH * bounds.max_candidates
    values = parse(content, max_depth=bounds.max_depth, max_nested=nested)
    if not isinstance(values, dict):
        raise RequestError(f"body: got a JSON {type(values).__name__}, expected an object.")
    if unknown := sorted(values.keys() - set(FIELDS)):
        raise RequestError(f"body: fields {_listed(unknown)} are unknown; known are {sorted(FIELDS)}.")
    if "user" not in values:
        raise RequestError("body: has no user; expected an integer or a string.")
    if "pair" in values and "candidates" not in values:
        raise RequestError("body: has pair features but no candidates that they could belong to.")
    for name in ("context", "pair"):
        if not isinstance(values.get(name, {}), dict):
            raise RequestError(
                f"{name}: got a {type(values[name]).__name__}, expected an object of features."
            )
    candidates = values.get("candidates", [])
    if not isinstance(candidates, (list, dict)):
        given = type(candidates).__name__
        raise RequestError(f"candidates: got a {given}, expected a list of item ids or an object of columns.")
    columns = candidates.values() if isinstance(candidates, dict) else [candidates]
    number = max((len(column) for column in columns if isinstance(column, list)), default=0)
    if number > bounds.max_candidates:
        raise TooLargeError(
            f"candidates: got {number:,}, expected at most {bounds.max_candidates:,}; send fewer, or raise "
            "max_candidates of create_app."
        )
    deadline_ms = values.get("deadline_ms")
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, (int, float, type(None))):
        given = shortened(repr(deadline_ms))
        raise RequestError(f"deadline_ms: got {given}, expected a number of milliseconds.")
    if not isinstance(values.get("report", False), bool):
        raise RequestError(f"report: got {shortened(repr(values['report']))}, expected true or false.")
    return RankBody(
        values["user"], values.get("context"), values.get("k"), deadline_ms, values.get("candidates"),
        values.get("pair"), _filters(values.get("filters")), values.get("report", False),
    )  # fmt: skip


def _filters(values: Any) -> Filters | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise RequestError(
            f"filters: got a {type(values).__name__}, expected an object of {sorted(FILTERS)}."
        )
    if unknown := sorted(values.keys() - set(FILTERS)):
        raise RequestError(f"filters: {_listed(unknown)} are unknown; known are {sorted(FILTERS)}.")
    return Filters(**values)


def _listed(names: list[str]) -> str:
    return shortened(repr(names[:10]))
