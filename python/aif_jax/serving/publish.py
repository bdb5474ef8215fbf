"""Publishing: the change of an engine from one generation to the next, and back.

A new generation passes checks of versions, coverage and memory. It ranks golden requests beside the running
one and gets states of recent users. Only then do requests begin with it.
"""

import contextlib
import dataclasses
import math
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aif_jax.bundle import Bundle, compilations
from aif_jax.checks import check, fits, is_real
from aif_jax.errors import AifError, PublishError, RequestError, SchedulerError
from aif_jax.machine import throttled
from aif_jax.memory import Needs, check_budget
from aif_jax.nearline import Coverage, Tables
from aif_jax.nearline.coverage import MissingKeys, coverage_of
from aif_jax.nearline.tables import check_tables
from aif_jax.serving.candidates import RankArgs, checked_k
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.generation import needs_ahead
from aif_jax.serving.release import Release
from aif_jax.serving.shadow import Answer, answer, compared
from aif_jax.serving.user_program import compute_state, long_bucket
from aif_jax.serving.user_side import fetched
from aif_jax.shown import shown
from aif_jax.types import UserId

_POLL_S = 0.05
_POLL_RATIO = 10.0
"""A wait for coverage looks again after so many seconds, or after so many times as long as a look takes."""

_CLOSED = "the engine is closed; make a new one."


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishChecks:
    """Bounds that a new generation must meet before it serves.

    Attributes:
        min_overlap: share of the best k of each golden request that both generations must agree on.
        max_drift: largest difference of the score of an item that both return.
        min_coverage: share of the running generation's tables that each new table must have: the index of the
            items that can be ranked, the behaviour table of the rows.
        coverage_within_s: seconds to wait for that, for tables that are still being filled.

    Raises:
        RequestError: a bound is out of its range.

    >>> PublishChecks(min_overlap=0.8, min_coverage=0.999).max_drift
    inf
    """

    min_overlap: float = 0.5
    max_drift: float = math.inf
    min_coverage: float = 0.0
    coverage_within_s: float = 0.0

    def __post_init__(self) -> None:
        shares = {"min_overlap": self.min_overlap, "min_coverage": self.min_coverage}
        others = {"max_drift": self.max_drift, "coverage_within_s": self.coverage_within_s}
        for name, value in {**shares, **others}.items():
            if not is_real(value) or not 0 <= value <= (1 if name in shares else math.inf):
                expected = "a share from 0 to 1" if name in shares else "0 or more"
                raise RequestError(f"{name}: got {shown(value)}, expected {expected}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenRequest:
    """Request that the running and the new generation rank before a publish; see `PublishChecks`.

    Attributes:
        user: a user of the engine's user source.
        candidates: item ids, or a table of them; see `Pending.rank`.
        pair: raw pair features by name.
        context: raw context features.
        k: number of results to compare; ``None`` for the engine's default.

    >>> GoldenRequest(user=7, candidates=[1, 2, 3], k=2).user
    7
    """

    user: UserId
    candidates: Any
    pair: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    k: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
    """Result of `Engine.publish`.

    Attributes:
        version: version of the bundle that serves now.
        previous: version of the bundle that served before.
        overlaps: share of the best k that both generations agree on, of each golden request.
        drifts: largest difference of the score of an item that both return, of each golden request.
        warmed: number of users whose states were computed ahead.
        not_warmed: number of users for whom that failed, by the error's name.
        prepared_s: seconds until the new generation could serve, without the wait for coverage.
        coverage: coverage of the previous tables by the new ones, when these began to serve.
        waited_s: seconds of waiting for coverage.
    """

    version: str
    previous: str
    overlaps: tuple[float, ...]
    drifts: tuple[float, ...]
    warmed: int
    not_warmed: Mapping[str, int]
    prepared_s: float
    coverage: Coverage
    waited_s: float


@dataclasses.dataclass(eq=False, slots=True)
class PreChecks:
    """Checks of versions, coverage and memory, before anything of a new generation is made. Used once.

    The time to wait for coverage runs from here on.

    Attributes:
        bundle: the new model.
        tables: its tables; they may still be filling.
        config: settings of the engine.
        held: returns the memory needs of the engine's generations, by name.
        checks: bounds; overlap and drift are checked elsewhere.
        user_states: false for a generation that caches no user states.
        waited_s: seconds of waiting for coverage.

    Raises:
        VersionMismatchError: a table was computed by another bundle version.
        ConfigError: the config does not fit the bundle.
    """

    bundle: Bundle
    tables: Tables
    config: EngineConfig
    held: Callable[[], Mapping[str, Needs]]
    checks: PublishChecks
    user_states: bool = dataclasses.field(default=True, kw_only=True)
    waited_s: float = dataclasses.field(default=0.0, init=False)
    _until_s: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        # Waiting would not help with these.
        check_tables(self.bundle, self.tables)
        self.config.sizes(k_max=self.bundle.k_max, long_length=self.bundle.spec.long_length)
        self._until_s = time.monotonic() + self.checks.coverage_within_s

    def wait(self, running: Callable[[], Tables], closed: Callable[[], bool]) -> None:
        """Check memory, then wait until there is enough coverage or the time is up.

        Args:
            running: returns the running tables.
            closed: returns whether the engine is closed.

        Raises:
            PublishError: the new generation finds no room in memory.
            SchedulerError: the engine was closed meanwhile.
        """
        self._check_memory()
        tables: Tables | None = None
        began_s, missing = time.monotonic(), list[MissingKeys]()
        while self._left_s > 0 and not closed():
            look_s, pause_s, now = time.monotonic(), _POLL_S, running()
            if now != tables:
                tables, missing = now, self._missing(now)
            else:
                # Only of what was missing. `passed` looks at everything: rows that were there may be gone.
                triples = zip(now, self.tables, missing, strict=True)
                missing = [part.again(old, new) for old, new, part in triples]
                pause_s = max(_POLL_S, _POLL_RATIO * (time.monotonic() - look_s))
            if self._enough(missing):
                break
            time.sleep(max(0.0, min(pause_s, self._left_s)))
        self.waited_s += time.monotonic() - began_s
        if closed():
            raise SchedulerError(_CLOSED)

    def passed(self, running: Tables) -> Coverage | None:
        """Check coverage and memory.

        Returns:
            The coverage; ``None`` to wait again.

        Raises:
            PublishError: the coverage is too small and the time is up, or there is no room in memory.
        """
        missing = self._missing(running)
        if self._enough(missing):
            # Again, because the tables may have grown during the wait.
            self._check_memory()
            return coverage_of(*missing)
        if self._left_s > 0:
            return None
        raise self._refusal(running, missing)

    def recheck(self, running: Tables, before: Coverage) -> Coverage:
        """Check coverage again, because tables may have changed while the generation was made.

        Args:
            running: the running tables.
            before: the coverage of before. It is returned unchecked if any coverage will do.

        Raises:
            PublishError: the coverage is too small now.
        """
        if self.checks.min_coverage == 0:
            return before
        missing = self._missing(running)
        if not self._enough(missing):
            raise self._refusal(running, missing)
        return coverage_of(*missing)

    @property
    def _left_s(self) -> float:
        return self._until_s - time.monotonic()

    def _missing(self, running: Tables) -> list[MissingKeys]:
        pairs = zip(running, self.tables, strict=True)
        return [MissingKeys.of(old, new, old.store.cache.keys()) for old, new in pairs]

    def _enough(self, missing: Sequence[MissingKeys]) -> bool:
        share = self.checks.min_coverage
        return all(part.total - len(part.keys) >= share * part.total for part in missing)

    def _check_memory(self) -> None:
        needs = needs_ahead(self.bundle, self.tables, self.config, user_states=self.user_states)
        check_budget(self.config.max_memory_bytes, {"next": needs, **self.held()})

    def _refusal(self, running: Tables, missing: Sequence[MissingKeys]) -> PublishError:
        checks, (items, behaviours) = self.checks, missing
        in_vain = checks.coverage_within_s > 0 and self._left_s <= 0
        waited = f" after {checks.coverage_within_s:g} s of waiting" if in_vain else ""
        return PublishError(
            f"the item index of bundle {self.bundle.version} has {items.shown()} rankable items of the "
            f"running bundle {running.items.version}, and its behaviour table {behaviours.shown()} behaviour "
            f"rows{waited}; min_coverage={checks.min_coverage:g} is wanted of each. Missing are "
            f"{items.named('items', running.items)}, and "
            f"{behaviours.named('behaviour rows', running.behaviours)}. Nothing was changed: upsert them, "
            "wait longer (coverage_within_s), or lower the bound if they are gone for good."
        )


def compare(
    running: Release, release: Release, golden: Sequence[GoldenRequest], checks: PublishChecks
) -> tuple[list[float], list[float]]:
    """Rank golden requests with both generations; return the overlap of each, and the drift of each.

    Raises:
        PublishError: the new generation cannot rank a request, or a difference is out of bounds.
    """
    overlaps, drifts = [], []
    for number, request in enumerate(golden):
        known = _ranked(running, request)
        try:
            new = _ranked(release, request)
        except AifError as error:
            raise PublishError(
                f"golden request {number} (user {request.user!r}) cannot be ranked by bundle "
                f"{release.version}: {error}"
            ) from error
        overlap, drift = compared(known, new)
        overlaps.append(overlap)
        drifts.append(drift)
        if overlap < checks.min_overlap or drift > checks.max_drift:
            raise PublishError(
                f"golden request {number} (user {request.user!r}): bundle {release.version} and the "
                f"running {running.version} agree on {overlap:.1%} of the best {len(known.ids)}, and scores "
                f"differ by up to {drift:.3g}; the bounds are min_overlap={checks.min_overlap:g} and "
                f"max_drift={checks.max_drift:g}. Nothing was changed: look at the new model, or loosen the "
                "bounds if this is what it should do."
            )
    return overlaps, drifts


def warm_users(
    running: Release, release: Release, max_users: int, max_s: float
) -> tuple[int, dict[str, int]]:
    """Compute states of recent users for a new generation, the latest user first.

    Args:
        running: the release that knows the users.
        release: the release that gets the states.
        max_users: number of users.
        max_s: seconds after which it ends.

    Returns:
        The number of states computed, and the number of failures by the error's name.
    """
    until_s = time.monotonic() + max_s
    warmed, failed = 0, Counter[str]()
    for user in running.user_states.recent(max_users):
        if time.monotonic() > until_s:
            break
        moment = release.user_states.moment()
        try:
            record = fetched(release.users, user, release.generation)
            if record is None:
                continue
            with throttled():
                length = long_bucket(record, release.generation)
                state = compute_state(user, record, length, release.generation)
                release.user_states.put(user, record.revision, state, moment)
            warmed += 1
        # The user's next request meets the same error and raises it.
        except Exception as error:
            failed[type(error).__name__] += 1
    return warmed, dict(failed)


def _ranked(release: Release, request: GoldenRequest) -> Answer:
    generation = release.generation
    context = {} if request.context is None else request.context
    k = generation.sizes.k if request.k is None else checked_k(request.k, generation.bundle.k_max)
    args = RankArgs(candidates=request.candidates, pair=request.pair, k=k, filters=None, called_s=0.0)
    with throttled():
        record = fetched(release.users, request.user, generation)
        return answer(generation, request.user, record, context, args, k)


class Generations:
    """Generations of an engine: the running one, the previous one, and the one that is made. Thread-safe.

    Args:
        first: the release that requests begin with.

    Attributes:
        current: the running release; replaced here only.
    """

    def __init__(self, first: Release):
        self.current = first
        self._previous: Release | None = None
        self._next: Release | None = None
        """The release that is tried and warmed."""
        self._retired = weakref.WeakSet[Release]()
        """Releases that requests may still hold open; nothing else keeps their tables in memory."""
        self._counts = {"published": 0, "rolled_back": 0}
        self._compiled = compilations()
        self._closed = False
        self._changing = threading.Lock()
        """Held by the one that makes a generation, or goes back to one."""
        self._lock = threading.Lock()

    @property
    def compilations(self) -> int:
        """Number of programs compiled since the first release was made, without those of next generations."""
        return compilations() - self._compiled

    def publish(
        self,
        make: Callable[[], Release],
        bundle: Bundle,
        tables: Tables,
        config: EngineConfig,
        held: Callable[[], Mapping[str, Needs]],
        golden: Sequence[GoldenRequest],
        checks: PublishChecks,
        warm: int,
        warm_s: float,
    ) -> Publication:
        """Make a release, try and warm it, and let requests begin with it; see `Engine.publish`.

        Args:
            make: makes the release of ``bundle`` and ``tables``, compiled.
            bundle, tables, golden, checks, warm, warm_s: see `Engine.publish`.
            config: settings of the engine.
            held: returns the memory needs of the engine's generations, by name.

        Raises:
            AifError: see `Engine.publish`; nothing was changed.
        """
        check("golden", golden, fits(golden, Sequence[GoldenRequest]), "a list of GoldenRequests")
        prechecks = PreChecks(bundle, tables, config, held, checks)
        with self.prepared(prechecks) as coverage:
            began_s, running = time.perf_counter(), self.current
            release = self._next = make()
            try:
                overlaps, drifts = compare(running, release, golden, checks)
                warmed, not_warmed = warm_users(running, release, warm, warm_s)
                coverage = prechecks.recheck(running.generation.tables, coverage)
                prepared_s = time.perf_counter() - began_s
                with self._lock:
                    if self._closed:
                        raise SchedulerError("the engine was closed meanwhile; nothing was published.")
                    before = self._replace(release)
                    self._counts["published"] += 1
            except BaseException:
                release.retire()
                raise
            finally:
                self._next = None
            if before is not None:
                before.retire()
            return Publication(
                version=release.version, previous=running.version, overlaps=tuple(overlaps),
                drifts=tuple(drifts), warmed=warmed, not_warmed=not_warmed, prepared_s=prepared_s,
                coverage=coverage, waited_s=prechecks.waited_s,
            )  # fmt: skip

    def _replace(self, release: Release) -> Release | None:
        """Let requests begin with a release; return the one to retire. The caller holds the lock.

        A rollback must lead to something else: the running release is not kept if the same version takes its
        place, unless its tables are others and there is no other version to go back to.
        """
        running, before = self.current, self._previous
        again = release.version == running.version and (
            release.generation.tables == running.generation.tables
            or (before is not None and before.version != running.version)
        )
        gone = running if again else before
        self.current, self._previous = release, before if again else running
        if gone is not None:
            self._retired.add(gone)
        return gone

    @contextlib.contextmanager
    def prepared(self, prechecks: PreChecks) -> Iterator[Coverage]:
        """Context in which the caller makes a generation that has passed the checks; it gets the coverage.

        Callers take turns. Others have theirs during a wait for coverage, which may be long.

        Raises:
            PublishError: a check failed.
            SchedulerError: the engine is closed.
        """
        with contextlib.ExitStack() as turn:
            while True:
                prechecks.wait(lambda: self.current.generation.tables, lambda: self._closed)
                turn.enter_context(self._changing)
                if self._closed:
                    raise SchedulerError(_CLOSED)
                if (coverage := prechecks.passed(self.current.generation.tables)) is not None:
                    break
                turn.close()
            compiled = compilations()
            try:
                yield coverage
            finally:
                self._compiled += compilations() - compiled

    def rollback(self) -> str:
        """Let requests begin with the previous release; return its version.

        Raises:
            PublishError: there is no previous release.
            SchedulerError: the engine is closed.
        """
        with self._changing, self._lock:
            if self._closed:
                raise SchedulerError(_CLOSED)
            if self._previous is None:
                raise PublishError(
                    "rollback: nothing else was published, so there is no generation to go back to."
                )
            self.current, self._previous = self._previous, self.current
            self._counts["rolled_back"] += 1
            return self.current.version

    def drop_previous(self) -> str | None:
        """Close the previous release when its last request is over; return its version, if there is one."""
        with self._lock:
            before, self._previous = self._previous, None
            if before is None:
                return None
            self._retired.add(before)
        before.retire()
        return before.version

    def held(self) -> dict[str, Needs]:
        """Return the memory needs of the releases that are not closed yet, by name."""
        with self._lock:
            named = {"running": self.current, "previous": self._previous}
            retired = [release for release in self._retired if release.open]
            named |= {f"retired_{number}": release for number, release in enumerate(retired, 1)}
        return {name: release.generation.needs() for name, release in named.items() if release is not None}

    def invalidate(self, users: Sequence[UserId]) -> int:
        """Drop cached states of users; return their number."""
        with self._lock:
            # The next one too: it may be warmed with a record of before. And the previous one: it has
            # requests under way, and may come back.
            releases = [self.current, self._previous, self._next]
        return sum(release.user_states.invalidate(users) for release in releases if release is not None)

    def stats(self) -> dict[str, Any]:
        """Return the counts of changes, the version that a rollback goes to, and open requests of both."""
        with self._lock:
            current, previous = self.current, self._previous
            return {
                **self._counts,
                "open": current.open,
                "previous": None if previous is None else previous.version,
                "previous_open": 0 if previous is None else previous.open,
            }

    def close(self) -> None:
        """Close both releases when their last requests are over. Nothing is published any more."""
        with self._lock:
            self._closed = True
            releases = [self.current, self._previous]
        for release in releases:
            if release is not None:
                release.retire()
