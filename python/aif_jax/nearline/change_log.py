"""The change log: the changes of a table's rows since a snapshot, appended record by record.

A record is the CRC-32 of the rest (uint32), its kind (uint32), the length of its body (uint64), the bytes of
the log that the disk had confirmed when it was appended (uint64), and the body, all little-endian. The first
record describes the table.

A crash can break records that were appended since the last `ChangeLog.sync`, none of which was acknowledged:
reading ends before the first of them. A broken record that a later one records as confirmed was altered by
the disk, and is refused.
"""

import dataclasses
import enum
import errno
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from aif_jax.checks import well_formed
from aif_jax.errors import ArchiveError, ItemIndexError
from aif_jax.files import move_into_place, open_file, read_file
from aif_jax.nearline.row_file import joined_names, split_names
from aif_jax.nearline.store import ColumnSpecs

Position: TypeAlias = tuple[int | str, ...]
"""A position in a stream of updates. Of two positions in one stream, the greater one is later."""

_HEAD = struct.Struct("<IIQQ")
_KINDS = re.compile(rb"[\x01-\x05]\0\0\0")
_MAGIC = "AIFLOG1"
_FIX = "take an older snapshot with its logs, or build the rows again"


class _Kind(enum.IntEnum):
    ABOUT = 1
    ROWS = 2
    DELETED = 3
    POSITION = 4
    SEALED = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Rows that were written: keys uint64 ``[n]``, columns ``[n, ...]``, and the string ids if ids are
    strings."""

    keys: np.ndarray
    columns: dict[str, np.ndarray]
    names: list[str] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Deleted:
    """Keys, uint64 ``[n]``, whose rows were deleted."""

    keys: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Reached:
    """The records before hold all updates up to this position of the stream."""

    position: Position | None


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    """The log ends here, and the next one continues it."""


Change: TypeAlias = Rows | Deleted | Reached | Sealed


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """Description of the table that a log belongs to.

    Attributes:
        kind: kind of rows, as in a snapshot.
        version: version of the bundle that computed them.
        columns: dtype and shape within one row, by name.
    """

    kind: str
    version: str
    columns: ColumnSpecs

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        columns = [[name, dtype.name, list(shape)] for name, (dtype, shape) in self.columns.items()]
        return {"magic": _MAGIC, "kind": self.kind, "version": self.version, "columns": columns}


class ChangeLog:
    """Appends to a log. Not for several threads at once.

    Args:
        path: the log.
        about: its table.
        end: end of the last whole record; the rest is cut off. 0: the log is new.

    Raises:
        ArchiveError: it cannot be written.
    """

    def __init__(self, path: Path, about: About, end: int = 0):
        self.path, self._about = path, about
        self._broken: str | None = None
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o644)
            self.bytes = end
            """The log's length."""
            self._synced = self.bytes
            os.ftruncate(self._file, self.bytes)
            os.lseek(self._file, self.bytes, os.SEEK_SET)
        except OSError as error:
            self.close()
            raise ArchiveError(
                f"{path}: cannot be written ({error.strerror}); check the directory."
            ) from error
        if not end:
            try:
                self._append(_Kind.ABOUT, [json.dumps(about.to_json()).encode()])
            except ArchiveError:
                self.close()
                raise

    def rows(self, keys: np.ndarray, columns: Mapping[str, np.ndarray], names: Sequence[str] | None) -> None:
        """Append rows that are about to be written.

        Args:
            keys: uint64 ``[n]``.
            columns: all columns, ``[n, ...]``.
            names: the string ids, or ``None`` where ids are integers.

        Raises:
            ArchiveError: the disk refuses; the log is as it was.
        """
        joined = b"" if names is None else joined_names(names)
        head = struct.pack("<QQ", len(keys), len(joined) + 1 if names is not None else 0)
        parts = [head, _raw(keys), joined]
        parts += [_raw(np.ascontiguousarray(columns[name])) for name in self._about.columns]
        self._append(_Kind.ROWS, parts)

    def deleted(self, keys: np.ndarray) -> None:
        """Append that the rows of keys, uint64 ``[n]``, are about to be deleted; errors as of `rows`."""
        self._append(_Kind.DELETED, [_raw(keys)])

    def reached(self, position: Position | None) -> None:
        """Append the position up to which the stream of updates has been applied; errors as of `rows`."""
        self._append(_Kind.POSITION, [json.dumps(position).encode()])

    def seal(self) -> None:
        """Append that another log continues this one, and close it.

        Raises:
            ArchiveError: the disk refuses; the log goes on as it was.
        """
        before = self.bytes
        self._append(_Kind.SEALED, [])
        try:
            self.sync()
        except ArchiveError:
            self.bytes = before
            raise
        self.close()

    def sync(self) -> None:
        """Return when the disk has all records.

        Raises:
            ArchiveError: the disk refuses. The content of the disk is then unknown: the next call of any
                method writes again what was not confirmed, and raises this error until the disk has it.
        """
        self._repair()
        try:
            self._confirm()
        except OSError as error:
            self._broken = "the disk has not confirmed what was written"
            raise self._unconfirmed(error) from error

    def move(self, path: Path) -> None:
        """Rename the log, which the disk has."""
        move_into_place(self.path, path)
        self.path = path

    def close(self) -> None:
        """Close the file, without `sync`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, kind: _Kind, parts: Sequence[bytes | memoryview]) -> None:
        self._repair()
        length = sum(len(part) for part in parts)
        checksum = _checksum(kind, length, self._synced, parts)
        head = _HEAD.pack(checksum, kind, length, self._synced)
        pieces = [memoryview(head), *(memoryview(part) for part in parts)]
        try:
            for piece in pieces:
                while len(piece):
                    piece = piece[os.write(self._file, piece) :]
        except OSError as error:
            self._cut_back()
            advice = "free space on it" if error.errno == errno.ENOSPC else "check the disk"
            raise ArchiveError(
                f"{self.path}: cannot be written ({error.strerror}); these changes were not made. Then "
                f"{advice}, and try again."
            ) from error
        self.bytes += _HEAD.size + length

    def _cut_back(self) -> None:
        """Remove half a record."""
        try:
            os.ftruncate(self._file, self.bytes)
            os.lseek(self._file, self.bytes, os.SEEK_SET)
        except OSError:
            self._broken = "half a record cannot be taken back"

    def _confirm(self) -> None:
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(self._file)
        self._synced = self.bytes

    def _repair(self) -> None:
        """Write again what a failed sync has left unconfirmed: the system does not try that a second time.

        Raises:
            ArchiveError: the disk still refuses, or has lost what was written.
        """
        if self._broken is None:
            return
        try:
            os.ftruncate(self._file, self.bytes)
            place = self._synced
            while place < self.bytes:
                head = os.pread(self._file, _HEAD.size, place)
                length = _HEAD.unpack(head)[2] if len(head) == _HEAD.size else self.bytes
                record = head + _pread(self._file, min(length, self.bytes - place), place + len(head))
                if not _whole(record):
                    raise ArchiveError(
                        f"{self.path}: the disk has lost what it has not confirmed, from byte {place:,}. "
                        "Open the archive again, and the stream from the position that it has then."
                    )
                _pwrite(self._file, record, place)
                place += len(record)
            os.lseek(self._file, self.bytes, os.SEEK_SET)
            self._confirm()
        except OSError as error:
            raise self._unconfirmed(error) from error
        self._broken = None

    def _unconfirmed(self, error: OSError) -> ArchiveError:
        return ArchiveError(
            f"{self.path}: {self._broken} ({error.strerror}). Nothing more is written to it until the disk "
            "has that, which the next write tries again: check the disk."
        )


def read_log(path: Path, start: int = 0, *, about: About | None = None) -> Iterator[tuple[Change, int]]:
    """Read changes, as far as whole records go.

    Args:
        path: the log.
        start: first byte: 0, or an end that this yielded.
        about: the table that the log must belong to; needed if it has rows.

    Yields:
        A change, and the end of its record in bytes.

    Raises:
        ItemIndexError: the log is missing, belongs to another table, or has a broken record that was
            confirmed.
    """
    try:
        with open_file(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(start)
            while (place := stream.tell()) + _HEAD.size <= size:
                checksum, kind, length, synced = _HEAD.unpack(stream.read(_HEAD.size))
                end = place + _HEAD.size + length
                body = stream.read(length) if end <= size else b""
                if end > size or _checksum(kind, length, synced, [body]) != checksum:
                    _refuse_if_acknowledged(path, place)
                    return
                change: Change | None = None
                with well_formed(f"{path}: the record at byte {place:,}", ItemIndexError, _FIX):
                    if kind == _Kind.ABOUT:
                        _check_about(path, json.loads(body), about)
                    else:
                        change = _change(path, place, kind, body, about)
                if change is not None:
                    yield change, end
    except OSError as error:
        raise ItemIndexError(f"{path}: cannot be read ({error.strerror}); {_FIX}.") from error


def _refuse_if_acknowledged(path: Path, place: int) -> None:
    """Raise if the disk had confirmed the broken record at a place: if a whole one behind it records that.

    Raises:
        ItemIndexError: it was.
    """
    rest = read_file(path)[place:]
    for found in _KINDS.finditer(rest, 5):
        head = found.start() - 4
        if head + _HEAD.size > len(rest):
            return
        checksum, kind, length, synced = _HEAD.unpack_from(rest, head)
        body = rest[head + _HEAD.size : head + _HEAD.size + length]
        plausible = len(body) == length and place < synced <= place + head
        if plausible and _checksum(kind, length, synced, [body]) == checksum:
            raise ItemIndexError(
                f"{path}: the record at byte {place:,} is altered, which the disk had confirmed; {_FIX}."
            )


def _checksum(kind: int, length: int, synced: int, parts: Sequence[bytes | memoryview]) -> int:
    checksum = zlib.crc32(struct.pack("<IQQ", kind, length, synced))
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _change(path: Path, place: int, kind: int, body: bytes, about: About | None) -> Change:
    if kind == _Kind.ROWS and about is not None:
        return _rows(body, about.columns)
    if kind == _Kind.DELETED:
        return Deleted(np.frombuffer(body, "<u8"))
    if kind == _Kind.POSITION:
        position = json.loads(body)
        if position is not None and not (
            isinstance(position, list) and all(type(part) in (int, str) for part in position)
        ):
            raise ValueError(f"the position {position!r}")
        return Reached(None if position is None else tuple(position))
    if kind == _Kind.SEALED:
        return Sealed()
    raise ItemIndexError(f"{path}: the record at byte {place:,} is of an unknown kind, {kind}; {_FIX}.")


def _rows(body: bytes, columns: ColumnSpecs) -> Rows:
    n, joined = map(int, np.frombuffer(body, "<u8", 2))
    place = 16
    keys = np.frombuffer(body, "<u8", n, place)
    place += keys.nbytes
    names = None
    if joined:
        names = split_names(body[place : place + joined - 1])
        place += joined - 1
    read: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in columns.items():
        count = n * int(np.prod(shape))
        # A copy, because names leave columns at odd addresses.
        read[name] = np.frombuffer(body[place : place + count * dtype.itemsize], dtype).reshape((n, *shape))
        place += count * dtype.itemsize
    ids = len(keys if names is None else names)
    if place != len(body) or ids != n:
        raise ValueError(f"{n} rows of {place} bytes in {len(body)}, with {ids} ids")
    return Rows(keys, read, names)


def _check_about(path: Path, found: Mapping[str, Any], about: About | None) -> None:
    expected = None if about is None else about.to_json()
    if expected is not None and found != expected:
        differing = sorted(name for name in expected if found.get(name) != expected[name])
        raise ItemIndexError(
            f"{path}: is the log of another table, which differs in {', '.join(differing)}: got "
            f"{[found.get(name) for name in differing]}, expected {[expected[name] for name in differing]}."
        )


def _whole(record: bytes) -> bool:
    """Return whether bytes are one record."""
    if len(record) < _HEAD.size:
        return False
    checksum, kind, length, synced = _HEAD.unpack_from(record)
    body = memoryview(record)[_HEAD.size :]
    return len(body) == length and _checksum(kind, length, synced, [body]) == checksum


def _pread(file: int, length: int, place: int) -> bytes:
    parts: list[bytes] = []
    while length and (part := os.pread(file, length, place)):
        parts.append(part)
        place, length = place + len(part), length - len(part)
    return b"".join(parts)


def _pwrite(file: int, content: bytes, place: int) -> None:
    rest = memoryview(content)
    while len(rest):
        written = os.pwrite(file, rest, place)
        place, rest = place + written, rest[written:]


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
