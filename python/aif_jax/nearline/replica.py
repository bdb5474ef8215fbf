"""Replica: a copy of a table that another process keeps, opened from its archive and following its log."""

import contextlib
import threading
from pathlib import Path
from typing import Any, Self, TypeVar

from aif_jax.bundle import Bundle
from aif_jax.checks import typed
from aif_jax.errors import ItemIndexError
from aif_jax.nearline.archive import files_of, log_path, recover, replay_log
from aif_jax.nearline.change_log import Position, Sealed
from aif_jax.nearline.table import RowTable
from aif_jax.processes import OfOneProcess
from aif_jax.strict_json import text_of

_T = TypeVar("_T", bound=RowTable)

_ATTEMPTS = 5
"""Attempts to open an archive while its writer changes it."""

_MOST_PAUSE_S = 5.0


class Replica(OfOneProcess, guards=("open", "poll", "start", "stats")):
    """Follows the archive of another process. All rows of the snapshot are pages that the processes share.

    The rows come from the log as the writer computed them: following takes no model and little time. A change
    is seen as soon as the writer has written it, which can be before the writer's disk has confirmed it.

    Args:
        directory: that of the `Archive`.
    """

    unpickled = "give the other process the directory, and make a Replica there: Replica(directory)."

    @typed
    def __init__(self, directory: str | Path):
        super().__init__()
        self.directory = Path(directory)
        self.position: Position | None = None
        """Position in the stream of updates up to which the table is complete."""
        self._table: RowTable | None = None
        self._number, self._end, self._changes = 0, 0, 0
        self._failure: str | None = None
        self._failures = 0
        self._polling = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @typed
    def open(
        self,
        table_type: type[_T],
        bundle: Bundle,
        *,
        verify: bool = False,
        mapped: bool = True,
        prefault: bool = False,
    ) -> _T:
        """Open the table as it is on disk now. Nothing but this replica may change it.

        Args:
            table_type: `ItemIndex` or `BehaviourTable`.
            bundle: the model.
            verify: see `RowTable.open`; the writer verifies when it opens the archive.
            mapped: see `RowTable.open`.
            prefault: see `RowTable.open`.

        Raises:
            ItemIndexError: no snapshot opens with its logs; each reason is named.
            VersionMismatchError: the newest snapshot is of another bundle version.
        """
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(ItemIndexError):
                # The writer may have deleted what was just about to be opened.
                return self._opened(table_type, bundle, verify, mapped, prefault)
        return self._opened(table_type, bundle, verify, mapped, prefault)

    def _opened(self, table_type: type[_T], bundle: Bundle, verify: bool, mapped: bool, prefault: bool) -> _T:
        table, opened = recover(
            table_type, bundle, self.directory, verify=verify, mapped=mapped, prefault=prefault
        )
        self._table, self.position = table, opened.position
        self._number, self._end = opened.log, opened.end
        return table

    def poll(self) -> int:
        """Apply the changes since the last call, and return their number.

        Raises:
            ItemIndexError: the log is altered, its writer deleted it before this replica read it, or the
                snapshot was written to (`RowTable.check_file`): open the archive again.
        """
        with self._polling:
            if self._table is None:
                raise ItemIndexError(f"{self.directory}: the replica is not open; call open first.")
            self._table.check_file()
            before = self._changes
            while self._poll(self._table):
                pass
            return self._changes - before

    def start(self, interval_s: float = 0.02) -> None:
        """Poll in a thread of its own until `close`; after an error again, with pauses of up to 5 s.

        Args:
            interval_s: seconds between two looks at the log.
        """
        if self._thread is not None:
            raise ItemIndexError(f"{self.directory}: the replica follows already; call start once.")
        self._thread = threading.Thread(
            target=self._follow, args=(interval_s,), name="aif-replica", daemon=True
        )
        self._thread.start()

    def stats(self) -> dict[str, Any]:
        """Return the position in the log, the error that it waits for, if any, and the number of errors."""
        try:
            behind = log_path(self.directory, self._number).stat().st_size - self._end
        except OSError:  # the log has not begun, or was deleted
            behind = 0
        return {
            "number": self._number, "position": self.position, "changes": self._changes,
            "behind_bytes": max(behind, 0), "failure": self._failure, "failures": self._failures,
        }  # fmt: skip

    def close(self) -> None:
        """Stop following. The table can still be used. In a forked child it does nothing."""
        if self.forked:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _follow(self, interval_s: float) -> None:
        pause_s = interval_s
        while not self._stop.wait(pause_s):
            try:
                self.poll()
                self._failure, pause_s = None, interval_s
            except Exception as error:
                self._failure = f"{type(error).__name__}: {text_of(error)}"
                self._failures += 1
                pause_s = min(2 * max(pause_s, 0.01), _MOST_PAUSE_S)

    def _poll(self, table: RowTable) -> bool:
        """Apply the rest of the current log; return whether another log continues it."""
        path = log_path(self.directory, self._number)
        if not path.exists():
            later = any(number > self._number for number, _ in files_of(self.directory))
            if not self._end and not later:
                return False  # the log before it is sealed, and this one does not exist yet
            raise ItemIndexError(
                f"{path}: was deleted before it was read to its end. Open the archive again, and look in "
                "more often, or have the writer keep more."
            )
        for mark, end, changes in replay_log(table, path, self._end):
            if isinstance(mark, Sealed):
                # If the disk has refused the next log, the writer goes on in this one.
                if not log_path(self.directory, self._number + 1).exists():
                    return False
                self._number, self._end = self._number + 1, 0
                return True
            self._changes += changes
            self._end = end
            if mark is not None:
                self.position = mark
        return False
