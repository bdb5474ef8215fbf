"""A candidate generation that ranks a share of finished requests again, and how far its answers differ."""

import atexit
import contextlib
import copy
import dataclasses
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from aif_jax.errors import RequestError
from aif_jax.serving.candidates import Asked
from aif_jax.serving.comparing import Answer, answer, compared
from aif_jax.serving.coverage import Coverage
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Ranking
from aif_jax.serving.stages import Generation
from aif_jax.serving.unhurried import REST
from aif_jax.types import UserId, UserRecord

_WINDOW = 4096
"""Comparisons that distributions are of: the last ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShadowConfig:
    """How much a shadow ranks again.

    Attributes:
        share: of the requests that were ranked with everything, from 0 to 1.
        seed: of the choice: the same for the n-th such request in every run.
        most_waiting: requests that may wait to be ranked again; what comes while so many do is dropped.

    Raises:
        RequestError: a share or a number is out of range.
    """

    share: float
    seed: int
    most_waiting: int

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.most_waiting < 1:
            raise RequestError(
                f"share, most_waiting: got {self.share} and {self.most_waiting}, expected a share from 0 to "
                "1, and at least 1."
            )


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    """What it takes to rank a finished request again. Copied: callers use their arrays again."""

    user: UserId
    record: UserRecord | None
    context: Mapping[str, Any]
    asked: Asked
    k: int
    version: str
    known: Answer

    @classmethod
    def of(cls, pending: Pending, asked: Asked, ranking: Ranking) -> Self:
        record = pending.record
        if record is not None:
            record = dataclasses.replace(
                record, features=dict(record.features), items=_kept(record.items), types=_kept(record.types)
            )
        asked = dataclasses.replace(asked, candidates=_kept(asked.candidates), pair=_kept(asked.pair))
        known = Answer(ranking.ids.copy(), ranking.scores.copy())
        return cls(
            pending.user, record, dict(pending.context), asked, ranking.report.k_asked, pending.version, known
        )


class Shadow:
    """Ranks a share of finished requests again with a candidate generation; from `Engine.shadow`.

    A thread of its own does it, in the order in which they came, and rests five times as long as each took:
    it takes a third of a core at most, and requests wait for nothing but the copy of a sampled one's arrays.
    The record is the one that the request was ranked with, so the user source is not asked again; the user
    state is computed, where the request's may have come from the cache. Safe to use from any thread; stop it,
    or use it as a context manager.

    Args:
        generation: warmed; the shadow closes it.
        config: how much it does.
        coverage: what its tables had of the running ones when it was made.
        ended: called when it was stopped.
    """

    def __init__(
        self,
        generation: Generation,
        config: ShadowConfig,
        coverage: Coverage,
        ended: Callable[["Shadow"], None],
    ):
        self.coverage = coverage
        self._generation = generation
        self._config = config
        self._ended = ended
        self._random = random.Random(config.seed)
        self._counts = Counter(seen=0, sampled=0, compared=0, dropped=0, missing_items=0)
        self._failed: Counter[str] = Counter()
        self._against: Counter[str] = Counter()
        self._overlaps: deque[float] = deque(maxlen=_WINDOW)
        self._drifts: deque[float] = deque(maxlen=_WINDOW)
        self._samples: queue.SimpleQueue[_Sample | None] = queue.SimpleQueue()
        self._waiting = 0
        self._counting = threading.Lock()
        self._ending = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="aif-shadow", daemon=True)
        self._thread.start()
        # A thread that is in a program when the interpreter goes away would bring it down.
        atexit.register(self.stop)

    @property
    def version(self) -> str:
        """Version of the candidate bundle."""
        return self._generation.version

    def stats(self) -> dict[str, Any]:
        """Return counters, and how far answers differ.

        ``seen`` are requests that were ranked with everything since the shadow was made, ``sampled`` those of
        them that were chosen. Each of these was ``compared``, was ``dropped`` because too many were waiting
        or the shadow was stopped, has ``failed`` (by the error's name), or is ``waiting``. ``against`` counts
        comparisons by the version that had answered; ``missing_items`` are candidates without a row in the
        new index, which it never has computed. Of the last ``window`` comparisons (4,096 at most) are: the
        overlap of the best k, ``overlap_mean`` and ``overlap_p10``, which nine tenths exceed; and the largest
        difference of a score that both gave, ``drift_mean``, ``drift_p90`` and ``drift_max``; ``None`` before
        the first.
        """
        with self._counting:
            counts, failed, against = dict(self._counts), dict(self._failed), dict(self._against)
            overlaps, drifts = np.array(self._overlaps), np.array(self._drifts)
            waiting = self._waiting
        some = len(overlaps) > 0
        return {
            "version": self.version, "share": self._config.share, "seed": self._config.seed,
            "stopped": self._stopping.is_set(), **counts, "failed": failed, "waiting": waiting,
            "against": against, "coverage": dataclasses.asdict(self.coverage), "window": len(overlaps),
            "overlap_mean": float(overlaps.mean()) if some else None,
            "overlap_p10": float(np.quantile(overlaps, 0.1)) if some else None,
            "drift_mean": float(drifts.mean()) if some else None,
            "drift_p90": float(np.quantile(drifts, 0.9)) if some else None,
            "drift_max": float(drifts.max()) if some else None,
        }  # fmt: skip

    def stop(self) -> None:
        """End it: what is compared right now is finished, what waits is dropped, the generation is closed.

        `stats` stays as it is then. Stopping again does nothing.
        """
        with self._ending:
            if self._stopping.is_set():
                return
            with self._counting:
                self._stopping.set()
            self._samples.put(None)
            self._thread.join()
            self._generation.close()
            self._ended(self)
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # -- for the engine ---------------------------------------------------------------------------

    def offer(self, pending: Pending, asked: Asked, ranking: Ranking) -> None:
        """Take note of a request that was ranked with everything; never raises, and waits for nothing.

        Args:
            pending: the request.
            asked: what was given to rank.
            ranking: its answer.
        """
        with self._counting:
            if self._stopping.is_set():
                return
            self._counts["seen"] += 1
            if self._random.random() >= self._config.share:
                return
            self._counts["sampled"] += 1
            if self._waiting >= self._config.most_waiting:
                self._counts["dropped"] += 1
                return
            self._waiting += 1
        try:
            self._samples.put(_Sample.of(pending, asked, ranking))
        # Whatever copying an object of the caller's raises: the request has its answer. (Not an interrupt.)
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    @property
    def generation(self) -> Generation:
        """The candidate generation."""
        return self._generation

    # -- inside -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while (sample := self._samples.get()) is not None:
            if self._stopping.is_set():
                self._drop()
                continue
            began_s = time.perf_counter()
            try:
                self._compare(sample)
            # Whatever it is: that the candidate cannot rank something is what one wants to know of it.
            except Exception as error:
                self._fail(error)
            self._stopping.wait(REST * (time.perf_counter() - began_s))
        # A request that was taking its sample when the shadow was stopped puts it after the end.
        while True:
            with self._counting:
                if not self._waiting:
                    return
            with contextlib.suppress(queue.Empty):  # if it could not be copied, none comes
                self._samples.get(timeout=0.01)
                self._drop()

    def _compare(self, sample: _Sample) -> None:
        generation = self._generation
        k = min(sample.k, generation.bundle.k_max)
        new = answer(
            generation, sample.user, sample.record, sample.context, sample.asked, k,
            generation.config.unknown_columns,
        )  # fmt: skip
        known = Answer(sample.known.ids[:k], sample.known.scores[:k])
        overlap, drift = compared(known, new)
        with self._counting:
            self._waiting -= 1
            self._counts["compared"] += 1
            self._counts["missing_items"] += new.missing
            self._against[sample.version] += 1
            self._overlaps.append(overlap)
            self._drifts.append(drift)

    def _fail(self, error: BaseException) -> None:
        with self._counting:
            self._waiting -= 1
            self._failed[type(error).__name__] += 1

    def _drop(self) -> None:
        with self._counting:
            self._waiting -= 1
            self._counts["dropped"] += 1


def _kept(value: Any) -> Any:
    """Return a copy of candidates, of a column, or of several, that does not change with the original."""
    if value is None or isinstance(value, tuple):
        return value
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return list(value)
    if isinstance(value, Mapping):
        return {name: _kept(column) for name, column in value.items()}
    return copy.deepcopy(value)
