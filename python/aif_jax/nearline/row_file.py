"""The snapshot file: rows of a table as they lie in memory, checksummed, replaced in one rename.

Layout, all numbers little-endian::

    0       magic, 8 bytes, then zeros
    65536   rows, one after the other, whole: as `EmbeddingCache` keeps them; zeros up to a multiple of 65536
    ...     sections, each at a multiple of 64: ``keys`` (uint64, that of each row), ``blocks`` (uint64,
            XXH3-64 of each 4 MiB of the rows), and ``names`` (string ids, each followed by a zero byte) where
            ids are strings
    ...     the footer (JSON, UTF-8): what the rows are, their columns, and offset, size and SHA-256 of each
            section
    -48     the footer's length (uint64), its SHA-256 (32 bytes), the magic again

Rows come first, so that they can be written before their number is known, and are aligned so that they can be
mapped and served without being read. The end of the file covers the whole: a file cut at any byte is refused
when it is opened, and so is one with any altered byte (of the rows, unless it is opened with
``verify=False``, which reads none of them).

A file is written to a temporary and renamed over the old one when the disk has all of it and it has been read
back, see `aif_jax.files`: a crash, a full disk and a fault leave the previous snapshot as it was.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from aif_jax import _native
from aif_jax.checks import well_formed
from aif_jax.errors import ItemIndexError, WriteError
from aif_jax.files import (
    check_replaceable_file,
    close_unflushed,
    make_directory,
    move_into_place,
    open_file,
    real_path,
    refusals,
    temporary_file,
)
from aif_jax.nearline.mapped_file import MappedFile
from aif_jax.nearline.store import ColumnSpecs, row_layout
from aif_jax.types import named_dtype

_MAGIC = b"AIFROWS2"
ROWS_AT = 65536
"""Offset of the rows in bytes; the room for them is a multiple of it."""
_ALIGN = 64
_MOVED = 4096
"""Rows that are moved at a time where some were taken out."""
_END = 8 + 32 + len(_MAGIC)
_FIX = "take an older snapshot, or build the rows again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFile:
    """Contents of a snapshot file. The rows themselves are not read.

    Attributes:
        file: the file that was opened, whatever has its path by now.
        kind: kind of rows: ``item_index`` or ``behaviour_table``.
        version: version of the bundle that computed them.
        columns: dtype and shape within one row, by name.
        keys: uint64 ``[n]``, in the order of the rows.
        names: the string id of each key, or ``None`` where ids are integers.
        notes: further values, JSON.
        mapped: the rows' bytes, uint8 ``[n * row_bytes]``, mapped.
    """

    file: MappedFile
    kind: str
    version: str
    columns: ColumnSpecs
    keys: np.ndarray
    names: list[str] | None
    notes: Mapping[str, Any]
    mapped: np.ndarray

    @property
    def path(self) -> Path:
        """The path that was opened."""
        return self.file.path

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return row_layout(self.columns).row_bytes

    def column(self, name: str) -> np.ndarray:
        """Return one column, ``[n, ...]``: a view of the mapped file."""
        dtype, shape = self.columns[name]
        n = len(self.keys)
        if not n or 0 in shape:
            return np.zeros((n, *shape), dtype)
        layout = row_layout(self.columns)
        rows = self.mapped.reshape(n, layout.row_bytes)
        start = layout.offsets[name]
        size = dtype.itemsize * int(np.prod(shape))
        return rows[:, start : start + size].view(dtype).reshape((n, *shape))


class RowFileWriter:
    """Writes a snapshot file: rows first, then `finish`.

    As a context manager it leaves nothing behind without that, unless a partial file was named: that is kept,
    and can be continued.

    Args:
        path: path of the file; parent directories that do not exist are made.
        kind: kind of rows.
        version: version of the bundle that computed them.
        columns: columns of a row.
        partial: file that holds the bytes until then; a temporary beside ``path`` if not named.
        rows: rows of the partial file to keep.

    Raises:
        ItemIndexError: the disk refuses, as in every method; or what is at ``path`` is no snapshot, and not
            replaced; or the partial file is shorter than its rows.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: str,
        version: str,
        columns: ColumnSpecs,
        partial: Path | None = None,
        rows: int = 0,
    ):
        self._given, self.path = path, real_path(path)
        self._about = {"kind": kind, "version": version}
        self._columns = columns
        self._layout = row_layout(columns)
        self._packed = np.zeros((0, self._layout.row_bytes), np.uint8)
        self._open = contextlib.ExitStack()
        self._stream: IO[bytes]
        with contextlib.ExitStack() as failed, self._writes(self._size(rows)):
            failed.callback(self._open.close)
            make_directory(self.path.parent)
            check_replaceable_file(path, _MAGIC[:-1])
            if partial is None:
                made = temporary_file(self.path, mode=0o644)
                self._stream, self.partial = self._open.enter_context(made)
            else:
                self.partial = partial
                self._stream = open_partial(partial, self._size(rows) if rows else 0)
                self._open.callback(close_unflushed, self._stream)
            self._stream.seek(0, os.SEEK_END)
            if not rows:
                self._write(_MAGIC.ljust(ROWS_AT, b"\0"))
            self._stream.flush()
            failed.pop_all()

    def write_rows(self, columns: Mapping[str, np.ndarray], n: int) -> None:
        """Append n rows, given as columns ``[n, ...]``.

        Raises:
            ItemIndexError: the disk refuses; the rows before are as they were.
        """
        if len(self._packed) < n:
            self._packed = np.zeros((n, self._layout.row_bytes), np.uint8)
        rows = self._packed[:n]  # padding stays zero
        for name, offset in self._layout.offsets.items():
            raw = np.ascontiguousarray(columns[name]).view(np.uint8).reshape(n, -1)
            rows[:, offset : offset + raw.shape[1]] = raw
        with self._writes(self._stream.tell() + rows.nbytes):
            self._write(rows.reshape(-1).data)

    def sync(self) -> None:
        """Return when the disk has all rows so far."""
        with self._writes(self._stream.tell()):
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def keep(self, places: np.ndarray) -> None:
        """Remove all rows but those at some places, ascending ``[m]``."""
        with self._writes():
            self._keep(places)

    def _keep(self, places: np.ndarray) -> None:
        self._stream.flush()
        size = self._layout.row_bytes
        first = int(np.argmax(places != np.arange(len(places)))) if len(places) else 0
        for to in range(first, len(places), _MOVED):
            some = places[to : to + _MOVED]
            self._stream.seek(ROWS_AT + int(some[0]) * size)
            span = int(some[-1]) - int(some[0]) + 1
            rows = np.frombuffer(self._stream.read(span * size), np.uint8).reshape(span, size)
            self._stream.seek(ROWS_AT + to * size)
            self._write(np.ascontiguousarray(rows[some - some[0]]).data)
        self._stream.truncate(ROWS_AT + len(places) * size)

    def checksums(self, n: int) -> np.ndarray:
        """Return the checksums of the n rows that were written, for `finish`."""
        with self._writes(self._size(n)):
            self._stream.flush()
        size = n * self._layout.row_bytes
        if not size:
            return np.empty(0, np.uint64)
        return _native.block_checksums(_mapped(self._stream, size))

    def write_table(self, cache: _native.EmbeddingCache, taken: Callable[[np.ndarray], object]) -> np.ndarray:
        """Write the rows of a cache as of one moment; return the checksums for `finish`.

        Args:
            cache: whose rows have this file's columns.
            taken: called with the keys, uint64 ``[n]``, once they are known; see `EmbeddingCache.write_rows`.
        """
        with self._writes(self._size(len(cache))):
            return cache.write_rows(self.partial, taken)

    def finish(
        self, keys: np.ndarray, checksums: np.ndarray, names: Sequence[str] | None, notes: Mapping[str, Any]
    ) -> None:
        """Write the sections after the rows, read the file back as `open_row_file` does, and rename it.

        Args:
            keys: uint64 ``[n]``, that of each row.
            checksums: of the rows, see `aif_jax._native.block_checksums`.
            names: the string id of each key, or ``None`` where ids are integers.
            notes: further values to keep, JSON.

        Raises:
            ItemIndexError: a string id holds a zero character, which the format uses as separator; the disk
                refuses; or the file cannot be read back as it was written. What was there is as it was.
        """
        self._stream.seek(0, os.SEEK_END)
        expected = self._size(len(keys))
        if self._stream.tell() != expected:
            raise AssertionError(f"{self._stream.tell()} bytes were written, expected {expected}")
        sections = {"keys": keys.astype("<u8").tobytes(), "blocks": checksums.astype("<u8").tobytes()}
        if names is not None:
            sections["names"] = joined_names(names)
        with self._writes(expected + sum(map(len, sections.values()))):
            self._end(len(keys), sections, notes)
            self._stream.seek(0)
            try:
                _read(self.partial, self._stream, self._about["kind"], True)
            except ItemIndexError as error:
                raise ItemIndexError(
                    f"{self._given}: is not written, and what was there is as it was: the new snapshot "
                    f"cannot be read back: {error}"
                ) from error
            move_into_place(self.partial, self.path)

    def _end(self, rows: int, sections: Mapping[str, bytes], notes: Mapping[str, Any]) -> None:
        """Write sections and footer, and return when the disk has them."""
        self._pad(ROWS_AT)
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sections.items():
            self._pad(_ALIGN)
            entries[name] = {
                "offset": self._stream.tell(), "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }  # fmt: skip
            self._write(content)
        footer = json.dumps({
            **self._about, "rows": rows, "row_bytes": self._layout.row_bytes,
            "columns": [[name, dtype.name, list(shape)] for name, (dtype, shape) in self._columns.items()],
            "notes": dict(notes), "sections": entries,
        }).encode()  # fmt: skip
        self._write(footer + len(footer).to_bytes(8, "little") + hashlib.sha256(footer).digest() + _MAGIC)
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _pad(self, align: int) -> None:
        self._write(b"\0" * (-self._stream.tell() % align))

    def _write(self, content: bytes | memoryview) -> None:
        self._stream.write(content)

    def _size(self, rows: int) -> int:
        return ROWS_AT + rows * self._layout.row_bytes

    @contextlib.contextmanager
    def _writes(self, needed: int | None = None) -> Iterator[None]:
        """Turn what the disk refuses in a block into an `ItemIndexError`, see `refusals`."""
        try:
            with refusals(self._given, needed):
                yield
        except WriteError as error:
            raise ItemIndexError(str(error)) from error


def open_partial(path: Path, size: int) -> IO[bytes]:
    """Open a file that a broken-off write left, cut to its valid bytes; made if absent.

    Raises:
        ItemIndexError: it is shorter than that.
        OSError: the system refuses.
    """
    stream = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")  # noqa: SIM115
    found = os.fstat(stream.fileno()).st_size
    if found < size:
        stream.close()
        raise ItemIndexError(
            f"{path}: has {found:,} bytes, expected {size:,} at least: it was cut short since the build that "
            "left it; pass resume=False to start over."
        )
    stream.truncate(size)
    stream.seek(size)
    return stream


def open_row_file(path: Path, *, kind: str | None = None, verify: bool = True) -> RowFile:
    """Read all of a snapshot file but the rows, and check it.

    Args:
        path: the file.
        kind: kind of rows that it must hold; ``None`` for any.
        verify: also read all rows and compare their checksums. Without that, opening takes no longer for
            larger rows, and a row that the disk has altered is served.

    Raises:
        ItemIndexError: the file is missing, cut short, altered, or holds another kind of rows.
    """
    path = Path(path)
    try:
        with open_file(path) as stream, well_formed(path, ItemIndexError, _FIX):
            return _read(path, stream, kind, verify)
    except OSError as error:
        raise ItemIndexError(f"{path}: cannot be read ({error.strerror}); check the path.") from error


def joined_names(names: Sequence[str]) -> bytes:
    """Return string ids as bytes, each followed by a zero byte.

    Raises:
        ItemIndexError: one holds a zero character.
    """
    joined = "\0".join(names)
    if joined.count("\0") != max(len(names) - 1, 0):
        wrong = next(name for name in names if "\0" in name)
        raise ItemIndexError(
            f"id {wrong!r}: holds a zero character, which cannot be kept on disk; rename it."
        )
    return (joined + "\0").encode() if names else b""


def split_names(joined: bytes) -> list[str]:
    """Undo `joined_names`.

    Raises:
        ValueError: the last id does not end.
    """
    *names, rest = joined.decode().split("\0")
    if rest:
        raise ValueError(f"ids end with {rest!r:.200}, expected a zero byte after each")
    return names


def _read(path: Path, stream: IO[bytes], kind: str | None, verify: bool) -> RowFile:
    file = MappedFile(path, stream.fileno())
    size = os.fstat(stream.fileno()).st_size
    begins = stream.read(len(_MAGIC))
    if begins[:-1] == _MAGIC[:-1] and begins != _MAGIC:
        raise ItemIndexError(
            f"{path}: is a snapshot of another format ({begins.decode(errors='replace')}, expected "
            f"{_MAGIC.decode()}); build the rows again."
        )
    if begins != _MAGIC:
        raise ItemIndexError(
            f"{path}: is not a snapshot ({size} bytes, no {_MAGIC.decode()} at its start); {_FIX}."
        )
    if size < ROWS_AT + _END:
        raise ItemIndexError(f"{path}: has {size} bytes, an empty snapshot has more: cut short; {_FIX}.")
    stream.seek(size - _END)
    end = stream.read(_END)
    length = int.from_bytes(end[:8], "little")
    if end[40:] != _MAGIC or length > size - _END - ROWS_AT:
        raise ItemIndexError(
            f"{path}: does not end as a snapshot ends: cut short, or its writing was broken off; {_FIX}."
        )
    stream.seek(size - _END - length)
    encoded = stream.read(length)
    if hashlib.sha256(encoded).digest() != end[8:40]:
        raise ItemIndexError(f"{path}: its footer does not match its own hash: altered; {_FIX}.")
    footer = json.loads(encoded)
    if kind not in (None, footer["kind"]):
        raise ItemIndexError(
            f"{path}: holds a snapshot of kind {footer['kind']!r}, expected {kind!r}; check the path."
        )
    if _holds_more_than_zeros(stream, len(_MAGIC), ROWS_AT):
        raise ItemIndexError(
            f"{path}: the bytes between its magic and its rows are not zero: altered; {_FIX}."
        )
    sizes = [footer["rows"], footer["row_bytes"]]
    sizes += [entry[name] for entry in footer["sections"].values() for name in ("offset", "bytes")]
    sizes += [size for _, _, shape in footer["columns"] for size in shape]
    if any(type(number) is not int or number < 0 for number in sizes):
        raise ItemIndexError(f"{path}: its footer holds sizes that are no whole numbers; {_FIX}.")
    sections: dict[str, bytes] = {}
    reached = ROWS_AT + footer["rows"] * footer["row_bytes"]
    for name, entry in footer["sections"].items():
        if not reached <= entry["offset"] <= entry["offset"] + entry["bytes"] <= size:
            raise ItemIndexError(f"{path}: section {name!r} lies outside the file; {_FIX}.")
        if _holds_more_than_zeros(stream, reached, entry["offset"]):
            raise ItemIndexError(f"{path}: the bytes before section {name!r} are not zero: altered; {_FIX}.")
        stream.seek(entry["offset"])
        content = stream.read(entry["bytes"])
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry["sha256"]:
            raise ItemIndexError(
                f"{path}: section {name!r} has the SHA-256 {digest}, expected {entry['sha256']}; {_FIX}."
            )
        sections[name] = content
        reached = entry["offset"] + entry["bytes"]
    if reached != size - _END - length:
        raise ItemIndexError(f"{path}: has {size} bytes, expected {reached + length + _END}; {_FIX}.")
    mapped = _mapped(stream, footer["rows"] * footer["row_bytes"])
    file.rows, file.blocks = (ROWS_AT, ROWS_AT + len(mapped)), np.frombuffer(sections["blocks"], "<u8")
    if verify:
        _verify(path, footer, mapped, file.blocks)
    found = RowFile(
        file=file, kind=footer["kind"], version=footer["version"],
        columns={name: (named_dtype(dtype), tuple(shape)) for name, dtype, shape in footer["columns"]},
        keys=np.frombuffer(sections["keys"], "<u8"),
        names=split_names(sections["names"]) if "names" in sections else None,
        notes=footer["notes"], mapped=mapped,
    )  # fmt: skip
    counts = {len(found.keys), len(found.keys if found.names is None else found.names), footer["rows"]}
    if len(counts) > 1 or found.row_bytes != footer["row_bytes"]:
        raise ItemIndexError(
            f"{path}: holds {len(found.keys)} keys of {found.row_bytes} bytes a row, its footer says "
            f"{footer['rows']} of {footer['row_bytes']}; {_FIX}."
        )
    return found


def _holds_more_than_zeros(stream: IO[bytes], start: int, end: int) -> bool:
    """Return whether a part of a file that should be padding holds anything but zeros."""
    stream.seek(start)
    return stream.read(end - start).strip(b"\0") != b""


def _mapped(stream: IO[bytes], size: int) -> np.ndarray:
    """Map the bytes of the rows, uint8 ``[size]``, of the file that is open, whatever has its name."""
    if not size:
        return np.empty(0, np.uint8)
    return np.asarray(np.memmap(stream, np.uint8, "r", ROWS_AT, (size,)))


def _verify(path: Path, footer: Mapping[str, Any], mapped: np.ndarray, expected: np.ndarray) -> None:
    found = _native.block_checksums(mapped) if len(mapped) else np.empty(0, np.uint64)
    wrong = np.flatnonzero(found != expected) if len(found) == len(expected) else np.zeros(1, int)
    if len(wrong):
        first = int(wrong[0]) * _native.BLOCK_BYTES // max(footer["row_bytes"], 1)
        raise ItemIndexError(
            f"{path}: {len(wrong)} of {len(expected)} blocks of rows do not have the checksum that was "
            f"written (from about row {first:,} on): altered; {_FIX}."
        )
