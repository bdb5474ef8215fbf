"""A log of what was served: a sample of requests in Parquet files, for tomorrow's training to read.

A file holds a request in each row. A column of a feature is named ``user.NAME``, ``context.NAME`` or
``pair.NAME``, those of the behaviours ``history.item``, ``history.type`` and ``history.time``.
"""

import atexit
import hashlib
import itertools
import logging
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aif_jax import processes
from aif_jax.checks import check, typed, whole
from aif_jax.extras import needs
from aif_jax.features.copies import copied
from aif_jax.files import make_directory, real_path, remove_leftovers, write_atomic
from aif_jax.inputs import Ragged, read_column, read_flat, read_ids, read_numbers, take_rows
from aif_jax.serving import Observer, Ranking, Served
from aif_jax.serving.observer import ObservedEngine

_log = logging.getLogger(__name__)

_HISTORY = ("history.item", "history.type", "history.time")
_MASKED = ("user_id", "user", "context", "pair", "history", *_HISTORY)
_FACTS = (
    "request_id", "version", "rung", "rung_reason", "retrieval", "user_state", "unknown_user", "k_asked",
    "total_ms", "user_side_ms", "retrieval_ms", "wait_ms", "stage_ms",
)  # fmt: skip
"""Fields of the report that are columns of the same names."""


class _Sample(NamedTuple):
    """A request that waits to be written; nobody else changes what it holds."""

    time_us: int
    facts: Mapping[str, Any]
    served: Served
    ids: np.ndarray
    scores: np.ndarray
    heads: Mapping[str, np.ndarray]


