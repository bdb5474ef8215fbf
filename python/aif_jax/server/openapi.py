"""The OpenAPI document of the application, made from what its checks use: `GET /openapi.json`."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aif_jax.errors import AifError
from aif_jax.features import MultiValued, Numeric, Schema
from aif_jax.features.schema import Group
from aif_jax.server.body import FIELDS, FILTERS, Bounds
from aif_jax.strict_json import MAX_DIGITS

Statuses = Sequence[tuple[type[AifError], int]]

_ERROR = {"$ref": "#/components/schemas/Error"}
_ID = {
    "description": "An item's id, as the catalogue has it: an integer of 64 bits, which a parser must not "
    "read as a float (exact up to 2^53 only), or a string. One kind in a list.",
    "anyOf": [{"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, {"type": "string"}],
}
_IDS = {"type": "array", "items": _ID}
_WRITABLE = {"minimum": 1 - 10 ** (MAX_DIGITS - 1), "maximum": 10**MAX_DIGITS - 1}
"""Integers that strict JSON may hold; the sign counts as a digit."""

_NUMBER = {"type": ["number", "null"]}
_TOKEN = {"type": ["integer", "string", "null"], "minimum": -(2**63), "maximum": 2**64 - 1}
_JSON = {"type": "object"}


def describe(schema: Schema, k_max: int, bounds: Bounds, statuses: Statuses, paths: Iterable[str]) -> Any:
    """Return the document.

    Args:
        schema: of the bundle that serves.
        k_max: the most results that it can give.
        bounds: of a body.
        statuses: HTTP status by class of error.
        paths: routes that the application has.
    """
    known = {
        "/rank": {"post": _rank(statuses)},
        "/health": _get("The version that serves.", {200: _HEALTH, 503: _HEALTH}),
        "/stats": _get("Counters of the engine.", {200: _JSON}),
        "/metrics": _get("Metrics in Prometheus's text format.", {200: {"type": "string"}}, "text/plain"),
        "/slow": _get("The slowest and the failed recent requests.", {200: _JSON}),
        "/slow/trace": _get("Their timelines, for https://ui.perfetto.dev.", {200: _JSON}),
        "/openapi.json": _get("This document.", {200: _JSON}),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "aif_jax", "version": importlib.metadata.version("aif_jax")},
        "paths": {path: known[path] for path in paths},
        "components": {
            "schemas": {
                "RankBody": _body(schema, k_max, bounds),
                "Ranking": _RANKING,
                "Error": {
                    "type": "object",
                    "required": ["error", "message"],
                    "additionalProperties": False,
                    "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
                },
            }
        },
    }


_HEALTH = {
    "type": "object",
    "required": ["status", "version", "program"],
    "properties": {
        "status": {"enum": ["ok", "closed", "forked"]},
        "version": {"type": "string"},
        "program": {"enum": ["native", "portable"]},
    },
}

_RANKING = {
    "type": "object",
    "required": ["ids", "scores", "heads", "version"],
    "additionalProperties": False,
    "properties": {
        "ids": {**_IDS, "description": "Items, best first; of the kind that the candidates have."},
        "scores": {"type": "array", "items": _NUMBER},
        "heads": {"type": "object", "additionalProperties": {"type": "array", "items": _NUMBER}},
        "version": {"type": "string", "description": "Version of the bundle that scored them."},
        "report": _JSON,
    },
}


def _rank(statuses: Statuses) -> dict[str, Any]:
    responses = {"200": _response("The ranking.", {"$ref": "#/components/schemas/Ranking"})}
    for status in sorted({status for _, status in statuses} | {500}):
        kinds = [kind for kind, its in statuses if its == status]
        about = "; ".join(f"`{kind.__name__}`: {' '.join((kind.__doc__ or '').split())}" for kind in kinds)
        responses[str(status)] = _response(about or "An error that nobody foresaw.", _ERROR)
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/RankBody"}}}
    return {
        "summary": "Rank candidates for a user, best first.",
        "requestBody": {"required": True, "content": body},
        "responses": responses,
    }


def _get(summary: str, answers: Mapping[int, Any], kind: str = "application/json") -> dict[str, Any]:
    responses = {str(status): _response("The answer.", answer, kind) for status, answer in answers.items()}
    responses["500"] = _response("An error that nobody foresaw.", _ERROR)
    return {"get": {"summary": summary, "responses": responses}}


def _response(about: str, schema: Any, kind: str = "application/json") -> dict[str, Any]:
    return {"description": about, "content": {kind: {"schema": schema}}}


def _body(schema: Schema, k_max: int, bounds: Bounds) -> dict[str, Any]:
    most = {"maxItems": bounds.max_candidates}
    pair = {
        name: {"type": "array", "items": values, **most} for name, values in _features(schema, "pair").items()
    }
    columns = {
        "type": "object",
        "required": ["id"],
        "properties": {"id": {**_IDS, **most, "minItems": 1}, **pair},
    }
    filters = {"exclude": _IDS, "categories": {"type": ["array", "null"]}}
    fields = {
        "user": {"type": ["integer", "string"], **_WRITABLE},
        "context": _object(_features(schema, "context")),
        "k": {"type": ["integer", "null"], "minimum": 1, "maximum": k_max},
        "deadline_ms": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "candidates": {"anyOf": [{**_IDS, **most, "minItems": 1}, columns]},
        "pair": _object(pair),
        "filters": {"anyOf": [_object({name: filters[name] for name in FILTERS}), {"type": "null"}]},
        "report": {"type": "boolean"},
    }
    return {
        "type": "object",
        "description": f"At most {bounds.max_body_bytes} bytes of strict JSON: no key twice in an object, no "
        f"integer of more than {MAX_DIGITS} digits, at most {bounds.max_depth} arrays and objects one inside "
        "the other. Columns of a table, and pair features, have a value for each candidate; ids, and values "
        "of a column, are of one kind.",
        "required": ["user"],
        "dependentRequired": {"pair": ["candidates"]},
        "additionalProperties": False,
        "properties": {name: fields[name] for name in FIELDS},
    }


def _features(schema: Schema, group: Group) -> dict[str, Any]:
    return {
        feature.name: _NUMBER
        if isinstance(feature, Numeric)
        else {"type": ["array", "null"], "items": _TOKEN}
        if isinstance(feature, MultiValued)
        else _TOKEN
        for feature in schema.features(group)
    }


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}
