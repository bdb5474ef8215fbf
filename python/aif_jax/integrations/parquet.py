"""Items in Parquet files: catalogues to build from, and directories of changes to follow.

Needs pyarrow (``pip install 'aif_jax[train]'``). A row is an item. The column ``id`` holds its id,
``content``, if present, its content embedding (a list of floats, or null), ``rankable``, if present, a flag
for items that may be candidates; all others are raw item features. A file of changes may have a column
``deleted``: where it is true, the item is deleted.
"""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aif_jax.checks import well_formed
from aif_jax.errors import AifError, DataError
from aif_jax.features import Ragged
from aif_jax.nearline import Delete, Delivery, Update, Upsert
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.update_source import own_error

_ID, _CONTENT, _RANKABLE, _DELETED = "id", "content", "rankable", "deleted"

_END = 1 << 62
"""In place of a row's number: the end of a file, whatever it held."""


def catalogue_batches(paths: str | Path | Sequence[str | Path], *, rows: int = 16_384) -> Iterator[Upsert]:
    """Read a catalogue batch by batch.

    Args:
        paths: a file, a directory of ``*.parquet`` files (read in the order of their names), or files.
        rows: in a batch, at most.

    Raises:
        DataError: there is no such file, or one does not have the format above.
    """
    for path in _files(paths):
        for batch in _batches(path, rows):
            yield records(batch, str(path))


def catalogue_rows(paths: str | Path | Sequence[str | Path]) -> int:
    """Return the number of items of a catalogue; see `catalogue_batches`."""
    return sum(_metadata(path).num_rows for path in _files(paths))


class ParquetUpdates:
    """A directory to which files of changes are added, as source of a `Follower`.

    Files are read in the order of their names, so that a new one must have a greater name than all before it
    (a time, say), and must be complete when it gets it: write it elsewhere and rename it. Files that were
    acknowledged may be deleted.

    A row that is no update is delivered as its error. So is a file that is not Parquet or not of the format
    above, once and as a whole, and the rest of one that is broken within; following goes on with the next
    file. Mend it, and add it again under a greater name.

    Args:
        directory: directory of the files.
        endless: wait for more; otherwise the stream ends with the last file.
        rows: maximum of rows that are delivered together.

    Raises:
        DataError: there is no such directory.
    """

    def __init__(self, directory: str | Path, *, endless: bool = True, rows: int = 4096):
        self._directory, self._endless, self._rows = Path(directory), endless, rows
        self._reading: Iterator[list[Delivery]] = iter(())
        self._reached: Position | None = None
        self._done = ""
        """The last file that was read to its end."""
        if not self._directory.is_dir():
            raise DataError(
                f"{directory}: is not a directory; expected one to which Parquet files are added."
            )

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery] | None:
        """Return the changes of a batch of rows; see `UpdateSource`.

        Raises:
            OSError: the system does not give a file or the directory.
        """
        if self._reached is None:
            self._reached = ("", 0) if after is None else after
        try:
            deliveries = next(self._reading, None)
            if deliveries is None:
                path = self._next(self._reached)
                if path is None:
                    if self._endless:
                        time.sleep(wait_s)
                        return ()
                    return None
                passed = int(self._reached[1]) if path.name == self._reached[0] else 0
                self._reading = self._deliveries(path, passed)
                deliveries = next(self._reading, ())
        except OSError:
            self._reading, self._reached = iter(()), after
            raise
        if deliveries:
            self._reached = deliveries[-1].position
        return deliveries

    def acknowledge(self, position: Position) -> None:
        """Do nothing: files stay until their owner deletes them."""

    def _next(self, reached: Position) -> Path | None:
        """Return the first file that has not been read to its end."""
        names = [name for name in os.listdir(self._directory) if name.endswith(".parquet")]
        later = [name for name in names if (name, _END) > reached and name > self._done]
        return self._directory / min(later) if later else None

    def _deliveries(self, path: Path, passed: int) -> Iterator[list[Delivery]]:
        """Yield the changes of each batch of rows, those of the first ``passed`` rows left out."""
        made_s = path.stat().st_mtime
        done, failed = 0, None
        try:
            for batch in _raw_batches(path, self._rows):
                if not done:
                    _check_schema(batch, str(path))
                start, done = done, done + batch.num_rows
                if done > passed:
                    skipped = max(passed - start, 0)
                    yield [
                        Delivery((path.name, start + skipped + row), update, made_s, raw)
                        for row, update, raw in _updates(batch.slice(skipped), str(path))
                    ]
        except OSError as error:
            if error.errno is not None:  # that is the system's; Arrow's own are of what a file holds
                raise
            failed = own_error(error, f"{path}, from row {done} on")
        except Exception as error:
            failed = own_error(error, f"{path}, from row {done} on")
        if failed is not None:
            yield [Delivery((path.name, _END), failed, made_s, (os.fsencode(path),))]
        self._done = path.name


