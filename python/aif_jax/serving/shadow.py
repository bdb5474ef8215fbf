"""Shadows: generations that rank a share of finished requests again, in the background.

A shadow compares its answers with those that were given. Requests keep their answers and the cores.
"""

import atexit
import contextlib
import dataclasses
import itertools
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from aif_jax import machine
from aif_jax.checks import is_real
from aif_jax.errors import RequestError, SchedulerError
from aif_jax.features import EncodeReport
from aif_jax.features.copies import copied
from aif_jax.features.schema import check_context
from aif_jax.memory import Needs
from aif_jax.nearline import Coverage
from aif_jax.processes import OfOneProcess
from aif_jax.serving.candidates import RankArgs, encode, parse
from aif_jax.serving.config import UnknownColumns
from aif_jax.serving.generation import Generation
from aif_jax.serving.report import Ranking
from aif_jax.serving.user_program import compute_state, long_bucket
from aif_jax.shown import shown
from aif_jax.types import UserId, UserRecord

_WINDOW = 4096
"""Comparisons that the statistics of a shadow are of, the last ones."""


class Answer(NamedTuple):
    """Best candidates of one request.

    Attributes:
        ids: item ids, best first, ``[k]``.
        scores: float32 ``[k]``.
        missing: number of candidates without a row.
    """

    ids: np.ndarray
    scores: np.ndarray
    missing: int = 0


def answer(
    generation: Generation,
    user: UserId,
    record: UserRecord | None,
    context: Mapping[str, Any],
    args: RankArgs,
    k: int,
    unknown_columns: UnknownColumns = "error",
) -> Answer:
    """Rank a request on the full rung, in the calling thread. Missing item rows are not computed.

    Args:
        generation: a warmed generation.
        user: the user to rank for.
        record: the user's record; ``None`` for an unknown user.
        context: raw context features.
        args: candidates, pair features and filters.
        k: number of results.
        unknown_columns: policy for columns of a candidate table that the schema does not know.

    Raises:
        RequestError: an argument is malformed, or the schema does not know it.
        UnknownItemError: a candidate has no row, under ``missing_items="error"``.
    """
    schema, report = generation.bundle.schema, EncodeReport()
    check_context(context, schema)
    record = UserRecord() if record is None else record
    state = compute_state(user, record, long_bucket(record, generation), generation)
    candidates = encode(
        parse(args, schema, unknown_columns), generation.tables.items, schema, generation.raw_pair, report,
        drop_unknown=generation.config.missing_items.policy == "default",
    )  # fmt: skip
    encoded_context = schema.encode_one("context", context, report=report)
    shared = generation.prepare(state.leaves, state.length, encoded_context)
    scored = generation.score(shared, candidates, k)
    return Answer(candidates.ids[scored.order], scored.scores, scored.missing)


def compared(one: Answer, other: Answer) -> tuple[float, float]:
    """Compare two answers to one request.

    Returns:
        Overlap: the share of the best k that both have; 1 for two empty answers. Drift: the largest
        difference of the score of an item that both have; 0 without such an item.
    """
    longest = max(len(one.ids), len(other.ids))
    _, mine, theirs = np.intersect1d(one.ids, other.ids, return_indices=True)
    overlap = len(mine) / longest if longest else 1.0
    drift = float(np.max(np.abs(one.scores[mine] - other.scores[theirs]))) if len(mine) else 0.0
    return overlap, drift


