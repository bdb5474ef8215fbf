"""Follower of a stream of updates: each is logged in an archive, applied, synced and acknowledged."""

import contextlib
import dataclasses
import errno
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from aif_jax.checks import typed
from aif_jax.errors import AifError, ArchiveError, ItemIndexError, ProcessError
from aif_jax.nearline.applying import SetAside, apply_deliveries
from aif_jax.nearline.archive import Archive
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.dead_letters import LEAST_BYTES, DeadLetter, DeadLetters
from aif_jax.nearline.row_program import BATCH
from aif_jax.nearline.table import counted
from aif_jax.nearline.update_source import (
    Delivery,
    UpdateSource,
    checked_deliveries,
    described,
    raw_of,
)
from aif_jax.processes import OfOneProcess
from aif_jax.strict_json import text_of

_WAIT_S = 0.2
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.05, 5.0
_REMEMBERED = 4096
"""Number of updates whose delay is remembered."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True, slots=True)
class BadItem:
    """An item of an update that could not be applied and was set aside.

    Attributes:
        position: position of its update; ``()`` if the source gave none that can be used.
        ids: the item's id, or none if the update as a whole cannot be read.
        reason: the error.
    """

    position: Position
    ids: tuple[Any, ...]
    reason: AifError


class Follower(OfOneProcess, guards=("run", "start", "stats")):
    """Applies updates of a source to the tables of one or more archives.

    Each archive keeps its position: after a restart, updates that it holds already are skipped. So updates
    that are delivered again have no second effect, and none is lost, whenever the process ends.

    An update that cannot be applied is set aside, with its reason and its bytes, in the dead letters beside
    the archive (see `read_dead_letters`); the others are applied as if it were not there. Nothing ends the
    following but `close` and the end of a source that has one: what the source, a disk or a callback raises
    is counted, shown as ``trouble``, and tried again with pauses of up to 5 s.

    No update is read before those before it are on disk, so if the source is faster than this, the backlog
    grows at the source and not in this process.

    Args:
        source: the stream.
        archives: archives of the tables that follow it, such as an item index and a behaviour table. Tables
            that keep deleted items ignore deletions.
        on_bad: called with each item that is set aside, once the disk has it.
        max_bad_share: share of updates that may be set aside, looked at after every thousand; more are shown
            as ``trouble`` until a thousand with fewer, since then the stream hardly fits the bundle.
            Following goes on: whoever can write bad entries must not be able to stop the good ones. ``None``
            for no bound.
        pause_s: minimum seconds from the end of one batch to the beginning of the next, unless there is a
            backlog. A program computes 256 rows in the time of one, so a pause makes fewer and larger
            batches: it leaves the cores to requests, and updates are seen that much later.
        checkpoint_bytes: growth of a log after which a new snapshot is written, in a thread of its own.
        dead_letter_bytes: bound of the dead letters of each archive, at least 1 MiB; the oldest are deleted
            to keep it, and counted.
    """

    unpickled = "make it in the process that keeps the archives."

    @typed
    def __init__(
        self,
        source: UpdateSource,
        archives: Sequence[Archive],
        *,
        on_bad: Callable[[BadItem], None] | None = None,
        max_bad_share: float | None = 0.5,
        pause_s: float = 0.02,
        checkpoint_bytes: int = 1 << 30,
        dead_letter_bytes: int = 64 << 20,
    ):
        super().__init__()
        if not archives:
            raise ItemIndexError("archives: got none, expected at least one that keeps a table.")
        if dead_letter_bytes < LEAST_BYTES:
            raise ItemIndexError(
                f"dead_letter_bytes: got {dead_letter_bytes}, expected at least {LEAST_BYTES:,}."
            )
        self._source, self._archives = source, tuple(archives)
        self._letters = [DeadLetters(archive.directory, dead_letter_bytes) for archive in self._archives]
        self._on_bad, self._max_bad_share = on_bad, max_bad_share
        self._pause_s, self._checkpoint_bytes = pause_s, checkpoint_bytes
        self._counts: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()
        self._delays_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._lag_s: float | None = None
        self._looked = (0, 0)
        self._troubles: dict[str, str] = {}
        self._checkpoint_after_s = 0.0
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._checkpoint: threading.Thread | None = None

    def run(self) -> None:
        """Follow in the calling thread until the source ends or `close` is called.

        Raises:
            ItemIndexError: the archives' positions are not of one stream.
        """
        after = self._beginning()
        pauses = _pauses()
        try:
            while not self._stop.is_set():
                try:
                    found = self._source.read(after, _WAIT_S)
                    if found is None:
                        break
                    deliveries, repeated = checked_deliveries(found, after)
                    self._counts["repeated"] += repeated
                except (KeyboardInterrupt, SystemExit):
                    raise
                # Any error that a client raises when its server is away, panics of native libraries included.
                except BaseException as error:
                    self._source_failed(error)
                    self._stop.wait(next(pauses))
                    continue
                self._troubles.pop("source", None)
                if not deliveries:
                    pauses = _pauses()
                elif self._applied(deliveries):
                    positions = [one.position for one in deliveries if one.position]
                    if positions:
                        pauses = _pauses()
                        after = positions[-1] if after is None else max(after, positions[-1])
                        self._acknowledge(after)
                    if not positions or len(deliveries) < BATCH:  # with more there is a backlog
                        self._stop.wait(self._pause_s if positions else next(pauses))
        finally:
            if self._checkpoint is not None:
                self._checkpoint.join()
            for letters in self._letters:
                letters.close()

    def start(self) -> None:
        """Follow in a thread of its own until `close`.

        Raises:
            ItemIndexError: it follows already, or the archives' positions are not of one stream.
        """
        if self._thread is not None:
            raise ItemIndexError("the follower follows already; call start once.")
        self._beginning()
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
        already; ``bad`` items by the error's name, and the updates ``set_aside`` because of them, for every
        table; the ``dead_letters_dropped`` to keep their bound, and ``dead_letter_bytes`` on disk; counts of
        ``source_errors``, ``disk_full``, ``disk_errors`` (other ones), ``apply_errors`` (of no update, such
        as a program that does not run), ``on_bad_errors`` and ``checkpoints_failed``; ``trouble``, what is
        wrong now and tried again; ``failure``, the signal that ended it, such as ``SystemExit`` of a source;
        ``lag_s``, from the time when the last update was written at the source until readers could see it;
        ``delay_ms``, p50 and p99 of the same over the last 4,096, if the source gives times; ``position`` of
        every archive.
        """
        delays, failure = np.array(self._delays_s), self._failure
        percentiles = (
            {f"p{p}": float(np.percentile(delays, p)) * 1e3 for p in (50, 99)} if len(delays) else None
        )
        return {
            **{name: self._counts[name] for name in _COUNTS},
            "bad": dict(self._bad),
            "dead_letters_dropped": sum(letters.dropped for letters in self._letters),
            "dead_letter_bytes": sum(letters.bytes for letters in self._letters),
            "trouble": "; ".join(list(self._troubles.values())) or None,
            "failure": None if failure is None else described(failure),
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

    def _source_failed(self, error: BaseException) -> None:
        self._counts["source_errors"] += 1
        self._troubles["source"] = f"source: {described(error)}"

    def _guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._failure = error

    def _beginning(self) -> Position | None:
        positions = [archive.position for archive in self._archives]
        known = [position for position in positions if position is not None]
        try:
            return min(known) if len(known) == len(positions) else None
        except TypeError:
            raise ItemIndexError(
                f"archives: their positions {positions} are not of one stream; follow each with a follower "
                "of its own."
            ) from None

    def _acknowledge(self, position: Position) -> None:
        try:
            self._source.acknowledge(position)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the next acknowledgement covers these too
            self._source_failed(error)

    def _applied(self, deliveries: Sequence[Delivery]) -> bool:
        """Apply updates to all archives, waiting while a disk refuses; return whether that was completed."""
        for archive, letters in zip(self._archives, self._letters, strict=True):
            reached = archive.position
            fresh = [
                one for one in deliveries if not one.position or reached is None or one.position > reached
            ]
            self._counts["repeated"] += len(deliveries) - len(fresh)
            if fresh and not self._applied_to(archive, letters, fresh):
                return False
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

    def _applied_to(self, archive: Archive, letters: DeadLetters, fresh: Sequence[Delivery]) -> bool:
        position = next((one.position for one in reversed(fresh) if one.position), None)
        pauses = _pauses()
        while True:
            try:
                with archive.batch(position) if position else contextlib.nullcontext():
                    done, aside = apply_deliveries(archive.table, fresh)
                    if aside:
                        letters.write(_letters(aside))
                letters.confirm()
                break
            except (KeyboardInterrupt, SystemExit, ProcessError):
                raise
            except BaseException as error:
                self._counts[_kind(error)] += 1
                self._troubles["archive"] = f"{archive.directory}: {described(error)}"
                if self._stop.wait(next(pauses)):
                    return False
        self._troubles.pop("archive", None)
        self._counts.update(done)
        for one in aside:
            self._report(one)
        self._counts["set_aside"] += len({id(one.delivery) for one in aside})
        return True

    def _report(self, one: SetAside) -> None:
        self._bad[type(one.reason).__name__] += 1
        if self._on_bad is None:
            return
        try:
            self._on_bad(BadItem(one.delivery.position, one.ids, one.reason))
            self._troubles.pop("on_bad", None)
        except Exception as error:
            self._counts["on_bad_errors"] += 1
            self._troubles["on_bad"] = f"on_bad: {described(error)}"

    def _check_share(self) -> None:
        updates, bad = self._counts["updates"], self._counts["set_aside"]
        seen = updates - self._looked[0]
        if self._max_bad_share is None or seen < 1000:
            return
        share = (bad - self._looked[1]) / seen / len(self._archives)
        self._looked = (updates, bad)
        if share <= self._max_bad_share:
            self._troubles.pop("bad_share", None)
            return
        self._troubles["bad_share"] = (
            f"{share:.0%} of the last {seen:,} updates could not be applied, expected at most "
            f"{self._max_bad_share:.0%} (max_bad_share): {dict(self._bad)}. Does the stream fit this bundle?"
        )

    def _checkpoint_if_due(self) -> None:
        if self._checkpoint is not None and self._checkpoint.is_alive():
            return
        if time.monotonic() < self._checkpoint_after_s:
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
                self._troubles.pop("checkpoint", None)
            except Exception as error:  # nothing is lost: the log continues
                self._counts["checkpoints_failed"] += 1
                self._troubles["checkpoint"] = f"checkpoint: {described(error)}"
                self._checkpoint_after_s = time.monotonic() + _MOST_PAUSE_S


def _pauses() -> Iterator[float]:
    """Yield seconds to wait before one attempt after the other."""
    for doubled in itertools.count():
        yield min(_LEAST_PAUSE_S * 2 ** min(doubled, 20), _MOST_PAUSE_S)


def _kind(error: BaseException) -> str:
    """Return the count of an error that kept updates from being applied."""
    if not isinstance(error, ArchiveError):
        return "apply_errors"
    full = isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL
    return "disk_full" if full else "disk_errors"


def _letters(aside: Sequence[SetAside]) -> list[DeadLetter]:
    """Return a dead letter for each delivery of which something was set aside."""
    letters: list[DeadLetter] = []
    for _, group in itertools.groupby(aside, lambda one: id(one.delivery)):
        some = list(group)
        position = some[0].delivery.position
        reasons = tuple((one.ids, type(one.reason).__name__, text_of(one.reason)) for one in some)
        letters.append(DeadLetter(position or None, reasons, raw_of(some[0].delivery)))
    return letters


_COUNTS = (
    "updates", "batches", "upserted", "deleted", "ignored", "repeated", "set_aside", "source_errors",
    "disk_full", "disk_errors", "apply_errors", "on_bad_errors", "checkpoints_failed",
)  # fmt: skip
