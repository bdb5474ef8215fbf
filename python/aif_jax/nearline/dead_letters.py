"""Dead letters: the entries of a stream that could not be applied, in a file beside the archive.

``dead-letters.jsonl`` holds a line of JSON for each. It is on disk before the position that passes the entry
over is, so a crash loses none; a crash between the two writes an entry again after the restart, and
`read_dead_letters` leaves such repetitions out.
"""

import base64
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aif_jax.checks import typed
from aif_jax.errors import ArchiveError, DataError
from aif_jax.files import read_file, sync_directory
from aif_jax.nearline.change_log import Position
from aif_jax.strict_json import plain, shortened

_NEWEST, _OLDER = "dead-letters.jsonl", "dead-letters.older.jsonl"
LEAST_BYTES = 1 << 20
"""Least bound of the files: a line without its raw bytes fits into half of it."""

_MAX_REASONS, _MAX_REASON_CHARS, _MAX_ID_CHARS = 100, 500, 200


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry of a stream that was set aside, as a whole or some of its items.

    Attributes:
        position: its position in the stream; ``None`` if the source gave none that can be used.
        reasons: ids of the items that were set aside, and the error's name and text; no ids where the entry
            as a whole was. Of one entry, the first 100.
        raw: bytes that the source read. For a Redis stream the names and values of the entry's fields in
            turns, so ``client.execute_command("XADD", stream, "*", *letter.raw)`` sends it again; for rows of
            a Parquet file an Arrow stream of them; for an update of this process its JSON.
        raw_bytes: bytes of ``raw`` before its end was cut off to fit the bound of the file.
        set_aside_s: seconds since 1970.
    """

    position: Position | None
    reasons: tuple[tuple[tuple[Any, ...], str, str], ...]
    raw: tuple[bytes, ...] = ()
    raw_bytes: int = 0
    set_aside_s: float = 0.0


class DeadLetters:
    """Writes the dead letters of one archive. Not for several threads at once.

    A file that has reached half of ``max_bytes`` replaces the older one, whose letters are counted in
    `dropped`.

    Args:
        directory: that of the archive.
        max_bytes: of both files together.
    """

    def __init__(self, directory: Path, max_bytes: int):
        self.path = directory / _NEWEST
        self.dropped = 0
        """Letters that were deleted to keep the bound."""
        self._older = directory / _OLDER
        self._half = max_bytes // 2
        self._file = -1
        self._bytes = self._confirmed = 0

    @property
    def bytes(self) -> int:
        """Bytes of both files."""
        total = 0
        for path in (self.path, self._older):
            with contextlib.suppress(OSError):  # there is none, or it is just being renamed
                total += path.stat().st_size
        return total

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Replace the letters since the last `confirm` by these, and return when the disk has them.

        Raises:
            ArchiveError: the disk refuses.
        """
        try:
            if self._file < 0:
                self._open()
            os.ftruncate(self._file, self._confirmed)
            self._bytes = self._confirmed
            for letter in letters:
                line = _line(letter, self._half)
                if self._bytes and self._bytes + len(line) > self._half:
                    self._rotate()
                rest = memoryview(line)
                while len(rest):
                    written = os.pwrite(self._file, rest, self._bytes)
                    self._bytes += written
                    rest = rest[written:]
            os.fsync(self._file)
        except OSError as error:
            raise ArchiveError(
                f"{self.path}: cannot be written ({error.strerror}); an entry of the stream cannot be set "
                "aside until it can. Make room, or allow this process to write there."
            ) from error

    def confirm(self) -> None:
        """Keep what was written: the archive's position has passed these entries."""
        self._confirmed = self._bytes

    def close(self) -> None:
        """Close the file; it is opened again by the next `write`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        new = not self.path.exists()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if new:
            sync_directory(self.path.parent)
        # A crash may have left half a line.
        self._bytes = self._confirmed = read_file(self.path).rfind(b"\n") + 1

    def _rotate(self) -> None:
        os.fsync(self._file)
        with contextlib.suppress(FileNotFoundError):
            self.dropped += self._older.read_bytes().count(b"\n")
        os.replace(self.path, self._older)
        self.close()
        self._open()


@typed
def read_dead_letters(directory: str | Path) -> Iterator[DeadLetter]:
    """Read the entries that were set aside beside an archive, the oldest first, each once.

    Args:
        directory: that of the archive; its writer may be running.

    Raises:
        DataError: a file cannot be read, or a line of it is not as it was written.

    >>> from tempfile import TemporaryDirectory
    >>> letter = DeadLetter((7,), (((5,), "SchemaError", "price: got 'dear'."),), (b'{"price": "dear"}',))
    >>> with TemporaryDirectory() as directory:
    ...     DeadLetters(Path(directory), LEAST_BYTES).write([letter])
    ...     [(found.position, found.raw) for found in read_dead_letters(directory)]
    [((7,), (b'{"price": "dear"}',))]
    """
    seen: set[str] = set()
    for path in (Path(directory) / _OLDER, Path(directory) / _NEWEST):
        try:
            lines = read_file(path).splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break  # it is being written
            try:
                found = json.loads(line)
                letter = DeadLetter(
                    position=None if found["position"] is None else tuple(found["position"]),
                    reasons=tuple((tuple(ids), error, text) for ids, error, text in found["reasons"]),
                    raw=tuple(base64.b64decode(part) for part in found["raw"]),
                    raw_bytes=found["raw_bytes"],
                    set_aside_s=found["set_aside_s"],
                )
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: is not a dead letter ({error}); delete it, or move the file."
                ) from error
            same = json.dumps({name: value for name, value in found.items() if name != "set_aside_s"})
            if same not in seen:
                seen.add(same)
                yield letter


def _line(letter: DeadLetter, most: int) -> bytes:
    """Return the line of a letter, of ``most`` bytes at most; the end of its raw bytes is cut off for it."""
    reasons = [
        [
            [plain(item, max_chars=_MAX_ID_CHARS) for item in ids[:_MAX_REASONS]],
            error,
            shortened(text, _MAX_REASON_CHARS),
        ]
        for ids, error, text in letter.reasons[:_MAX_REASONS]
    ]
    fields: dict[str, Any] = {
        "position": letter.position, "reasons": reasons, "raw": [],
        "raw_bytes": sum(len(part) for part in letter.raw), "set_aside_s": time.time(),
    }  # fmt: skip
    # Base64 has four letters for three bytes; quotes and padding take eight more of each part.
    room = (most - len(json.dumps(fields)) - 1) * 3 // 4
    for part in letter.raw:
        if (room := room - 8) <= 0:
            break
        fields["raw"].append(base64.b64encode(part[:room]).decode())
        room -= len(part)
    return json.dumps(fields).encode() + b"\n"