class FinishedRequest(NamedTuple):
    """A request that was ranked on the full rung, with its answer.

    Attributes:
        user: the user.
        record: the record that the request was ranked with; ``None`` for an unknown user.
        context: raw context features.
        args: arguments of the ranking.
        k: number of results asked for.
        version: version of the bundle that answered.
        ranking: the answer.
    """

    user: UserId
    record: UserRecord | None
    context: Mapping[str, Any]
    args: RankArgs
    k: int
    version: str
    ranking: Ranking

    def copied(self) -> "FinishedRequest":
        """Return a copy that stays as it is when callers reuse their arrays."""
        args, ranking = self.args, self.ranking  # the record and the context are the request's own
        return self._replace(
            args=args._replace(candidates=copied(args.candidates), pair=copied(args.pair)),
            ranking=Ranking(ranking.ids.copy(), ranking.scores.copy(), ranking.heads, ranking.facts),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShadowConfig:
    """Sampling of a shadow.

    Attributes:
        share: share of the requests on the full rung that is ranked again, from 0 to 1.
        seed: seed of the choice. The n-th such request is chosen in every run or in none.
        max_waiting: number of chosen requests that may wait. Further ones are dropped.

    Raises:
        RequestError: a setting is out of its range.
    """

    share: float = 0.01
    seed: int = 0
    max_waiting: int = 64

    def __post_init__(self) -> None:
        numbers = is_real(self.share) and is_real(self.max_waiting)
        if not numbers or not 0 <= self.share <= 1 or self.max_waiting < 1:
            raise RequestError(
                f"share, max_waiting: got {shown(self.share)} and {shown(self.max_waiting)}, expected a "
                "share from 0 to 1, and at least 1."
            )


class Shadow(OfOneProcess, guards=("stats", "offer")):
    """Candidate generation that ranks a share of finished requests again; made by `Engine.shadow`.

    A thread of its own ranks them in their order. It rests five times as long as each took, so it works a
    sixth of the time at most. A request waits for nothing but the copy of its arrays, if it is chosen. It is
    ranked again with the same record, so the user source is not asked again; the user state is always
    computed. Safe to use from any thread. Call `stop` in the end, or use it as a context manager.

    Args:
        generation: a warmed generation; the shadow closes it.
        config: sampling.
        coverage: coverage of the running tables by those of the generation.
        on_stop: called with the shadow after its end.

    >>> with engine.shadow(new_bundle, new_tables, share=1.0, seed=3) as shadow:
    ...     shadow.version == new_bundle.version, shadow.stats()["seed"]
    (True, 3)
    """

    unpickled = "start one in each process: engine.shadow(bundle, tables)."

    def __init__(
        self,
        generation: Generation,
        config: ShadowConfig,
        coverage: Coverage,
        on_stop: Callable[["Shadow"], None],
    ):
        super().__init__()
        self.generation = generation
        """The candidate generation."""
        self.coverage = coverage
        """Coverage of the running tables by the shadow's, at its start."""
        self._config = config
        self._on_stop = on_stop
        self._random = random.Random(config.seed)
        self._counts = Counter(seen=0, sampled=0, compared=0, dropped=0, missing_items=0)
        self._failed: Counter[str] = Counter()
        self._against: Counter[str] = Counter()
        self._overlaps: deque[float] = deque(maxlen=_WINDOW)
        self._drifts: deque[float] = deque(maxlen=_WINDOW)
        self._samples: queue.SimpleQueue[FinishedRequest | None] = queue.SimpleQueue()
        self._waiting = 0
        self._counting = threading.Lock()
        self._ending = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="aif-shadow", daemon=True)
        self._thread.start()
        # A thread that runs a program when the interpreter ends would crash the process.
        atexit.register(self.stop)

    @property
    def version(self) -> str:
        """Version of the candidate bundle."""
        return self.generation.version

    def stats(self) -> dict[str, Any]:
        """Return counters and the distribution of differences.

        ``seen`` counts requests that were ranked on the full rung since the start, ``sampled`` those of them
        that were chosen. Each of these was ``compared``, was ``dropped`` (too many waited, or the shadow was
        stopped), has ``failed`` (by the error's name), or is ``waiting``. ``against`` counts comparisons by
        the version that had answered, ``missing_items`` candidates without a row in the shadow's index.

        The rest is of the last ``window`` comparisons, at most 4,096, and ``None`` before the first.
        ``overlap_mean`` and ``overlap_p10`` (nine tenths are above it) are of the share of the best k that
        both answers have; ``drift_mean``, ``drift_p90`` and ``drift_max`` of the largest difference of the
        score of an item that both have.

        >>> with engine.shadow(new_bundle, new_tables, share=0.5) as shadow:
        ...     sorted(shadow.stats())[:4]
        ['against', 'compared', 'coverage', 'drift_max']
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
        """End the shadow: finish the running comparison, drop what waits, close the generation.

        `stats` keeps its last values. A second call does nothing, nor does one in a forked child.

        >>> shadow = engine.shadow(new_bundle, new_tables)
        >>> shadow.stop()
        >>> shadow.stats()["stopped"]
        True
        """
        if self.forked:
            return
        with self._ending:
            if self._stopping.is_set():
                return
            with self._counting:
                self._stopping.set()
            self._samples.put(None)
            self._thread.join()
            self.generation.close()
            self._on_stop(self)
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def offer(self, finished: FinishedRequest) -> None:
        """Count a finished request, and copy it if it is chosen. Raises no error and waits for nothing."""
        with self._counting:
            if self._stopping.is_set():
                return
            self._counts["seen"] += 1
            if self._random.random() >= self._config.share:
                return
            self._counts["sampled"] += 1
            if self._waiting >= self._config.max_waiting:
                self._counts["dropped"] += 1
                return
            self._waiting += 1
        try:
            self._samples.put(finished.copied())
        # The copy of a caller's object may raise anything, but the request has its answer. Interrupts pass.
        except BaseException as error:
            self._settle(self._failed, type(error).__name__)
            if not isinstance(error, Exception):
                raise

    def _work(self) -> None:
        while (sample := self._samples.get()) is not None:
            if self._stopping.is_set():
                self._settle(self._counts, "dropped")
                continue
            began_s = time.perf_counter()
            try:
                self._compare(sample)
            # An error of any kind is a finding about the candidate.
            except Exception as error:
                self._settle(self._failed, type(error).__name__)
            self._stopping.wait(machine.IDLE_RATIO * (time.perf_counter() - began_s))
        # A request that was being copied when the shadow was stopped is put after the end.
        while True:
            with self._counting:
                if not self._waiting:
                    return
            with contextlib.suppress(queue.Empty):  # it never comes if its copy failed
                self._samples.get(timeout=0.01)
                self._settle(self._counts, "dropped")

    def _compare(self, sample: FinishedRequest) -> None:
        generation, ranking = self.generation, sample.ranking
        k = min(sample.k, generation.bundle.k_max)
        new = answer(
            generation, sample.user, sample.record, sample.context, sample.args, k,
            generation.config.unknown_columns,
        )  # fmt: skip
        overlap, drift = compared(Answer(ranking.ids[:k], ranking.scores[:k]), new)
        with self._counting:
            self._waiting -= 1
            self._counts["compared"] += 1
            self._counts["missing_items"] += new.missing
            self._against[sample.version] += 1
            self._overlaps.append(overlap)
            self._drifts.append(drift)

    def _settle(self, counts: Counter[str], name: str) -> None:
        """Count the end of a request that waited and was not compared."""
        with self._counting:
            self._waiting -= 1
            counts[name] += 1


class Shadows:
    """Running shadows of an engine, by number. Safe to use from any thread.

    Attributes:
        running: the shadows. It is replaced as a whole, so it can be read without a lock.
    """

    def __init__(self) -> None:
        self.running: Mapping[int, Shadow] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False

    def start(self, generation: Generation, config: ShadowConfig, coverage: Coverage) -> Shadow:
        """Start a shadow of a warmed generation.

        Raises:
            SchedulerError: the engine was closed; the generation is closed too.
        """
        with self._lock:
            if self._closed:
                generation.close()
                raise SchedulerError("the engine was closed meanwhile; nothing is shadowed.")
            try:
                shadow = Shadow(generation, config, coverage, self._forget)
            except BaseException:
                generation.close()
                raise
            self.running = {**self.running, next(self._numbers): shadow}
        return shadow

    def offer(self, finished: FinishedRequest) -> None:
        """Offer a finished request to all running shadows; see `Shadow.offer`.

        Callers test `running` first: an engine without shadows need not make the argument.
        """
        for shadow in self.running.values():
            shadow.offer(finished)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return the statistics of each running shadow, by its number; see `Shadow.stats`."""
        return {str(number): shadow.stats() for number, shadow in self.running.items()}

    def held(self) -> dict[str, Needs]:
        """Return the memory needs of the shadows' generations, by name."""
        return {
            f"shadow_{number}": shadow.generation.needs(user_states=False)
            for number, shadow in self.running.items()
        }

    def close(self) -> None:
        """Stop all shadows, and let none start any more."""
        with self._lock:
            self._closed = True
            running = tuple(self.running.values())
        for shadow in running:
            shadow.stop()

    def _forget(self, shadow: Shadow) -> None:
        with self._lock:
            self.running = {n: other for n, other in self.running.items() if other is not shadow}
