"""Follower of a stream of updates: each is logged in an archive, applied, synced and acknowledged."""

import dataclasses
import errno
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from aif_jax.errors import AifError, ArchiveError, ItemIndexError
from aif_jax.nearline.archive import Archive
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.merging import merged, one_by_one
from aif_jax.nearline.row_program import BATCH
from aif_jax.nearline.table import RowTable, counted
from aif_jax.nearline.update_source import Delivery, UpdateSource
from aif_jax.nearline.updates import Delete, Upsert
from aif_jax.processes import OfOneProcess

_WAIT_S = 0.2
_MOST_PAUSE_S = 5.0
_REMEMBERED = 4096
"""Number of updates whose delay is remembered."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True, slots=True)
class BadItem:
    """An item of an update that could not be applied and was left out.

    Attributes:
        position: position of its update.
        ids: ids of the items, one unless the update as a whole is bad.
        reason: the error.
    """

    position: Position
    ids: tuple[Any, ...]
    reason: AifError


class Follower(OfOneProcess, guards=("run", "start", "stats")):
    """Applies updates of a source to the tables of one or more archives.

    Each archive keeps its position: after a restart, updates that it holds already are skipped. So updates
    that are delivered again have no second effect, and none is lost, whenever the process ends.

    No update is read before those before it are on disk, so if the source is faster than this, the backlog
    grows at the source and not in this process.

    Args:
        source: the stream.
        archives: archives of the tables that follow it, such as an item index and a behaviour table. Tables
            that keep deleted items ignore deletions.
        on_bad: called with each item that cannot be applied.
        max_bad_share: share of items that may be bad, checked after every thousand; more end the following,
            since then the stream does not fit the bundle. ``None`` for no bound.
        pause_s: minimum seconds from the end of one batch to the beginning of the next, unless there is a
            backlog. A program computes 256 rows in the time of one, so a pause makes fewer and larger
            batches: it leaves the cores to requests, and updates are seen that much later.
        checkpoint_bytes: growth of a log after which a new snapshot is written, in a thread of its own.
    """

    unpickled = "make it in the process that keeps the archives."

    def __init__(
        self,
        source: UpdateSource,
        archives: Sequence[Archive],
        *,
        on_bad: Callable[[BadItem], None] | None = None,
        max_bad_share: float | None = 0.5,
        pause_s: float = 0.02,
        checkpoint_bytes: int = 1 << 30,
    ):
        super().__init__()
        if not archives:
            raise ItemIndexError("archives: got none, expected at least one that keeps a table.")
        self._source, self._archives = source, tuple(archives)
        self._on_bad, self._max_bad_share = on_bad, max_bad_share
        self._pause_s, self._checkpoint_bytes = pause_s, checkpoint_bytes
        self._counts: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()
        self._delays_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._lag_s: float | None = None
        self._looked = (0, 0)
        self._trouble: str | None = None
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._checkpoint: threading.Thread | None = None

    def run(self) -> None:
        """Follow in the calling thread until the source ends or `close` is called.

        Raises:
            ItemIndexError: too many items are bad.
            ArchiveError: a disk does not confirm a write. A full disk is waited for, and so is a source that
                raises errors; `stats` counts both.
        """
        after = self._beginning()
        pause_s = 0.05
        while not self._stop.is_set():
            try:
                deliveries = self._source.read(after, _WAIT_S)
            except AifError:
                raise
            # Any error that a client raises when its server is away; `stats` shows it until it is back.
            except Exception as error:
                self._source_failed(error)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)
                continue
            pause_s, self._trouble = 0.05, None
            if deliveries is None:
                break
            if deliveries and self._applied(deliveries):
                after = deliveries[-1].position
                try:
                    self._source.acknowledge(after)
                except AifError:
                    raise
                except Exception as error:  # the next acknowledgement covers these too
                    self._source_failed(error)
                if len(deliveries) < BATCH:  # with more there is a backlog
                    self._stop.wait(self._pause_s)
        if self._checkpoint is not None:
            self._checkpoint.join()

    def start(self) -> None:
        """Follow in a thread of its own until `close`; an error that ends it before is in `stats`."""
        if self._thread is not None:
            raise ItemIndexError("the follower follows already; call start once.")
        self._thread = threading.Thread(target=self._guarded, name="aif-follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current updates. The archives stay open. In a forked child it does nothing."""
        if self.forked:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def stats(self) -> dict[str, Any]:
        """Return counts of applied updates, and the delay of the tables behind the source.

        ``updates`` and ``batches``; items ``upserted``, ``deleted`` and ``ignored`` (deletions that a table
        keeps on purpose or never had), each counted for every table; ``repeated`` updates that a table held
        already; ``bad`` items by the error's name; counts of ``source_errors``, ``disk_full`` and
        ``checkpoints_failed``; ``trouble``, the error that is being waited for, and ``failure``, the one that
        ended it; ``lag_s``, from the time when the last update was written at the source until readers could
        see it; ``delay_ms``, p50 and p99 of the same over the last 4,096, if the source gives times;
        ``position`` of every archive.
        """
        delays = np.array(self._delays_s)
        percentiles = (
            {f"p{p}": float(np.percentile(delays, p)) * 1e3 for p in (50, 99)} if len(delays) else None
        )
        return {
            **{name: self._counts[name] for name in _COUNTS},
            "bad": dict(self._bad),
            "trouble": self._trouble,
            "failure": None if self._failure is None else f"{type(self._failure).__name__}: {self._failure}",
            "lag_s": self._lag_s,
            "delay_ms": percentiles or None,
            "position": [archive.position for archive in self._archives],
        }

    def __repr__(self) -> str:
        archives, updates = (
            counted(len(self._archives), "archive"),
            counted(self._counts["updates"], "update"),
        )
        if self._failure is not None:
            state = f", ended by {type(self._failure).__name__}"
        elif self._stop.is_set():
            state = ", closed"
        else:
            state = ", following" if self._thread is not None and self._thread.is_alive() else ""
        return f"Follower({archives}, {updates}, {counted(self._bad.total(), 'bad item')}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------------

    def _source_failed(self, error: Exception) -> None:
        self._counts["source_errors"] += 1
        self._trouble = f"source: {type(error).__name__}: {error}"

    def _guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._failure = error

    def _beginning(self) -> Position | None:
        positions = [archive.position for archive in self._archives]
        known = [position for position in positions if position is not None]
        return min(known) if len(known) == len(positions) else None

    def _applied(self, deliveries: Sequence[Delivery]) -> bool:
        """Apply updates to all archives, waiting while a disk is full; return whether that was completed."""
        for archive in self._archives:
            reached = archive.position
            fresh = [one for one in deliveries if reached is None or one.position > reached]
            self._counts["repeated"] += len(deliveries) - len(fresh)
            pause_s = 0.05
            while fresh:
                try:
                    with archive.batch(fresh[-1].position):
                        done = self._apply(archive.table, fresh)
                    break
                except ArchiveError as error:
                    if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _FULL:
                        raise
                    self._counts["disk_full"] += 1
                    self._trouble = str(error)
                    if self._stop.wait(pause_s):
                        return False
                    pause_s = min(2 * pause_s, _MOST_PAUSE_S)
            else:
                continue
            self._trouble = None
            self._counts.update(done)
        now = time.time()
        for one in deliveries:
            if one.time_s is not None:
                self._lag_s = now - one.time_s
                self._delays_s.append(self._lag_s)
        self._counts["updates"] += len(deliveries)
        self._counts["batches"] += 1
        self._check_share()
        self._checkpoint_if_due()
        return True

    def _apply(self, table: RowTable, deliveries: Sequence[Delivery]) -> Counter[str]:
        done: Counter[str] = Counter()
        for position, update in merged(deliveries):
            if isinstance(update, AifError):
                self._set_aside(BadItem(position, (), update))
            elif isinstance(update, Upsert):
                for part in self._good(table, position, update):
                    done["upserted"] += part
            elif isinstance(update, Delete):
                removed = 0 if table.keeps_deleted else table.delete(update.ids)
                done["deleted"] += removed
                done["ignored"] += len(update.ids) - removed
            else:
                wrong = ItemIndexError(f"stream: got a {type(update).__name__}, expected Upsert or Delete.")
                self._set_aside(BadItem(position, (), wrong))
        return done

    def _good(self, table: RowTable, position: Position, update: Upsert) -> Iterator[int]:
        """Apply an upsert, item by item if it fails as a whole; yield numbers of applied items."""
        try:
            yield table.apply(update)
            return
        except ArchiveError:
            raise
        except AifError as error:
            if len(update.ids) < 2:
                self._set_aside(BadItem(position, tuple(update.ids), error))
                return
        for single in one_by_one(update):
            yield from self._good(table, position, single)

    def _set_aside(self, bad: BadItem) -> None:
        self._bad[type(bad.reason).__name__] += 1
        if self._on_bad is not None:
            self._on_bad(bad)

    def _check_share(self) -> None:
        good, bad = self._counts["upserted"], self._bad.total()
        seen = good + bad - sum(self._looked)
        if self._max_bad_share is None or seen < 1000:
            return
        share = (bad - self._looked[1]) / seen
        self._looked = (good, bad)
        if share > self._max_bad_share:
            raise ItemIndexError(
                f"{share:.0%} of the last {seen:,} items could not be applied, expected at most "
                f"{self._max_bad_share:.0%} (max_bad_share): {dict(self._bad)}. Does the stream fit this "
                "bundle?"
            )

    def _checkpoint_if_due(self) -> None:
        if self._checkpoint is not None and self._checkpoint.is_alive():
            return
        due = [archive for archive in self._archives if archive.stats()["log_bytes"] > self._checkpoint_bytes]
        if due:
            self._checkpoint = threading.Thread(
                target=self._save, args=(due,), name="aif-checkpoint", daemon=True
            )
            self._checkpoint.start()

    def _save(self, archives: Sequence[Archive]) -> None:
        for archive in archives:
            try:
                archive.checkpoint()
            except ArchiveError as error:  # nothing is lost: the log continues
                self._counts["checkpoints_failed"] += 1
                self._trouble = str(error)


_COUNTS = (
    "updates", "batches", "upserted", "deleted", "ignored", "repeated", "source_errors", "disk_full",
    "checkpoints_failed",
)  # fmt: skip
