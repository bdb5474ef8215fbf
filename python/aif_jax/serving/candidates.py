"""Candidates of a request: parsed from what a caller gives, filtered, and encoded for the real-time stage."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from aif_jax import _native
from aif_jax.errors import RequestError, SchemaError
from aif_jax.features import EncodeReport, Numeric, Schema
from aif_jax.features.candidates import read_candidates
from aif_jax.features.filters import Filters, checked_filters
from aif_jax.inputs import read_number, take_rows
from aif_jax.nearline import ItemIndex
from aif_jax.serving.config import UnknownColumns
from aif_jax.shown import shown

_UINT64, _INT64 = np.dtype(np.uint64), np.dtype(np.int64)

CATEGORY = "category"
"""The column of item rows that holds an item's encoded categories, int32 ``[C]``."""


class RankArgs(NamedTuple):
    """Arguments of `Pending.rank`, unchecked; ``called_s`` is the time of the call, ``time.perf_counter``."""

    candidates: Any
    pair: Mapping[str, Any] | None
    k: int | None
    filters: Filters | None
    called_s: float

    def size(self) -> int:
        """Return about how many candidates there are; 1 for what cannot be counted (an error follows)."""
        table = self.candidates
        column = next(iter(table.values()), ()) if isinstance(table, Mapping) else table
        try:
            return len(column)
        except TypeError:
            return 1


@dataclasses.dataclass(slots=True, eq=False)
class ParsedCandidates:
    """Candidates of one request, each once, less those filtered out; their pair features are still raw.

    Attributes:
        ids: as they were given, ``[n]``.
        keys: uint64 ``[n]``.
        pair: raw pair features of all that came in, by name.
        ignored: columns of a table that the schema does not know.
        filters: the request's.
        given: number that came in.
        rows: positions of these among all that came in, int64 ``[n]``; ``None`` if they are all of them.
        strings: whether the ids are strings.
        padded: number of them that were -1, which fills up a retrieval that found fewer.
        duplicates: number of these that had come in before.
        filtered: number that the filters left out so far, by filter.
        parsed_s: end of parsing, on the clock of ``time.perf_counter``.
    """

    ids: np.ndarray
    keys: np.ndarray
    pair: Mapping[str, Any]
    ignored: tuple[str, ...]
    filters: Filters | None
    given: int
    rows: np.ndarray | None = None
    strings: bool = False
    padded: int = 0
    duplicates: int = 0
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)
    parsed_s: float = 0.0

    def leave_out(self, gone: np.ndarray, name: str) -> None:
        """Leave candidates out, bool ``[n]``, because of a filter."""
        number = int(np.count_nonzero(gone))
        self.filtered[name] = self.filtered.get(name, 0) + number
        if number:
            self.keep(np.flatnonzero(~gone))

    def keep(self, chosen: np.ndarray) -> None:
        """Keep the candidates at these positions, int64 ``[m]`` ascending."""
        self.ids, self.keys = self.ids[chosen], self.keys[chosen]
        self.rows = chosen if self.rows is None else self.rows[chosen]


def parse(args: RankArgs, schema: Schema, unknown_columns: UnknownColumns = "error") -> ParsedCandidates:
    """Read and check candidates, drop repeated ones, and leave out those that the request excludes.

    Args:
        args: candidates are item ids ``[N]``, or a table, see `read_candidates`; pair features are raw
            columns by name, each ``[N]``.
        schema: the model's features.
        unknown_columns: what becomes of a table's columns that the schema does not know.

    Raises:
        RequestError: there are no candidates, ids are not ids, a table is malformed, or the filters do not
            fit the candidates.
    """
    filters = args.filters
    if filters is not None:
        filters = checked_filters(filters)
    raw = args.candidates
    keys = _fast_keys(raw, args.pair)
    if keys is not None:
        parsed = ParsedCandidates(raw, keys, args.pair or {}, (), filters, len(keys))
    else:
        ids, pair, ignored = read_candidates(
            raw, args.pair, schema, ignore_unknown=unknown_columns == "ignore"
        )
        given, keys, strings, padding = ids
        parsed = ParsedCandidates(given, keys, pair, ignored, filters, len(keys), strings=strings)
        if padding is not None:
            parsed.padded = int(np.count_nonzero(padding))
            parsed.keep(np.flatnonzero(~padding))
    if not len(parsed.keys):
        raise RequestError(
            f"candidates: there are none{' but padding' * bool(parsed.padded)}; expected at least one id. Do "
            "not rank an empty retrieval."
        )
    first = _native.distinct(parsed.keys)
    if first is not None:
        parsed.duplicates = len(parsed.keys) - len(first)
        parsed.keep(first)
    if filters is not None:
        excluded = filters.excluded(parsed.keys, parsed.strings)
        if excluded is not None:
            parsed.leave_out(excluded, "exclude")
    parsed.parsed_s = time.perf_counter()
    return parsed


def _fast_keys(ids: Any, pair: Any) -> np.ndarray | None:
    """Return the keys of contiguous 64-bit integers without a copy; ``None`` where more is to convert."""
    if type(ids) is not np.ndarray or ids.ndim != 1 or not (pair is None or type(pair) is dict):
        return None
    flags, dtype = ids.flags, ids.dtype
    if not (flags.c_contiguous and flags.aligned):
        return None
    for column in (pair or {}).values():
        if type(column) is not np.ndarray or not column.ndim:
            return None
    if dtype == _UINT64:
        return ids
    if dtype == _INT64 and len(ids) and ids.min() >= 0:
        return ids.view(_UINT64)
    return None


