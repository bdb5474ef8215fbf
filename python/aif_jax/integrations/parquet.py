"""Items in Parquet files: catalogues to build from, and directories of changes to follow.

Needs pyarrow (``pip install 'aif_jax[train]'``). A row is an item. The column ``id`` holds its id, an integer
or a string of any type of Arrow, ``content``, if present, its content embedding (a list of floats, or null),
``rankable``, if present, a flag for items that may be candidates (null for yes); all others are raw item
features. A file of changes may have a column ``deleted``: where it is true (null for no), the item is
deleted. Flags are booleans, or the integers 0 and 1.
"""

import itertools
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from aif_jax.checks import typed
from aif_jax.extras import needs

needs("pyarrow", what=__name__)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aif_jax.errors import AifError, DataError
from aif_jax.inputs import read_content, read_flags, read_ids, read_table
from aif_jax.nearline import Delete, Delivery, Update, Upsert
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.update_source import own_error

_ID, _CONTENT, _RANKABLE, _DELETED = "id", "content", "rankable", "deleted"

_END = 1 << 62
"""In place of a row's number: the end of a file, whatever it held."""


@typed
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


@typed
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

    @typed
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
        found = path.stat()
        made_s = found.st_mtime
        done, failed = 0, None
        try:
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                raise DataError(f"{path}: is no file, expected a Parquet file; remove it.")
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
    ids = read_ids(columns.pop(_ID), f"{where}: {_ID!r}", error=DataError)
    columns.pop(_DELETED, None)
    content, rankable = columns.pop(_CONTENT, None), columns.pop(_RANKABLE, None)
    n, name = batch.num_rows, f"{where}: {_CONTENT!r}"
    return Upsert(
        ids=ids.given,
        columns=read_table(columns, where, error=DataError),
        content=None if content is None else read_content(content, n, None, name, error=DataError),
        rankable=None if rankable is None else _flags(rankable, _RANKABLE, True, where),
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
            made = [(change.num_rows, _update(change, where)) for change in _changes(part, where)]
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


def _changes(batch: pa.RecordBatch, where: str) -> Iterator[pa.RecordBatch]:
    """Cut a batch where deletions begin and end."""
    if _DELETED not in batch.schema.names:
        yield batch
        return
    deleted = _flags(batch.column(_DELETED), _DELETED, False, where)
    starts = [0, *(np.flatnonzero(deleted[1:] != deleted[:-1]) + 1).tolist(), len(deleted)]
    for start, end in itertools.pairwise(starts):
        yield batch.slice(start, end - start)


def _update(batch: pa.RecordBatch, where: str) -> Update:
    upsert = records(batch, where)
    gone = _DELETED in batch.schema.names and _flags(batch.column(_DELETED), _DELETED, False, where)[:1].any()
    return Delete(upsert.ids) if gone else upsert


def _flags(column: pa.Array, name: str, missing: bool, where: str) -> np.ndarray:
    return read_flags(column, len(column), f"{where}: {name!r}", missing=missing, error=DataError)
