"""Item rows that the index lacks, computed while a request waits: ``missing_items="compute"``.

Their features are fetched from the item source, their rows are computed by the same program as any row of the
index and added to the index, where the stage and every later request finds them. That happens in the blocking
lane, because it waits for the source and then for other writers of the index.

All of it is bounded: the items of one request, the time that it waits for them, the calls of the source that
are under way at once. An item that is being computed is not asked for a second time, and one that could not
be computed not again for a while. Rows that do not come in time are left out of the request, and counted.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections import Counter
from typing import Any

import numpy as np

from aif_jax.errors import AifError, DeadlineExceededError, ItemIndexError, OverloadedError
from aif_jax.inputs import item_keys
from aif_jax.nearline import ItemIndex
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.tasks import Tasks
from aif_jax.strict_json import text_of
from aif_jax.types import ItemRecords, ItemSource

OVER_BOUND, BUSY, LATE, UNKNOWN = "over_bound", "busy", "late", "unknown"
"""Why a row was not computed; besides these ``error:`` and the name of an error."""

_MAX_REFUSED = 1 << 16


class _Batch:
    """Items that one call of the source was asked for."""

    def __init__(self, keys: np.ndarray):
        self.keys = keys
        self.began_s = time.perf_counter()
        self.finished = False
        self.failed: dict[int, str] = {}
        """Why each key without a row has none; complete when `done` is."""
        self.done: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A future that runs cannot be cancelled, by asyncio for example.
        self.done.set_running_or_notify_cancel()


class PendingRows:
    """Rows that one request waits for.

    Attributes:
        computed: its candidates whose rows were computed in time; known after a wait.
        uncomputed: the others that have none, by reason.
    """

    def __init__(self, wait_s: float):
        self.computed = 0
        self.uncomputed: Counter[str] = Counter()
        self.ended_s = 0.0
        """End of the wait, on the clock of ``time.perf_counter``."""
        self._wait_s = wait_s
        self._until_s = time.perf_counter() + wait_s
        self._batches: dict[_Batch, list[int]] = {}

    def expect(self, batch: _Batch, key: int) -> None:
        """Wait for a key's row in a batch."""
        self._batches.setdefault(batch, []).append(key)

    def wait(self) -> None:
        """Wait for the rows, no longer than their time; never raises for those that do not come."""
        for batch in self._batches:
            concurrent.futures.wait([batch.done], self._left_s(batch))
        self._settle()

    async def wait_async(self) -> None:
        """Like `wait`, for coroutines."""
        for batch in self._batches:
            waiting = asyncio.wrap_future(batch.done)
            await asyncio.wait({waiting}, timeout=self._left_s(batch))
            waiting.cancel()
        self._settle()

    def _left_s(self, batch: _Batch) -> float:
        # Whoever joins a batch that is late already waits no longer than who began it.
        return max(0.0, min(self._until_s, batch.began_s + self._wait_s) - time.perf_counter())

    def _settle(self) -> None:
        for batch, keys in self._batches.items():
            done = batch.done.done()
            for key in keys:
                reason = batch.failed.get(key) if done else LATE
                if reason is None:
                    self.computed += 1
                else:
                    self.uncomputed[reason] += 1
        self._batches = {}
        self.ended_s = time.perf_counter()


