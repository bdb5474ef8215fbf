"""The file behind mapped rows: it may be replaced or deleted, and must not be written to."""

import logging
import os
import weakref
from pathlib import Path

import numpy as np

from aif_jax import _native
from aif_jax.errors import ItemIndexError

_log = logging.getLogger(__name__)


class MappedFile:
    """Notices that a file was written to after it was opened, as ``cp`` and ``rsync --inplace`` do.

    A mapped file that is written to gives other rows, with the keys of the old ones; one that is cut short
    ends the process when a row behind its end is read (``SIGBUS``). A file that was renamed over it, and a
    deletion, change nothing: the old content lives as long as the mapping.

    Args:
        path: its path, for messages.
        descriptor: of the open file; a copy of it is kept, so that the file is found whatever has its name.

    Attributes:
        path: its path when it was opened.
        rows: first byte of the rows and the byte after the last one.
        blocks: checksums of the rows, see `aif_jax._native.block_checksums`.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self.rows: tuple[int, int] = (0, 0)
        self.blocks = np.empty(0, np.uint64)
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(descriptor)
        self._file = found.st_dev, found.st_ino
        self._opened = found.st_size, found.st_mtime_ns
        self._overwritten: str | None = None

    def has_name(self) -> bool:
        """Return whether the path leads to this file still."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def overwritten(self) -> str | None:
        """Return in words how the file was written to since it was opened; ``None`` if it was not.

        One call of the system, so for publishing, health, statistics and batches of updates, not for each
        ranking. Where the time of the file has changed and its size has not, as after ``touch``, its rows are
        read and compared with their checksums. The first time it is written to the log as an error.
        """
        if self._overwritten is None:
            status = os.fstat(self._descriptor)
            found, (size, _) = (status.st_size, status.st_mtime_ns), self._opened
            if found == self._opened:
                return None
            if found[0] == size and self._has_its_rows():
                self._opened = found
                return None
            how = f"it had {size:,} bytes and has {found[0]:,}" if found[0] != size else "rows have changed"
            self._overwritten = (
                f"{self.path}: was written to while its rows are served from it ({how}), so that rankings "
                "are wrong. Open a whole file again; replace such a file by renaming another over it, never "
                "by writing to it, see docs/deploying-files.md."
            )
            _log.error(self._overwritten)
        return self._overwritten

    def _has_its_rows(self) -> bool:
        # Read, not mapped: a file that is cut short meanwhile must not end the process.
        start, end = self.rows
        for number, place in enumerate(range(start, end, _native.BLOCK_BYTES)):
            block = os.pread(self._descriptor, min(_native.BLOCK_BYTES, end - place), place)
            found = _native.block_checksums(np.frombuffer(block, np.uint8)) if block else ()
            if len(found) != 1 or found[0] != self.blocks[number]:
                return False
        return True

    def check(self) -> None:
        """Raise if the file was written to since it was opened; see `overwritten`.

        Raises:
            ItemIndexError: it was.
        """
        if (reason := self.overwritten()) is not None:
            raise ItemIndexError(reason)
