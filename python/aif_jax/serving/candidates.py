"""Candidates as they come in, checked: ids, keys, duplicates, pair features."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.errors import RequestError, SchemaError
from aif_jax.features import EncodeReport, Numeric, Schema, item_keys


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedCandidates:
    """Candidates of one request, each once.

    Attributes:
        ids: as they were given, ``[N]``.
        keys: uint64 ``[N]``.
        pair: encoded pair features by name, ``[N, ...]``, and raw ones under ``raw_<name>`` where asked for.
        given: how many came in.
        duplicates: how many of these had come in before.
    """

    ids: np.ndarray
    keys: np.ndarray
    pair: Mapping[str, np.ndarray]
    given: int
    duplicates: int


def check_candidates(
    ids: Any, pair: Mapping[str, Any] | None, schema: Schema, raw: frozenset[str], report: EncodeReport
) -> CheckedCandidates:
    """Check what retrieval brought.

    Args:
        ids: item ids, ``[N]``: integers or strings.
        pair: raw pair features by name, each ``[N]``; an absent one counts as missing.
        schema: the model's features.
        raw: names of the pair features whose raw values the score expression reads; missing ones are 0.
        report: counts of what encoding did not recognise are added to it.

    Raises:
        RequestError: there are no candidates, ids are not ids, or a pair feature has another name or length.
    """
    array = ids if isinstance(ids, np.ndarray) else None
    if array is None and not hasattr(ids, "__len__"):
        raise RequestError(f"candidates: got a {type(ids).__name__}, expected an array or list of item ids.")
    if array is not None and array.ndim != 1:
        raise RequestError(f"candidates: got an array of shape {array.shape}, expected [N]; flatten it.")
    n = len(ids)
    if n == 0:
        raise RequestError(
            "candidates: there are none; expected at least one id. Do not rank an empty retrieval."
        )
    try:
        keys = np.ascontiguousarray(item_keys(ids))
    except RequestError as error:
        raise RequestError(f"candidates: {str(error).removeprefix('ids: ')}") from error
    if array is None:
        array = np.array(ids, dtype=object) if isinstance(next(iter(ids)), str) else keys
    encoded = _encode_pair(pair or {}, n, schema, raw, report)
    ordered = np.sort(keys)
    duplicates = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
    if duplicates:
        _, first = np.unique(keys, return_index=True)
        first.sort()
        array, keys = array[first], keys[first]
        encoded = {name: column[first] for name, column in encoded.items()}
    return CheckedCandidates(array, keys, encoded, n, duplicates)


def _encode_pair(
    pair: Mapping[str, Any], n: int, schema: Schema, raw: frozenset[str], report: EncodeReport
) -> dict[str, np.ndarray]:
    if not schema.pair and not pair:
        return {}
    try:
        encoded = schema.encode("pair", pair, n, report=report)
    except SchemaError as error:
        raise RequestError(f"pair features of {n} candidates: {str(error).removeprefix('pair: ')}") from error
    for name in raw:
        values = np.zeros(n, np.float32)
        feature = schema.feature("pair", name)
        if name in pair and isinstance(feature, Numeric):
            values = feature.raw(pair[name], n).astype(np.float32)
            values[~np.isfinite(values)] = 0.0
        encoded[f"raw_{name}"] = values
    return encoded