class RequestLog(Observer):
    """Writes a sample of the rankings to Parquet files. Needs pyarrow. Safe to use from any thread.

    A request waits for the copy of its candidates and nothing else: one thread writes, and what finds its
    queue full is dropped and counted. Errors of the disk are counted; they fail no request. A file appears
    whole, under a name that begins with its time. A process that is killed loses what it had not written:
    the requests of at most ``rotate_s`` seconds.

    Columns are those of `aif_jax.data.Dataset.from_request_log`, and facts of `Report`. ``candidates`` holds
    the ids that no filter left out, each once; ``pair`` features are theirs. ``ranked.id``,
    ``ranked.score`` and ``ranked.head.NAME`` hold the answer, the best first. ``user`` and ``history``
    columns are missing where the user prior stood in for a record.

    Args:
        folder: where the files go; made if it does not exist. Engines and processes may share it.
        share: of the rankings that is written, from 0 to 1, chosen by a hash of ``Report.request_id``.
        mask: columns that are never written: ``user_id``, ``user.NAME``, ``context.NAME``, ``pair.NAME``, or
            ``user``, ``context``, ``pair``, ``history`` for all under it.
        max_bytes: size of all files of the folder, beyond which the oldest are removed.
        max_queued: requests that may wait for the thread.
        rotate_s: age at which a file is written.
        rotate_bytes: size in memory at which it is, less by compression.

    Raises:
        ConfigError: a setting is out of its range, or ``mask`` names no such column.
        MissingExtraError: pyarrow is not installed.
        WriteError: the folder cannot be made.
    """

    @typed
    def __init__(
        self,
        folder: str | Path,
        share: float = 0.01,
        *,
        mask: Sequence[str] = (),
        max_bytes: int = 10 << 30,
        max_queued: int = 256,
        rotate_s: float = 60.0,
        rotate_bytes: int = 32 << 20,
    ):
        needs("pyarrow", what="RequestLog")
        check("share", share, isinstance(share, (int, float)) and 0 <= share <= 1, "a share from 0 to 1")
        check("rotate_s", rotate_s, isinstance(rotate_s, (int, float)) and rotate_s > 0, "over 0 seconds")
        whole("max_queued", max_queued, 1)
        whole("rotate_bytes", rotate_bytes, 1)
        whole("max_bytes", max_bytes, rotate_bytes)
        check("mask", mask, not isinstance(mask, str), "a list of columns")
        for name in mask:
            group, _, feature = name.partition(".")
            known = name in _MASKED or (group in ("user", "context", "pair") and feature)
            check("mask", name, bool(known), f"one of {', '.join(_MASKED)}, or a feature such as user.age")
        self._share, self._mask = share, frozenset(mask)
        self._max_bytes, self._max_queued = max_bytes, max_queued
        self._rotate_s, self._rotate_bytes = rotate_s, rotate_bytes
        self._folder = real_path(folder)
        make_directory(self._folder)
        remove_leftovers(self._folder)
        self._token, self._files = secrets.token_hex(4), 0
        self._lock = threading.Lock()
        # Every sample is queued, or dropped; every queued one is waiting, then logged or failed.
        self._counts = Counter(sampled=0, logged=0, dropped=0, failed=0, files=0, bytes=0, removed_files=0)
        self._unused = set(self._mask)
        # Bounded by hand: a queue's own bound takes a lock that its reader holds.
        self._queue: queue.SimpleQueue[_Sample | threading.Event] = queue.SimpleQueue()
        self._queued = 0
        self._engines = 0
        self._made_after = processes.forks
        self._thread: threading.Thread | None = None

    def takes(self, request_id: str) -> bool:
        """Return whether a request is of the sample: the same for one id in every process."""
        digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._share * 2**64

    def stats(self) -> dict[str, Any]:
        """Return counters.

        ``sampled`` rankings were ``logged`` (they are in files), ``dropped`` (the queue was full), ``failed``
        (the disk refused, or a value fits no column), or are ``waiting``. ``files``, ``bytes`` and
        ``removed_files`` count files. ``unused_mask`` lists the masks that hid nothing so far, such as a
        feature that is spelt otherwise.
        """
        with self._lock:
            ended = sum(self._counts[name] for name in ("logged", "dropped", "failed"))
            waiting = self._counts["sampled"] - ended
            return {**self._counts, "waiting": waiting, "unused_mask": sorted(self._unused)}

    def flush(self) -> None:
        """Write what waits, and return when that is done."""
        thread, done = self._thread, threading.Event()
        if thread is not None:
            self._queue.put(done)
            while not done.wait(0.05) and thread.is_alive():
                pass

    # -- for the engine ---------------------------------------------------------------------------

    def opened(self, engine: ObservedEngine) -> None:
        """Start the thread that writes."""
        with self._lock:
            self._engines += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="aif-request-log", daemon=True)
                self._thread.start()
                atexit.register(self._stop)

    def served(self, ranking: Ranking, served: Served) -> None:
        """Queue the request if it is of the sample."""
        facts = ranking.facts.values
        if not self._share or not self.takes(facts["request_id"]):
            return
        with self._lock:
            self._counts["sampled"] += 1
            if self._queued >= self._max_queued:
                self._counts["dropped"] += 1
                return
            self._queued += 1
        try:
            rows = served.rows
            pair = {
                name: copied(column) if rows is None else take_rows(column, rows)
                for name, column in served.pair.items()
            }
            self._queue.put(
                _Sample(
                    int((time.time() - facts["total_ms"] / 1e3) * 1e6),
                    facts,
                    served._replace(ids=served.ids.copy(), pair=pair, rows=None),
                    ranking.ids.copy(),
                    ranking.scores.copy(),
                    {name: scores.copy() for name, scores in ranking.heads.items()},
                )
            )
        except BaseException:
            with self._lock:
                self._queued -= 1
                self._counts["failed"] += 1
            raise

    def closed(self, engine: ObservedEngine) -> None:
        """Write what waits; end the thread with the last engine."""
        with self._lock:
            self._engines -= 1
            last = not self._engines
        (self._stop if last else self.flush)()

    # -- the thread -------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._made_after != processes.forks:  # the thread is in the process that was forked
            return
        atexit.unregister(self._stop)
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(threading.Event())
            thread.join()

    def _work(self) -> None:
        """Gather samples, and write them when they are many, or old."""
        rows: list[dict[str, Any]] = []
        size, due_s = 0, float("inf")
        while True:
            try:
                wait_s = max(due_s - time.monotonic(), 0.0) if rows else None
                sample = self._queue.get(timeout=wait_s)
            except queue.Empty:
                sample = None
            if isinstance(sample, _Sample):
                with self._lock:
                    self._queued -= 1
                try:
                    row = dict(self._row(sample))
                    size += sum(map(_bytes, row.values()))
                except Exception:
                    self._fail(1)
                    continue
                if not rows:
                    due_s = time.monotonic() + self._rotate_s
                rows.append(row)
            full = size >= self._rotate_bytes or time.monotonic() >= due_s
            if rows and (full or isinstance(sample, threading.Event)):
                self._write(rows)
                rows, size, due_s = [], 0, float("inf")
            if isinstance(sample, threading.Event):
                sample.set()
                if self._thread is None:
                    return

    def _row(self, sample: _Sample) -> Iterator[tuple[str, Any]]:
        """Yield the columns of a request, less those that are masked."""
        for name, value in self._all_columns(sample):
            if hits := self._mask & {name, name.partition(".")[0]}:
                self._unused = self._unused - hits  # another set, since `stats` may be reading this one
            else:
                yield name, value

    def _all_columns(self, sample: _Sample) -> Iterator[tuple[str, Any]]:
        facts, served, record = sample.facts, sample.served, sample.served.record
        yield "time", sample.time_us
        yield "user_id", _plain(facts["user"])
        for name in _FACTS:
            yield name, facts[name]
        if record is not None:
            for name, value in record.features.items():
                yield f"user.{name}", _plain(value)
            yield "history.item", _ids(record.items)
            yield "history.type", _listed(read_flat(record.types, "types"))
            yield "history.time", read_numbers(record.times, "times")
        for name, value in served.context.items():
            yield f"context.{name}", _plain(value)
        yield "candidates", _ids(served.ids)
        for name, column in served.pair.items():
            yield f"pair.{name}", _listed(read_column(column, name))
        yield "ranked.id", _ids(sample.ids)
        yield "ranked.score", sample.scores
        for name, scores in sample.heads.items():
            yield f"ranked.head.{name}", scores

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write a file, or several where rows do not fit one another."""
        try:
            parts = [(rows, _table(rows))]
        except Exception:
            parts = [(part, None) for part in _alike(rows)]
        for part, table in parts:
            try:
                content = _parquet(_table(part) if table is None else table)
                self._files += 1
                began = time.strftime("%Y%m%dT%H%M%S", time.gmtime(part[0]["time"] / 1e6))
                path = self._folder / f"requests-{began}-{self._token}-{self._files:06d}.parquet"
                write_atomic(path, content)
            except Exception:
                self._fail(len(part))
                continue
            with self._lock:
                self._counts.update(logged=len(part), files=1, bytes=len(content))
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        try:
            files = sorted(self._folder.glob("requests-*.parquet"))
            sizes = [path.stat().st_size for path in files]
            excess = sum(sizes) - self._max_bytes
            for path, size in zip(files, sizes, strict=True):
                if excess <= 0:
                    return
                path.unlink(missing_ok=True)
                excess -= size
                with self._lock:
                    self._counts["removed_files"] += 1
        except OSError:  # the folder is gone, or another process removes too: the next file tries again
            return

    def _fail(self, number: int) -> None:
        with self._lock:
            first = not self._counts["failed"]
            self._counts["failed"] += number
        if first:
            _log.exception("a request log lost %d requests; further ones are only counted", number)


def _ids(ids: Any) -> Any:
    """Return item ids as uint64, or a list of strings, ``[n]``."""
    given = read_ids(ids)
    return list(map(str, given.given)) if given.strings else given.keys


def _listed(column: Any) -> Any:
    """Return a column as an array of numbers ``[n]``, or a list."""
    if isinstance(column, np.ndarray):
        kind = column.dtype.kind
        if column.ndim != 1 or kind not in "biuf" or isinstance(column, np.ma.MaskedArray):
            return column.tolist()
        # One width for all requests: Arrow would cut the numbers of later ones to that of the first.
        return column if kind in "bu" else column.astype(np.float64 if kind == "f" else np.int64)
    if isinstance(column, Ragged):
        values, offsets = _listed(column.values), column.offsets.tolist()
        return [values[start:end] for start, end in itertools.pairwise(offsets)]
    return [_plain(value) for value in column]


def _plain(value: Any) -> Any:
    """Return a raw value as Arrow reads it: scalars as Python's, sets as lists."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is int and value >= 2**63:
        return np.uint64(value)
    if isinstance(value, (np.ndarray, list, tuple, Ragged)):
        return _listed(value)
    return sorted(value) if isinstance(value, (set, frozenset)) else value


def _bytes(value: Any) -> int:
    """Return about how many bytes a value takes in memory."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):
        return 8 * len(value) + sum(map(_bytes, value))
    return 32 + (len(value) if isinstance(value, str) else 0)


def _alike(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Part rows so that one schema holds each part: a user's id, say, may be a number or a text."""
    import pyarrow as pa

    parts: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        try:
            kinds = {name: pa.array([value]).type for name, value in row.items() if value is not None}
            key = frozenset((name, str(kind)) for name, kind in kinds.items())
        except Exception:  # no type holds it, so that it fails alone
            key = id(row)
        parts.setdefault(key, []).append(row)
    return list(parts.values())


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    fixed = {
        "time": pa.timestamp("us", "UTC"), "rung": pa.int8(), "k_asked": pa.int32(),
        "rung_reason": pa.string(), "history.time": pa.list_(pa.float64()),
    }  # fmt: skip
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows], fixed.get(name)) for name in names})


def _parquet(table: Any) -> bytes:
    """Return a table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write(table)
    return sink.getvalue().to_pybytes()
