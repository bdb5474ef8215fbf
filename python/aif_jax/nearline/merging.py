"""Checked form of updates, and merging of consecutive ones: the program computes 256 rows as fast as one."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from aif_jax.errors import AifError, ItemIndexError, RequestError
from aif_jax.inputs import read_flat
from aif_jax.nearline.records import concatenated, read_records, take
from aif_jax.nearline.update_source import Delivery, own_error
from aif_jax.nearline.updates import Delete, Update, Upsert
from aif_jax.strict_json import shortened
from aif_jax.types import ItemRecords

_R = TypeVar("_R", bound=ItemRecords)


def checked(update: object) -> Update | AifError:
    """Return an update whose ids, columns, content and flags are arrays or lists of one length, or its error.

    Values are not looked at; that is what the table does.
    """
    try:
        if isinstance(update, BaseException):
            return own_error(update, "stream")
        if isinstance(update, Delete):
            return Delete(read_flat(update.ids, "ids", ordered=False))
        if not isinstance(update, Upsert):
            return ItemIndexError(f"stream: got a {type(update).__name__}, expected Upsert or Delete.")
        return checked_records(update)
    except Exception as error:  # an object need not be what its type says
        return own_error(error, "stream")


def checked_records(records: _R) -> _R:
    """Return records whose ids, columns, content and flags are arrays or lists of one length.

    Raises:
        RequestError: these are no such records.
    """
    if not isinstance(records, ItemRecords):
        raise RequestError(f"records: got a {type(records).__name__}, expected ItemRecords.")
    if isinstance(records.columns, Mapping):
        for column in records.columns:
            if not isinstance(column, str):
                raise RequestError(f"columns: got a name of type {type(column).__name__}, expected strings.")
    read = read_records(records)
    for name, rows in {**read.columns, "content": read.content, "rankable": read.rankable}.items():
        if rows is not None and len(rows) != len(read.ids):
            raise RequestError(
                f"{shortened(name)}: has {len(rows):,} rows, expected {len(read.ids):,}, one for each id."
            )
    return read


class Entry(NamedTuple):
    """A delivery, and its update or error after `checked`."""

    delivery: Delivery
    update: Update | AifError


def runs(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Cut entries into runs: consecutive upserts of the same columns, and every other one alone."""
    run: list[Entry] = []
    for one in entries:
        if run and not _alike(run[-1].update, one.update):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def joined(run: Sequence[Entry]) -> Any:
    """Return the update of a run; of an item, the last upsert counts."""
    if len(run) == 1:
        return run[0].update
    updates: list[Any] = [one.update for one in run]
    first = updates[0]
    whole = dataclasses.replace(
        first,
        ids=concatenated([update.ids for update in updates]),
        columns={name: concatenated([update.columns[name] for update in updates]) for name in first.columns},
        content=None if first.content is None else concatenated([update.content for update in updates]),
        rankable=None if first.rankable is None else concatenated([update.rankable for update in updates]),
    )
    last = {_key(item): place for place, item in enumerate(whole.ids)}
    return whole if len(last) == len(whole.ids) else take(whole, np.array(sorted(last.values())))


def halves(update: Update) -> Iterator[Update]:
    """Cut an update of several items into two."""
    n = len(update.ids)
    for places in (np.arange(n // 2), np.arange(n // 2, n)):
        if isinstance(update, Upsert):
            yield take(update, places)
        else:
            yield Delete(take(Upsert(update.ids, {}), places).ids)


def _alike(first: object, second: object) -> bool:
    return (
        isinstance(first, Upsert)
        and isinstance(second, Upsert)
        and first.columns.keys() == second.columns.keys()
        and _shape(first.content) == _shape(second.content)
        and _shape(first.rankable) == _shape(second.rankable)
    )


def _shape(column: Any) -> object:
    """Return a value that is equal for columns that may be joined to one; lists stay alone."""
    if column is None:
        return None
    return (column.dtype, column.shape[1:]) if isinstance(column, np.ndarray) else object()


def _key(item: Any) -> Any:
    """Return an id as a dictionary key: NumPy scalars as Python's."""
    return item.item() if isinstance(item, np.generic) else item
