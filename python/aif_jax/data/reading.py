"""Logs and tables of users and items, read into arrays: ids as row numbers, times as whole numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.data.moments import Moments, read_moments
from aif_jax.data.rows import take_columns
from aif_jax.data.tables import CodedIds, SortedIds, Table, code_ids, open_table
from aif_jax.errors import DataError
from aif_jax.inputs import read_numbers

UNLISTED = ("refuse", "keep", "drop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """Names of the columns of a log.

    Attributes:
        user: id of the user.
        item: id of the item.
        time: when it happened.
        type: the kind of behaviour, or ``None``.
        request: what was shown together, or ``None``.
        split: the part of the row, or ``None``.
        labels: column of each head.
        context: features of the request.
        pair: features of user and item.
        train_only: features that serving does not have.
    """

    user: str
    item: str
    time: str
    type: str | None = None
    request: str | None = None
    split: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    context: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        roles: dict[str, str] = {}
        for role in ("user", "item", "time", "type"):
            column = getattr(self, role)
            if column is not None and (other := roles.setdefault(column, role)) != role:
                raise DataError(f"{role}: got {column!r}, which is the column of {other} already.")

    @property
    def features(self) -> tuple[str, ...]:
        """Columns of features, each once."""
        return tuple(dict.fromkeys((*self.context, *self.pair, *self.train_only)))


@dataclasses.dataclass
class RawLog:
    """A log as it was read, in the order of the source.

    Attributes:
        name: names the table in errors.
        user: ids of users.
        item: ids of items.
        moments: times.
        words: coded columns ``type`` and ``request``, where the names have them.
        columns: features by name, ``split``, and ``label HEAD`` and ``mask HEAD`` of each head.
    """

    name: str
    user: CodedIds
    item: CodedIds
    moments: Moments
    words: dict[str, CodedIds]
    columns: dict[str, Any]


@dataclasses.dataclass
class Log:
    """Rows of a log.

    Attributes:
        user: int32 ``[n]``, row of the user.
        item: int32 ``[n]``, row of the item.
        time: int64 ``[n]``.
        columns: further columns ``[n]`` by name.
        left_out: rows that were left out, by reason.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    columns: dict[str, Any]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> "Log":
        """Return chosen rows, in the order given."""
        columns = take_columns(self.columns, rows)
        return Log(self.user[rows], self.item[rows], self.time[rows], columns, self.left_out)

    def without(self, gone: np.ndarray, reason: str) -> "Log":
        """Return the log without some rows bool ``[n]``, which are counted under a reason."""
        count = int(np.count_nonzero(gone))
        if not count:
            return self
        self.left_out[reason] = self.left_out.get(reason, 0) + count
        return self.take(np.flatnonzero(~gone))

    def in_order(self) -> "Log":
        """Return the rows by user, then by time, then in the order of the source."""
        user, time = self.user, self.time
        falls = (user[1:] < user[:-1]) | ((user[1:] == user[:-1]) & (time[1:] < time[:-1]))
        if not falls.any():
            return self
        span = int(time.max()) - int(time.min()) + 1
        if (int(user.max()) + 1) * span < 1 << 63:  # one key takes half as long as two
            return self.take(np.argsort(user * np.int64(span) + (time - time.min()), kind="stable"))
        return self.take(np.lexsort((time, user)))


@dataclasses.dataclass(frozen=True)
class Side:
    """Users or items.

    Attributes:
        ids: in ascending order.
        columns: raw columns by name, in that order, without the ids.
        idle: how many of the table occur in no log; 0 without a table.
        unlisted: how many occur in a log and not in the table.
    """

    ids: SortedIds
    columns: dict[str, Any]
    idle: int = 0
    unlisted: int = 0


def read_log(source: Any, name: str, names: Names, time_unit: str | None) -> RawLog:
    """Read the named columns of a log.

    Args:
        source: see `open_table`.
        name: names the table in errors.
        names: of its columns.
        time_unit: see `read_moments`.

    Raises:
        DataError: it is no table, is empty, lacks a column, or a column holds something else.
    """
    special = (names.user, names.item, names.time, names.type, names.request, names.split)
    wanted = [column for column in (*special, *names.labels.values(), *names.features) if column is not None]
    table = open_table(source, name, wanted)
    if not table.rows:
        raise DataError(f"{name}: got a table without rows.")

    def coded(column: str) -> CodedIds:
        return code_ids(table.arrow(column), table.named(column))

    columns: dict[str, Any] = {column: table.plain(column) for column in names.features}
    for head, column in names.labels.items():
        columns[f"label {head}"], columns[f"mask {head}"] = read_label(table, column)
    if names.split is not None:
        columns["split"] = np.asarray(table.plain(names.split))
    words = {
        role: coded(column)
        for role, column in (("type", names.type), ("request", names.request))
        if column is not None
    }
    moments = read_moments(table.arrow(names.time), f"{name}: column {names.time!r}", time_unit)
    return RawLog(name, coded(names.user), coded(names.item), moments, words, columns)