class MissingRows:
    """Computes rows that an item index lacks. Safe to use from any thread.

    Args:
        index: to look in and to add to.
        source: gives raw features of items.
        config: the bounds.
    """

    def __init__(self, index: ItemIndex, source: ItemSource, config: EngineConfig):
        self._index = index
        self._source = source
        self._config = config.missing_items
        # A source that hangs must leave threads for user sources and retrieval.
        self._max_calls = max(1, config.threads.blocking // 2)
        self._lock = threading.Lock()
        self._flying: dict[int, _Batch] = {}
        self._calls = 0
        self._refused: dict[int, tuple[float, str]] = {}
        self._counts: Counter[str] = Counter()
        self._last_error = ""

    def start(self, ids: np.ndarray, keys: np.ndarray, tasks: Tasks) -> PendingRows | None:
        """Have the rows computed that candidates lack; return at once.

        Args:
            ids: of the candidates, in the order of retrieval, ``[n]``.
            keys: theirs, uint64 ``[n]``.
            tasks: run the call of the source, under their deadline.

        Returns:
            What to wait for; ``None`` if nothing is missing.
        """
        there = self._index.store.cache.contains(keys)
        if there.all():
            return None
        left_ms = tasks.deadline.left_ms()
        wait_ms = self._config.max_wait_ms
        if left_ms is not None:
            wait_ms = max(0.0, min(wait_ms, left_ms / 2))
        supply = PendingRows(wait_ms / 1e3)
        missing = np.flatnonzero(~there)
        with self._lock:
            rows = self._not_yet_asked(supply, missing, keys)
            if not rows:
                return supply
            if self._calls >= self._max_calls:
                supply.uncomputed[BUSY] += len(rows)
                return supply
            batch = _Batch(keys[rows])
            self._calls += 1
            self._counts["calls"] += 1
            for key in batch.keys.tolist():
                self._flying[key] = batch
                supply.expect(batch, key)
        try:
            task = tasks.submit("blocking", "items", self._supply, batch, ids[rows])
        except AifError as error:
            self._fail(batch, error)
        else:
            task.add_done_callback(lambda task: self._dropped(batch, task))
        return supply

    def stats(self) -> dict[str, Any]:
        """Return what was done over the engine's life.

        ``calls`` of the source; rows ``computed``; items ``unknown`` to the source; ``failed`` items, and the
        ``last_error`` of one; calls ``under_way``; items ``put_off``, because they could not be computed a
        moment ago.
        """
        with self._lock:
            return {
                **{name: self._counts[name] for name in ("calls", "computed", "unknown", "failed")},
                "under_way": self._calls,
                "put_off": len(self._refused),
                "last_error": self._last_error,
            }

    # -- inside -----------------------------------------------------------------------------------

    def _not_yet_asked(self, supply: PendingRows, missing: np.ndarray, keys: np.ndarray) -> list[int]:
        """Sort out what is under way or was tried in vain; return rows to ask for. Under the lock."""
        now = time.perf_counter()
        rows: list[int] = []
        for row, key in zip(missing.tolist(), keys[missing].tolist(), strict=True):
            if (batch := self._flying.get(key)) is not None:
                supply.expect(batch, key)
                continue
            if (refused := self._refused.get(key)) is not None:
                if refused[0] > now:
                    supply.uncomputed[refused[1]] += 1
                    continue
                del self._refused[key]
            if len(rows) < self._config.max_items:
                rows.append(row)
            else:
                supply.uncomputed[OVER_BOUND] += 1
        return rows

    def _supply(self, batch: _Batch, ids: np.ndarray) -> None:
        """In the blocking lane: ask the source, run the item program, and keep its rows."""
        try:
            records = self._source(ids)
            unknown, stored = batch.keys, 0
            if records is not None:
                known = self._checked(records, batch)
                unknown = unknown[~np.isin(unknown, known)]
                if len(known):
                    stored = self._index.add(
                        records.ids, records.columns, records.content, rankable=records.rankable
                    )
            self._finish(batch, dict.fromkeys(unknown.tolist(), UNKNOWN), stored)
        except Exception as error:
            self._fail(batch, error)

    def _checked(self, records: Any, batch: _Batch) -> np.ndarray:
        """Return the keys of what the source gave, uint64 ``[m]``."""
        if not isinstance(records, ItemRecords):
            raise ItemIndexError(
                f"the item source returned a {type(records).__name__}, expected ItemRecords or None."
            )
        known = item_keys(records.ids)
        if len(others := known[~np.isin(known, batch.keys)]):
            raise ItemIndexError(
                f"the item source returned {len(others)} items that it was not asked for, the first with key "
                f"{others[0]}; return none but those asked for."
            )
        return known

    def _dropped(self, batch: _Batch, task: "concurrent.futures.Future[Any]") -> None:
        """After a task: it may have been dropped before it started, which is not an error."""
        if task.cancelled():
            self._fail(batch, DeadlineExceededError("the task was dropped before it started."))
        elif (error := task.exception()) is not None:
            self._fail(batch, error)

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        if isinstance(error, DeadlineExceededError):
            reason = LATE
        elif isinstance(error, OverloadedError):
            reason = BUSY
        else:
            reason = f"error:{type(error).__name__}"
        self._finish(batch, dict.fromkeys(batch.keys.tolist(), reason), 0, error)

    def _finish(
        self, batch: _Batch, failed: dict[int, str], stored: int, error: BaseException | None = None
    ) -> None:
        """Wake the requests that wait. Only the first call for a batch counts."""
        with self._lock:
            if batch.finished:
                return
            batch.finished = True
            batch.failed = failed
            self._calls -= 1
            self._counts["computed"] += stored
            for key in batch.keys.tolist():
                del self._flying[key]
            until = time.perf_counter() + self._config.retry_s
            if len(self._refused) + len(failed) > _MAX_REFUSED:
                self._refused.clear()
            for key, reason in failed.items():
                if reason == UNKNOWN or reason.startswith("error:"):
                    self._refused[key] = (until, reason)
                self._counts["unknown" if reason == UNKNOWN else "failed"] += 1
            if error is not None:
                self._last_error = f"{type(error).__name__}: {text_of(error)}"
        batch.done.set_result(None)