class EncodedCandidates(NamedTuple):
    """Candidates of one request as the stage takes them, each once.

    Attributes:
        ids: as they were given, ``[N]``.
        keys: uint64 ``[N]``.
        pair: encoded pair features by name, ``[N, ...]``, and raw ones under ``raw_<name>`` where the score
            expression reads them.
    """

    ids: np.ndarray
    keys: np.ndarray
    pair: Mapping[str, np.ndarray]


def encode(
    parsed: ParsedCandidates,
    index: ItemIndex | None,
    schema: Schema,
    raw: Iterable[str],
    report: EncodeReport,
    *,
    drop_unknown: bool = False,
) -> EncodedCandidates:
    """Leave out candidates of other categories, and encode the pair features of the rest.

    A candidate without a row is of no known category: the policy for missing items decides on it.

    Args:
        parsed: from `parse`.
        index: the item rows, for the kind of their ids and filters by category; ``None`` where nothing is
            filtered and the kind is known.
        schema: the model's features.
        raw: names of the pair features whose raw values the score expression reads; missing ones are 0.
        report: counts of what encoding did not recognise are added to it.
        drop_unknown: whether a filter by category leaves out candidates without a row, which the policy for
            missing items would rank.

    Raises:
        RequestError: a pair feature has another name or length, or the filters do not fit the model.
    """
    if parsed.ignored:
        report.ignore(parsed.ignored)
    if index is not None and index.strings not in (None, parsed.strings) and len(parsed.ids):
        given, others = ("strings", "integers") if parsed.strings else ("integers", "strings")
        raise RequestError(
            f"candidates: got {given} such as {shown(parsed.ids[0])}, but the ids of the item index are "
            f"{others}, so that none would be found; give ids of the same kind."
        )
    if parsed.filters is not None and parsed.filters.by_category and index is not None:
        columns = index.store.columns
        if CATEGORY not in columns or 0 in columns[CATEGORY][1]:
            raise RequestError(
                "categories: this model's item rows hold no category to filter by; train with a schema that "
                "names a category and with the block 'sim_hard', or filter in retrieval."
            )
        codes, found = index.store.cache.gather_column(parsed.keys, CATEGORY)
        gone = parsed.filters.outside(codes, schema, report)
        parsed.leave_out(gone | ~found if drop_unknown else gone & found, "categories")
    pair, rows, n = parsed.pair, parsed.rows, parsed.given
    if not schema.pair and not pair:
        return EncodedCandidates(parsed.ids, parsed.keys, {})
    # The pair features of candidates that were left out are not encoded. (A column that does not fit is
    # encoded as it is, for the error that says so.)
    if rows is not None and all(len(column) == n for column in pair.values()):
        pair, n = {name: take_rows(column, rows) for name, column in pair.items()}, len(rows)
    try:
        encoded = schema.encode("pair", pair, n, report=report)
    except SchemaError as error:
        message = str(error).removeprefix("pair: ")
        raise RequestError(f"pair features of {parsed.given} candidates: {message}") from error
    for name in raw:
        if name in pair:
            encoded[f"raw_{name}"] = _raw(schema, name, pair[name], n)
        else:
            encoded[f"raw_{name}"] = np.zeros(n, np.float32)
    return EncodedCandidates(parsed.ids, parsed.keys, encoded)


def check_candidates(
    ids: Any,
    pair: Mapping[str, Any] | None,
    schema: Schema,
    raw: Iterable[str],
    report: EncodeReport,
    unknown_columns: UnknownColumns = "error",
    index: ItemIndex | None = None,
) -> EncodedCandidates:
    """Parse and encode candidates where nothing is filtered.

    Raises:
        RequestError: see `parse` and `encode`.
    """
    parsed = parse(RankArgs(ids, pair, None, None, 0.0), schema, unknown_columns)
    return encode(parsed, index, schema, raw, report)


def _raw(schema: Schema, name: str, column: Any, n: int) -> np.ndarray:
    """Return a pair feature as the score expression reads it, float32 ``[n]``; 0 where it is missing."""
    if not isinstance(feature := schema.feature("pair", name), Numeric):
        return np.zeros(n, np.float32)
    values, most = feature.raw(column, n), np.finfo(np.float32).max
    if not np.abs(values).max(initial=0.0) <= most:  # seldom, and three times as slow
        values = np.where(np.isfinite(values), np.clip(values, -most, most), 0.0)
    return values.astype(np.float32)


_MAX_DEADLINE_MS = 1e9


def read_deadline(deadline_ms: Any) -> float | None:
    """Read a deadline.

    Raises:
        RequestError: it is not a number of milliseconds that a clock can count.
    """
    if deadline_ms is None:
        return None
    return read_number(
        deadline_ms,
        "deadline_ms",
        lambda ms: 0 < ms <= _MAX_DEADLINE_MS,
        f"a number of milliseconds, over 0 and up to {_MAX_DEADLINE_MS:g} (11 days), or None for none",
    )


def checked_k(k: Any, k_max: int) -> int:
    """Return the number of results wanted.

    Raises:
        RequestError: it is not a number from 1 to ``k_max``.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= k_max:
        raise RequestError(
            f"k: got {shown(k)}, expected a whole number from 1 to {k_max}, the bundle's k_max; "
            "export the model with a larger k_max to get more results."
        )
    return int(k)