def number(raw: RawLog, users: Side, items: Side, *, unlisted: str) -> Log:
    """Return a log with row numbers for ids; rows without user, item, time or type are left out, and counted.

    Args:
        raw: as `read_log` returned it.
        users: all users.
        items: all items.
        unlisted: ``drop`` leaves out rows of users and items that their table lacks.
    """
    left_out: dict[str, int] = {}
    log = Log(
        users.ids.rows(raw.user),
        items.ids.rows(raw.item),
        raw.moments.values,
        {**raw.columns, **{role: coded.codes for role, coded in raw.words.items()}},
        left_out,
    )
    gaps = {"without a user": raw.user.codes < 0, "without an item": raw.item.codes < 0}
    if unlisted == "drop":
        gaps["of users that the table lacks"] = (log.user < 0) & (raw.user.codes >= 0)
        gaps["of items that the table lacks"] = (log.item < 0) & (raw.item.codes >= 0)
    if raw.moments.missing is not None:
        gaps["without a time"] = raw.moments.missing
    gone = np.zeros(len(log), bool)
    for reason, gap in gaps.items():
        if count := int(np.count_nonzero(gap & ~gone)):
            left_out[reason] = count
            gone |= gap
    if not gone.any():
        return log
    if gone.all():
        raise DataError(f"{raw.name}: no row is left: {_listed(left_out)}.")
    return log.take(np.flatnonzero(~gone))


def read_side(source: Any, name: str, column: str, coded: list[CodedIds], *, unlisted: str) -> Side:
    """Read the table of users or items, or make one of the ids in the logs.

    Args:
        source: the table, see `open_table`; ``None`` for the ids of the logs alone.
        name: ``users`` or ``items``.
        column: of the ids, in the logs and in the table.
        coded: the ids of each log.
        unlisted: for ids of the logs that the table lacks: ``refuse``, ``keep`` or ``drop``.

    Raises:
        DataError: the logs mix integers and strings, the table has an id twice or lacks one, and the rest of
            `open_table`.
    """
    if unlisted not in UNLISTED:
        raise DataError(f"unlisted: got {unlisted!r}, expected {', '.join(map(repr, UNLISTED))}.")
    kinds = {one.strings for one in coded if len(one.values)}
    if len(kinds) > 1:
        raise DataError(f"{name}: the ids are strings in one log and integers in another; convert one.")
    logged = SortedIds.of(*coded)
    if not len(logged):
        raise DataError(f"column {column!r}: every id is missing.")
    if source is None:
        return _checked(Side(logged, {}), name)
    table = open_table(source, name)
    if column not in table.columns:
        raise DataError(
            f"{name}: has no column {column!r}, the ids as the log names them; its columns are "
            f"{str(list(table.columns))[:150]}. Rename the column of ids."
        )
    own = code_ids(table.arrow(column), f"{name}: column {column!r}")
    listed = SortedIds.of(own)
    if len(listed) and listed.strings != logged.strings:
        words = {True: "strings", False: "integers"}
        raise DataError(
            f"{name}: ids are {words[listed.strings]} such as {_examples(listed)}, but the log has "
            f"{words[logged.strings]} such as {_examples(logged)}; convert one of them."
        )
    if (own.codes < 0).any():
        raise DataError(f"{name}: {np.count_nonzero(own.codes < 0):,} rows have no id; leave them out.")
    counts = np.bincount(own.codes, minlength=len(own.values))
    if (twice := np.flatnonzero(counts > 1)).size:
        example = own.values[int(twice[0])].as_py()
        raise DataError(
            f"{name}: {twice.size:,} ids stand more than once, such as {example!r} in rows "
            f"{np.flatnonzero(own.codes == twice[0])[:2].tolist()}; keep one row of each."
        )
    strangers = listed.lacks(logged)
    idle = len(listed) - (len(logged) - len(strangers))
    if len(strangers) and unlisted == "refuse":
        raise DataError(
            f"{name}: the table lacks {len(strangers):,} of the {len(logged):,} ids in the log, such as "
            f"{_examples(strangers)}. Add them, or give unlisted='keep' (their features are missing) or "
            "unlisted='drop' (their rows are left out and counted)."
        )
    ids = listed
    if len(strangers) and unlisted == "keep":
        ids = listed.joined(strangers)
    order = ids.rows(own)
    source_row = np.full(len(ids), -1)
    source_row[order] = np.arange(len(order))
    columns = {other: _placed(table.plain(other), source_row) for other in table.columns if other != column}
    return _checked(Side(ids, columns, idle, len(strangers) if unlisted != "refuse" else 0), name)


def _checked(side: Side, name: str) -> Side:
    if name == "items" and len(side.ids) and not side.ids.strings and side.ids.values[0].as_py() < 0:
        raise DataError(
            f"items: got the negative id {side.ids.values[0]}, expected non-negative integers or strings."
        )
    return side


def _placed(column: Any, source_row: np.ndarray) -> Any:
    """Return a column of a table in the order of the ids; ``None`` where the table has no row."""
    if (source_row >= 0).all():
        return take_columns({"": column}, source_row)[""]
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
        column = np.ma.MaskedArray(column[np.maximum(source_row, 0)], mask=source_row < 0)
        return column
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return [None if row < 0 else values[row] for row in source_row.tolist()]


def read_label(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a label and where it is known, float32 ``[n]`` each."""
    numbers = read_numbers(table.columns[column], f"label {column!r}", error=DataError)
    known = ~np.isnan(numbers)
    wrong = known & (numbers != 0) & (numbers != 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"label {column!r}: {np.count_nonzero(wrong):,} of {len(numbers):,} values are neither 0 nor 1, "
            f"such as {numbers[row]:g} in row {row}; make a label of grades first, such as "
            f"log[{column!r}] >= {max(1, np.nanmax(numbers) / 2):g}."
        )
    return np.where(known, numbers, 0.0).astype(np.float32), known.astype(np.float32)


def _examples(ids: SortedIds) -> str:
    return ", ".join(
        repr(value) if isinstance(value, str) else str(value) for value in ids.values[:3].to_pylist()
    )[:80]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
