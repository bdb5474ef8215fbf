"""The files of a log of requests, see `aif_jax.observe.RequestLog`, read into flat arrays."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.data.tables import CodedIds, code_ids, compute
from aif_jax.errors import DataError
from aif_jax.extras import needs
from aif_jax.inputs import read_column

UNKNOWN_TIME = -1
"""The time of a behaviour of which nobody knows when it was; a gap beside it is unknown."""

_US = 10**6


@dataclasses.dataclass(frozen=True)
class Flat:
    """A column of lists, without the lists.

    Attributes:
        values: Arrow array ``[n]`` of all values.
        owner: int32 ``[n]``, row of each, ascending.
    """

    values: Any
    owner: np.ndarray

    def ids(self, name: str) -> CodedIds:
        """Return the values as ids."""
        return code_ids(self.values, f"request log: {name}")


@dataclasses.dataclass(frozen=True)
class LoggedRequests:
    """Requests, in the order of their ids.

    Attributes:
        ids: strings ``[R]``, ascending.
        time: int64 ``[R]``, microseconds since 1970.
        left_out: requests that were left out, by reason.
        table: Arrow table of all columns, ``R`` rows.
    """

    ids: CodedIds
    time: np.ndarray
    left_out: dict[str, int]
    table: Any

    def __len__(self) -> int:
        return self.table.num_rows

    def features(self, group: str) -> dict[str, Any]:
        """Return the raw columns of the user or the context by feature, ``[R]``."""
        return {
            name.partition(".")[2]: read_column(self.table[name], name, error=DataError)
            for name in self.table.column_names
            if name.startswith(f"{group}.")
        }

    def flat(self, name: str, *, newest_last: bool = False) -> Flat:
        """Return a column of lists as flat values; nothing of a column that is not there.

        Args:
            name: of the column.
            newest_last: whether to turn each list around.
        """
        import pyarrow as pa

        if name not in self.table.column_names or pa.types.is_null(self.table[name].type):
            return Flat(pa.array([], pa.int64()), np.zeros(0, np.int32))
        pc, column = compute(), self.table[name].combine_chunks()
        sizes = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
        values, owner = column.flatten(), np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        if newest_last:
            ends = np.cumsum(sizes)
            values = values.take(pa.array(np.repeat(2 * ends - sizes - 1, sizes) - np.arange(len(owner))))
        return Flat(values, owner)

    def pair(self, candidates: Flat) -> dict[str, Any]:
        """Return the raw pair features of the candidates ``[C]``; missing where a request had none."""
        found: dict[str, Any] = {}
        for name in self.table.column_names:
            if name.startswith("pair."):
                column = self.flat(name)
                if not np.array_equal(column.owner, candidates.owner):
                    column = _spread(column, candidates.owner)
                found[name.partition(".")[2]] = read_column(column.values, name, error=DataError)
        return found

    def times(self, items: Flat) -> np.ndarray:
        """Return when each behaviour was, oldest first, never falling in a request, int64 microseconds.

        One that has no time gets that of the one before it, or `UNKNOWN_TIME` where there is none.
        """
        times = self.flat("history.time", newest_last=True)
        if not len(times.owner):
            return np.full(len(items.owner), UNKNOWN_TIME)
        if not np.array_equal(times.owner, items.owner):
            times = _spread(times, items.owner)
        seconds = np.asarray(compute().fill_null(times.values, np.nan)).astype(np.float64)
        known = seconds >= 0
        whole = np.where(known, np.round(np.where(known, seconds, 0.0) * _US), UNKNOWN_TIME).astype(np.int64)
        # One running maximum for all requests: those of a later one lie above all of those before.
        span = int(whole.max(initial=0)) + 2
        if len(self) * span < 1 << 62:
            return np.maximum.accumulate(whole + items.owner * np.int64(span)) - items.owner * np.int64(span)
        starts = np.flatnonzero(np.r_[True, np.diff(items.owner) > 0])
        parts = np.split(whole, starts[1:])
        return np.concatenate([np.maximum.accumulate(part) for part in parts])


def read_request_log(source: str | Path | Sequence[str | Path]) -> LoggedRequests:
    """Read the files of a log.

    Args:
        source: the folder of a log, a file of it, or several of either.

    Raises:
        DataError: there is no such file, or it is of no request log.
    """
    needs("pyarrow", what="reading a request log")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pc, tables = compute(), []
    for given in [source] if isinstance(source, (str, Path)) else source:
        path = Path(given)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"request log: {path} holds no *.parquet file; give the folder of a RequestLog.")
        for file in files:
            try:
                tables.append(pq.ParquetFile(file).read())
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"request log: {file} cannot be read: {str(error)[:150]}.") from error
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"request log: a column is of different kinds in two files ({str(error)[:150]}); read them apart."
        ) from error
    if absent := {"request_id", "time", "candidates", "user_state"} - set(table.column_names):
        raise DataError(
            f"request log: has no column {min(absent)!r}; expected the files of aif_jax.observe.RequestLog, "
            f"got the columns {str(table.column_names)[:150]}."
        )
    logged = table.num_rows
    table = table.filter(pc.not_equal(table["user_state"], "prior"))
    left_out = {"of requests ranked by the user prior, whose record is not known": logged - table.num_rows}
    table = table.take(pc.sort_indices(table["request_id"]))
    ids = code_ids(table["request_id"], "request log: request_id")
    if not table.num_rows:
        raise DataError(f"request log: none of the {logged:,} requests has the record of its user.")
    if len(ids.values) < table.num_rows:
        raise DataError("request log: a request is there twice; give each file once.")
    time = np.asarray(table["time"].cast(pa.int64()))
    return LoggedRequests(ids, time, {reason: n for reason, n in left_out.items() if n}, table)


def _spread(column: Flat, owner: np.ndarray) -> Flat:
    """Return a column with missing values for the owners that it has none of.

    Raises:
        DataError: an owner has another number of values than of places.
    """
    import pyarrow as pa

    size = int(max(owner.max(initial=-1), column.owner.max(initial=-1))) + 1
    places, values = np.bincount(owner, minlength=size), np.bincount(column.owner, minlength=size)
    if np.any((values > 0) & (values != places)):
        raise DataError("request log: a request has columns of different lengths.")
    has = (values > 0)[owner]
    index = np.where(has, np.cumsum(has) - 1, 0)
    return Flat(column.values.take(pa.array(index, mask=~has)), owner)
