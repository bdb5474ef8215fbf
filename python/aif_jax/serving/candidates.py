"""Candidates from what a caller gives to what the stage takes: ids, keys, filters, pair features."""

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aif_jax import _native
from aif_jax.errors import RequestError, SchemaError
from aif_jax.features import EncodeReport, Numeric, Ragged, Schema
from aif_jax.serving.candidate_tables import UnknownColumns, read_ids, split_table
from aif_jax.serving.filters import Filters, checked_filters

if TYPE_CHECKING:
    from aif_jax.serving.missing_items import MissingItems, Supply
    from aif_jax.serving.pending import Pending
    from aif_jax.serving.stages import Generation


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What a caller of `Pending.rank` gave, unchecked; ``called_s`` is when, by ``time.perf_counter``."""

    candidates: Any
    pair: Mapping[str, Any] | None
    k: int | None
    filters: Filters | None
    called_s: float

    def count(self) -> int:
        """Return about how many candidates there are; 1 for what cannot be counted, an error to come."""
        table = self.candidates
        column = next(iter(table.values()), ()) if isinstance(table, Mapping) else table
        return len(column) if hasattr(column, "__len__") else 1


@dataclasses.dataclass(slots=True)
class Chosen:
    """Candidates of one request, each once, less those that were left out; their pair features are still raw.

    Attributes:
        ids: as they were given, ``[n]``.
        keys: uint64 ``[n]``.
        rows: where these stood among all that came in, int64 ``[n]``; ``None`` if they are all of them.
        pair: raw pair features of all that came in, by name.
        given: how many came in.
        duplicates: how many of these had come in before.
        ignored: columns of a table that the schema does not know.
        filters: the request's.
        filtered: how many the filters left out so far, by filter.
        supply: what to wait for, of rows that are being computed.
        checked_s: when all this was known, on the clock of ``time.perf_counter``.
        supplied_s: when the wait for rows was over.
    """

    ids: np.ndarray
    keys: np.ndarray
    rows: np.ndarray | None
    pair: Mapping[str, Any]
    given: int
    duplicates: int
    ignored: tuple[str, ...]
    filters: Filters | None
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)
    supply: "Supply | None" = None
    checked_s: float = 0.0
    supplied_s: float = 0.0

    def wait(self) -> None:
        """Wait for the rows that are being computed, no longer than their time."""
        if self.supply is not None:
            self.supply.wait()
            self.supplied_s = time.perf_counter()

    async def wait_async(self) -> None:
        """Like `wait`, for coroutines."""
        if self.supply is not None:
            await self.supply.wait_async()
            self.supplied_s = time.perf_counter()

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


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedCandidates:
    """Candidates of one request as the stage takes them, each once.

    Attributes:
        ids: as they were given, ``[N]``.
        keys: uint64 ``[N]``.
        pair: encoded pair features by name, ``[N, ...]``, and raw ones under ``raw_<name>`` where asked for.
        given: how many came in.
        duplicates: how many of these had come in before.
        filtered: how many the request's filters left out, by filter.
        computed: how many had their row computed for this request.
        uncomputed: how many should have had, and had not, by reason.
    """

    ids: np.ndarray
    keys: np.ndarray
    pair: Mapping[str, np.ndarray]
    given: int
    duplicates: int
    filtered: Mapping[str, int] = dataclasses.field(default_factory=dict)
    computed: int = 0
    uncomputed: Mapping[str, int] = dataclasses.field(default_factory=dict)


def check_candidates(
    ids: Any,
    pair: Mapping[str, Any] | None,
    schema: Schema,
    raw: frozenset[str],
    report: EncodeReport,
    unknown_columns: UnknownColumns = "error",
) -> CheckedCandidates:
    """Check what retrieval brought, where nothing is filtered or computed.

    Args:
        ids: item ids ``[N]``, or a table, see `split_table`.
        pair: raw pair features by name, each ``[N]``; an absent one counts as missing.
        schema: the model's features.
        raw: names of the pair features whose raw values the score expression reads; missing ones are 0.
        report: counts of what encoding did not recognise are added to it.
        unknown_columns: what becomes of a table's columns that the schema does not know.

    Raises:
        RequestError: there are no candidates, ids are not ids, or a pair feature has another name or length.
    """
    asked = Asked(ids, pair, None, None, 0.0)
    return _encoded(_read(asked, schema, unknown_columns), schema, raw, report)


def choose(
    asked: Asked,
    pending: "Pending",
    unknown_columns: UnknownColumns = "error",
    missing: "MissingItems | None" = None,
) -> Chosen:
    """Read and check candidates, leave out those that a request excludes, and have missing rows computed.

    Needs nothing of the user side, and waits for nothing.

    Raises:
        RequestError: see `check_candidates`; or the filters do not fit the candidates.
    """
    chosen = read(asked, pending.generation.bundle.schema, unknown_columns)
    if missing is not None and len(chosen.keys):
        chosen.supply = missing.start(chosen.ids, chosen.keys, pending)
    chosen.checked_s = chosen.supplied_s = time.perf_counter()
    return chosen


def read(asked: Asked, schema: Schema, unknown_columns: UnknownColumns = "error") -> Chosen:
    """Read and check candidates, and leave out those that a request excludes.

    Raises:
        RequestError: see `choose`.
    """
    chosen = _read(asked, schema, unknown_columns)
    if chosen.filters is not None:
        strings = isinstance(chosen.ids[0], str)
        excluded = chosen.filters.excluded(chosen.keys, strings)
        if excluded is not None:
            chosen.leave_out(excluded, "exclude")
    return chosen


def complete(chosen: Chosen, generation: "Generation", report: EncodeReport) -> CheckedCandidates:
    """Leave out candidates of other categories, and encode the pair features of the rest.

    A candidate without a row is of no known category: it is left to the policy for missing items, unless
    that would rank it.

    Args:
        chosen: from `choose`; whoever waits for its rows has done so.
        generation: what ranks them.
        report: counts of what encoding did not recognise are added to it.

    Raises:
        RequestError: a pair feature has another name or length, or the filters do not fit the model.
    """
    schema = generation.bundle.schema
    report.ignore(chosen.ignored)
    if chosen.filters is not None:
        others = chosen.filters.of_other_categories(chosen.keys, generation.index, schema, report)
        if others is not None:
            gone, found = others
            if generation.config.missing_items == "default":
                gone |= ~found
            chosen.leave_out(gone, "categories")
    return _encoded(chosen, schema, generation.raw_pair, report)


def _read(asked: Asked, schema: Schema, unknown_columns: UnknownColumns) -> Chosen:
    filters = checked_filters(asked.filters)
    ignored: tuple[str, ...] = ()
    if _plain(asked.candidates, asked.pair):
        array = keys = asked.candidates
        pair = dict(asked.pair or {})
    else:
        ids, pair, ignored = split_table(asked.candidates, asked.pair, schema, unknown_columns)
        try:
            array, keys, _ = read_ids(ids)
        except RequestError as error:
            raise RequestError(f"candidates: {str(error).removeprefix('ids: ')}") from error
    n = len(keys)
    if n == 0:
        raise RequestError(
            "candidates: there are none; expected at least one id. Do not rank an empty retrieval."
        )
    chosen = Chosen(array, keys, None, pair, n, 0, ignored, filters)
    first = _native.distinct(keys)
    if first is not None:
        chosen.duplicates = n - len(first)
        chosen.keep(first)
    return chosen


def _plain(ids: Any, pair: Any) -> bool:
    """Whether ids are keys and pair features columns as they are: what retrieval should return, and fast."""
    return (
        type(ids) is np.ndarray
        and ids.dtype == np.uint64
        and ids.ndim == 1
        and ids.flags.c_contiguous
        and ids.flags.aligned
        and (pair is None or (type(pair) is dict and all(type(c) is np.ndarray for c in pair.values())))
    )


def _encoded(chosen: Chosen, schema: Schema, raw: frozenset[str], report: EncodeReport) -> CheckedCandidates:
    supply = chosen.supply
    return CheckedCandidates(
        chosen.ids,
        chosen.keys,
        _encode_pair(chosen.pair, chosen.rows, chosen.given, schema, raw, report),
        chosen.given,
        chosen.duplicates,
        chosen.filtered,
        0 if supply is None else supply.computed,
        {} if supply is None else supply.uncomputed,
    )


def _encode_pair(
    pair: Mapping[str, Any],
    rows: np.ndarray | None,
    given: int,
    schema: Schema,
    raw: frozenset[str],
    report: EncodeReport,
) -> dict[str, np.ndarray]:
    """Encode the pair features of some rows of all that were given: what is left out costs nothing more."""
    if not schema.pair and not pair:
        return {}
    n = given
    if rows is not None and all(_fits(column, given) for column in pair.values()):
        pair, n = {name: _taken(column, rows) for name, column in pair.items()}, len(rows)
    # (A column that does not fit is encoded as it is, for the error that says so.)
    try:
        encoded = schema.encode("pair", pair, n, report=report)
    except SchemaError as error:
        message = str(error).removeprefix("pair: ")
        raise RequestError(f"pair features of {given} candidates: {message}") from error
    for name in raw:
        values = np.zeros(n, np.float32)
        feature = schema.feature("pair", name)
        if name in pair and isinstance(feature, Numeric):
            values = feature.raw(pair[name], n).astype(np.float32)
            values[~np.isfinite(values)] = 0.0
        encoded[f"raw_{name}"] = values
    return encoded


def _fits(column: Any, n: int) -> bool:
    try:
        return len(column) == n
    except TypeError:
        return False


def _taken(column: Any, rows: np.ndarray) -> Any:
    if isinstance(column, Ragged):
        return column.take(rows)
    if isinstance(column, (list, tuple)):
        return [column[row] for row in rows.tolist()]
    return np.asanyarray(column)[rows]
