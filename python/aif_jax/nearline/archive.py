"""The archive of a table: snapshots on disk, and after each of them a log of the changes since.

A directory holds ``000007.rows`` (a snapshot) and ``000007.log`` (the changes from that snapshot to
``000008.rows``), and so on. The newest snapshot that opens, with the logs from its number on, gives the table
as of its last confirmed change: an unfinished write of a crash is either not needed or cut off.

One process writes (it holds ``lock``); any number of others follow it, see `Replica`.
"""

import contextlib
import dataclasses
import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from aif_jax.bundle import Bundle
from aif_jax.checks import typed
from aif_jax.errors import ArchiveError, ItemIndexError, VersionMismatchError
from aif_jax.files import make_directory, remove_leftovers
from aif_jax.nearline.change_log import About, ChangeLog, Position, Reached, Sealed, read_log
from aif_jax.nearline.table import RowTable
from aif_jax.processes import OfOneProcess

_NAME = re.compile(r"(\d{6,})\.(rows|log)")
_T = TypeVar("_T", bound=RowTable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """Result of opening an archive.

    Attributes:
        snapshot: number of the snapshot that was opened.
        refused: reasons why newer ones were not, by number.
        log: number of the log that is appended to.
        end: end of its last whole record, bytes.
        changes: changes that were replayed from logs.
        cut_bytes: bytes at the end of the last log that a crash left unfinished.
        position: position in the stream of updates up to which the table is complete.
    """

    snapshot: int
    refused: dict[int, str]
    log: int
    end: int
    changes: int
    cut_bytes: int
    position: Position | None


class Archive(OfOneProcess, guards=("start", "open", "table", "position", "batch", "checkpoint", "stats")):
    """Keeps one table in a directory: every change is on disk before the call that makes it returns.

    Args:
        directory: made if absent.
        keep: snapshots that stay, with their logs, when a new one is written.

    Raises:
        ItemIndexError: another process writes there, or the directory cannot be made.
    """

    unpickled = "give the other process the directory: a Replica follows it, and one process may write there."

    @typed
    def __init__(self, directory: str | Path, *, keep: int = 2):
        super().__init__()
        if keep < 1:
            raise ItemIndexError(f"keep: got {keep}, expected at least 1 snapshot.")
        self.directory, self._keep = Path(directory), keep
        self.opened: Opened | None = None
        """Result of opening it; ``None`` for a new one."""
        self._table: RowTable | None = None
        self._log: ChangeLog | None = None
        self._number = 0
        self._position: Position | None = None
        self._checkpointing = threading.Lock()
        self._counts = {"checkpoints": 0}
        self._saved_s = time.monotonic()
        try:
            make_directory(self.directory)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ItemIndexError(
                f"{directory}: cannot be written ({error.strerror}); expected a directory to keep a table in."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ItemIndexError(
                f"{directory}: another process writes there; expected to be the only one. Follow it with a "
                "Replica, or choose another directory."
            ) from error
        remove_leftovers(self.directory)
        for partial in self.directory.glob("*.log.partial-new"):
            partial.unlink(missing_ok=True)  # of a process that is gone: nobody else writes here

    # -- tables -----------------------------------------------------------------------------------

    def start(self, table: RowTable, position: Position | None = None) -> None:
        """Keep a table from now on, as a new snapshot; existing files of the directory count as older.

        Args:
            table: a table of any bundle version that no archive keeps.
            position: position in the stream of updates up to which the table is complete: the one from
                before its catalogue was read.

        Raises:
            ItemIndexError: the archive keeps a table already, or cannot be written.
        """
        self._check_free()
        self._number = max((number for number, _ in files_of(self.directory)), default=0)
        self._table, self._position = table, position
        try:
            self.checkpoint()
        except BaseException:
            self._release()
            raise

    @typed
    def open(
        self,
        table_type: type[_T],
        bundle: Bundle,
        *,
        verify: bool = True,
        mapped: bool = True,
        prefault: bool = False,
    ) -> _T:
        """Open the table as it was when its last change was confirmed, and keep it from now on.

        Args:
            table_type: `ItemIndex` or `BehaviourTable`.
            bundle: the model.
            verify: see `RowTable.open`.
            mapped: see `RowTable.open`.
            prefault: see `RowTable.open`.

        Raises:
            ItemIndexError: there is no snapshot that opens with its logs; each reason is named.
            VersionMismatchError: the newest snapshot is of another bundle version.
        """
        self._check_free()
        table, opened = recover(
            table_type, bundle, self.directory, verify=verify, mapped=mapped, prefault=prefault
        )
        self._log = ChangeLog(log_path(self.directory, opened.log), _about(table), opened.end)
        self._number, self._position, self.opened, self._table = opened.log, opened.position, opened, table
        table.log_to(self._log)
        return table

    @property
    def table(self) -> RowTable:
        """The table that it keeps.

        Raises:
            ItemIndexError: it keeps none.
        """
        return self._kept()[0]

    @property
    def position(self) -> Position | None:
        """Position in the stream of updates up to which the table on disk is complete; ``None`` for none."""
        return self._position

    # -- writing ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def batch(self, position: Position) -> Iterator[None]:
        """Confirm the changes of the block on disk together, with their position in the stream of updates.

        Raises:
            ArchiveError: the disk refuses. The position is then as before, so that the stream's updates are
                delivered again; rows that were changed by then stay changed.
        """
        table, _ = self._kept()
        table.overwritten()  # goes to the log
        with table.pause(sync=False):
            yield
            _, log = self._kept()
            log.reached(position)
            log.sync()
            self._position = position

    def checkpoint(self) -> None:
        """Write a snapshot and begin a new log; delete files older than the snapshots to be kept.

        Readers do not wait, and writers only for a moment, not for the disk. If it fails, the log continues.

        Raises:
            ArchiveError: the disk refuses.
            ItemIndexError: the archive keeps no table.
        """
        with self._checkpointing:
            table, number = self._table, self._number + 1
            if table is None:
                raise self._closed()

            def begin_log() -> dict[str, Any]:
                path = log_path(self.directory, number)
                temporary, log = path.with_name(f"{path.name}.partial-new"), None
                try:
                    log = ChangeLog(temporary, _about(table))
                    log.reached(self._position)
                    log.sync()
                    if self._log is not None:
                        self._log.seal()
                except BaseException:
                    if log is not None:
                        log.close()
                    temporary.unlink(missing_ok=True)
                    raise
                # A crash before this leaves a sealed log without a successor, which counts as an empty one.
                log.move(path)
                self._log, self._number = log, number
                table.log_to(log)
                return {"position": self._position}

            try:
                table.write_snapshot(_rows_path(self.directory, number), begin_log)
            except ArchiveError:
                raise
            except (OSError, ItemIndexError) as error:
                reason = (isinstance(error, OSError) and error.strerror) or str(error).removesuffix(".")
                raise ArchiveError(
                    f"{self.directory}: no snapshot could be written ({reason}). The one before and its logs "
                    "hold everything; mend that, and checkpoint again."
                ) from error
            self._counts["checkpoints"] += 1
            self._saved_s = time.monotonic()
            self._prune()

    def stats(self) -> dict[str, Any]:
        """Return the newest log's number and bytes, the position, and the seconds since the last snapshot.

        ``overwritten`` is that of the table, see `RowTable.overwritten`.
        """
        return {
            "overwritten": None if self._table is None else self._table.overwritten(),
            "number": self._number, "log_bytes": 0 if self._log is None else self._log.bytes,
            "position": self._position, "since_snapshot_s": time.monotonic() - self._saved_s, **self._counts,
        }  # fmt: skip

    def close(self) -> None:
        """Stop keeping the table, which can still be used, and let others write here; nothing is lost.

        In a forked child it does nothing: the archive is the parent's.
        """
        if self.forked:
            return
        with self._checkpointing:
            self._release()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def __repr__(self) -> str:
        if (table := self._table) is None:
            return f"Archive({str(self.directory)!r}, keeps no table)"
        return f"Archive({str(self.directory)!r}, {table!r}, position {self._position})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------------

    def _release(self) -> None:
        if self._table is not None:
            with self._table.pause():
                self._table.log_to(None)
        if self._log is not None:
            self._log.close()
        self._table = self._log = None

    def _prune(self) -> None:
        """Delete files that the snapshots to be kept do not need."""
        snapshots = sorted(
            (number for number, what in files_of(self.directory) if what == "rows"), reverse=True
        )
        for number, what in files_of(self.directory):
            if len(snapshots) > self._keep and number < snapshots[self._keep - 1]:
                (self.directory / f"{number:06}.{what}").unlink(missing_ok=True)

    def _kept(self) -> tuple[RowTable, ChangeLog]:
        if self._table is None or self._log is None:
            raise self._closed()
        return self._table, self._log

    def _check_free(self) -> None:
        if self._lock < 0:
            raise self._closed()
        if self._table is not None:
            raise ItemIndexError(
                f"{self.directory}: keeps a table already; use another archive for another one."
            )

    def _closed(self) -> ItemIndexError:
        return ItemIndexError(
            f"{self.directory}: the archive keeps no table; call start or open, and not close."
        )


def recover(
    table_type: type[_T], bundle: Bundle, directory: Path, *, verify: bool, mapped: bool, prefault: bool
) -> tuple[_T, Opened]:
    """Open the newest snapshot of a directory that opens, and replay its logs.

    Nothing is written. See `Archive.open` for the arguments and errors.
    """
    files = files_of(directory)
    logs = {number for number, what in files if what == "log"}
    refused: dict[int, str] = {}
    for number in sorted((number for number, what in files if what == "rows"), reverse=True):
        try:
            path = _rows_path(directory, number)
            table = table_type.open(bundle, path, verify=verify, mapped=mapped, prefault=prefault)
            if number not in logs:
                raise ItemIndexError(f"{log_path(directory, number)}: is missing; it goes with the snapshot.")
            opened = _replay(table, directory, number, refused)
        except VersionMismatchError as error:
            if refused:
                raise ItemIndexError(
                    f"{directory}: the snapshots of this bundle version are broken, and an older one is of "
                    f"another: {'; '.join([*refused.values(), str(error)])}"
                ) from error
            raise
        except ItemIndexError as error:
            refused[number] = str(error)
            continue
        return table, opened
    reasons = "; ".join(refused.values()) or "it holds none"
    raise ItemIndexError(
        f"{directory}: no snapshot opens with its logs: {reasons}. Build the rows, and start anew."
    )


def replay_log(
    table: RowTable, path: Path, start: int
) -> Iterator[tuple[Position | Sealed | None, int, int]]:
    """Replay a log from a byte on.

    Yields:
        For each record: the position that it names, or `Sealed`, or ``None``; its end in bytes; and the
        number of changes in it, 0 or 1.
    """
    for change, end in read_log(path, start, about=_about(table)):
        if isinstance(change, Reached):
            yield change.position, end, 0
        elif isinstance(change, Sealed):
            yield change, end, 0
        else:
            table.replay(change)
            yield None, end, 1


def _replay(table: RowTable, directory: Path, number: int, refused: dict[int, str]) -> Opened:
    position: Position | None = None
    snapshot, changes = number, 0
    while True:
        path = log_path(directory, number)
        end, sealed = 0, False
        for mark, reached, made in replay_log(table, path, 0):
            end = reached
            changes += made
            if isinstance(mark, Sealed):
                sealed = True
            elif mark is not None:
                position = mark
        follows = log_path(directory, number + 1).exists()
        if follows and not sealed:
            raise ItemIndexError(
                f"{path}: is cut short or another table's, since it does not lead to the log after it."
            )
        if sealed:
            number += 1
            end = 0
        if follows:
            continue
        size = end if sealed else path.stat().st_size
        return Opened(
            snapshot=snapshot, refused=dict(refused), log=number, end=end, changes=changes,
            cut_bytes=size - end, position=position,
        )  # fmt: skip


def files_of(directory: Path) -> list[tuple[int, str]]:
    """Return number and kind, ``rows`` or ``log``, of the files of an archive."""
    found = (_NAME.fullmatch(name) for name in sorted(os.listdir(directory)))
    return [(int(match[1]), match[2]) for match in found if match is not None]


def _rows_path(directory: Path, number: int) -> Path:
    return directory / f"{number:06}.rows"


def log_path(directory: Path, number: int) -> Path:
    """Return the path of the log of a number."""
    return directory / f"{number:06}.log"


def _about(table: RowTable) -> About:
    return About(kind=table.kind, version=table.version, columns=table.store.columns)