def records(batch: pa.RecordBatch, where: str) -> Upsert:
    """Return the items of a batch of rows; ``where`` names it in errors.

    Raises:
        DataError: it does not have the format of the module.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if _ID not in columns:
        raise DataError(
            f"{where}: has no column {_ID!r}, only {sorted(columns)}; name the column of item ids so."
        )
    ids = columns.pop(_ID)
    if ids.null_count or not (pa.types.is_integer(ids.type) or _is_text(ids.type)):
        raise DataError(
            f"{where}: the column {_ID!r} is {ids.type} with {ids.null_count} nulls, expected integers or "
            "strings, and none missing."
        )
    columns.pop(_DELETED, None)
    content, rankable = columns.pop(_CONTENT, None), columns.pop(_RANKABLE, None)
    return Upsert(
        ids=ids.to_pylist() if _is_text(ids.type) else ids.to_numpy(zero_copy_only=False),
        columns={name: _raw(column) for name, column in columns.items()},
        content=None if content is None else _content(content, where),
        rankable=None if rankable is None else _flags(rankable, True),
    )


def _files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [paths] if isinstance(paths, (str, Path)) else paths
    found: list[Path] = []
    for path in map(Path, given):
        found += sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    wrong = [f"{path}: is not a file" for path in found if not path.is_file()]
    if wrong or not found:
        what = wrong[0] if wrong else f"{paths}: no *.parquet file is there"
        raise DataError(f"{what}; expected Parquet files, or a directory of them.")
    return found


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}).") from error


def _batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    try:
        yield from _raw_batches(path, rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}).") from error


def _raw_batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(rows)


def _check_schema(batch: pa.RecordBatch, where: str) -> None:
    """Raise a `DataError` if no row of the batch can be an update."""
    records(batch.slice(0, 0), where)
    if _DELETED in batch.schema.names:
        kind = batch.schema.field(_DELETED).type
        if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"{where}: the column {_DELETED!r} is {kind}, expected bool (or the integers 0 and 1): "
                "true where the item is deleted."
            )


def _updates(batch: pa.RecordBatch, where: str) -> Iterator[tuple[int, Update | AifError, tuple[bytes, ...]]]:
    """Yield updates, or the errors of rows that are none, after the number of rows up to its end.

    The last of the three are the bytes of the row of an error.
    """
    done = 0
    pending = [batch]
    while pending:
        part = pending.pop()
        try:
            made = [(change.num_rows, _update(change, where)) for change in _changes(part)]
        except Exception as error:
            if (n := part.num_rows) > 1:
                pending += [part.slice(n // 2), part.slice(0, n // 2)]
                continue
            done += 1
            yield done, own_error(error, where), (_arrow_bytes(part),)
            continue
        for rows, update in made:
            done += rows
            yield done, update, ()


def _arrow_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _changes(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch where deletions begin and end."""
    if _DELETED not in batch.schema.names:
        yield batch
        return
    deleted = _flags(batch.column(_DELETED), False)
    starts = [0, *(np.flatnonzero(deleted[1:] != deleted[:-1]) + 1).tolist(), len(deleted)]
    for start, end in itertools.pairwise(starts):
        yield batch.slice(start, end - start)


def _update(batch: pa.RecordBatch, where: str) -> Update:
    upsert = records(batch, where)
    gone = _DELETED in batch.schema.names and bool(_flags(batch.column(_DELETED), False)[:1].any())
    return Delete(upsert.ids) if gone else upsert


def _raw(column: pa.Array) -> Any:
    """Return a column as raw features: arrays where numbers are whole, lists where something is missing."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        if column.null_count == 0 and column.values.null_count == 0:
            offsets = column.offsets.to_numpy().astype(np.int64)
            values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
            return Ragged(_raw(values), offsets - offsets[0])
        return column.to_pylist()
    if pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False)  # null becomes NaN, which is a missing value
    if column.null_count == 0 and pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


def _content(column: pa.Array, where: str) -> np.ndarray | None:
    rows = column.to_pylist()
    with well_formed(f"{where}: {_CONTENT!r}", DataError, "write a list of numbers for each item, or null"):
        widths = {len(row) for row in rows if row is not None}
        if len(widths) > 1:
            raise DataError(
                f"{where}: content of different widths, {sorted(widths)}; expected one width for all items."
            )
        if not widths:
            return None
        width = widths.pop()
        missing = [float("nan")] * width
        rows = [missing if row is None else row for row in rows]
        return np.array(rows, np.float32).reshape(len(rows), width)


def _flags(column: pa.Array, missing: bool) -> np.ndarray:
    return np.array([missing if value is None else bool(value) for value in column.to_pylist()], np.bool_)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
