"""The engine: pins a generation, runs the user side while retrieval runs, and ranks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from aif_jax import _native
from aif_jax.bundle import Bundle, compilations, loads
from aif_jax.errors import OverloadedError, SchedulerError
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving.admission import Admission
from aif_jax.serving.arguments import check_context, check_deadline, check_user
from aif_jax.serving.candidates import Asked, Chosen, choose
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.counts import RequestCounts
from aif_jax.serving.filters import Filters, for_each_user
from aif_jax.serving.finishing import finish
from aif_jax.serving.gates import Gates
from aif_jax.serving.handles import Handles
from aif_jax.serving.ladder import Choice
from aif_jax.serving.many import context_for_each, rank_in_order, rank_side_by_side, window
from aif_jax.serving.memory import Needs, as_stats
from aif_jax.serving.observer import Observer
from aif_jax.serving.own_retrieval import BLAMING_RETRIEVAL, Fallback
from aif_jax.serving.pending import Pending
from aif_jax.serving.publishing import GoldenRequest, Publication, check_bounds
from aif_jax.serving.release import Release, Sources
from aif_jax.serving.releases import Releases
from aif_jax.serving.report import Ranking
from aif_jax.serving.retrieval import EventLoop
from aif_jax.serving.shadow import Shadow, ShadowConfig
from aif_jax.serving.shadows import Shadows
from aif_jax.serving.stage import Progress
from aif_jax.serving.stages import Generation
from aif_jax.serving.tasks import Tasks
from aif_jax.serving.user_batches import UserGroup
from aif_jax.serving.user_side import UserSide
from aif_jax.serving.watch import Watch
from aif_jax.types import ItemRecords, ItemSource, Request, Retrieve, UserId, UserRecord, UserSource


class Engine:
    """Ranks candidates for users with one bundle and the tables it computed. Safe to call from any thread.

    Everything is compiled while the engine is made; no request compiles anything. Close it, or use it as a
    context manager.

    Args:
        bundle: the model.
        index: item rows, of the same bundle version; may be written to while the engine runs.
        behaviours: rows of the items in histories, of the same bundle version; likewise.
        users: the user source: from a user id to a `UserRecord`, or ``None`` for an unknown user.
        retrieve: from a `Request` to item ids or `Candidates`, plain or coroutine function; needed by
            `rank`, `rank_async` and `rank_many`, not by `begin`.
        fallback: what to rank when ``retrieve`` raises, is late or returns what is no candidates: ids,
            `Candidates`, or a plain and quick function from a `Request` to either. With it, a plain
            ``retrieve`` of a request with a deadline runs in a thread, so that it can be given up.
        items: the item source, for ``missing_items="compute"``: from ids that have no row to `ItemRecords` of
            those that it knows.
        config: settings.
        observers: who is told how each request ended, see `aif_jax.observe`.
        progress: called after every program that was compiled.

    Raises:
        VersionMismatchError: the index or the behaviour table was computed by another bundle version.
        ConfigError: the config does not fit the bundle, or ``items`` not the config.
    """

    def __init__(
        self,
        bundle: Bundle,
        index: ItemIndex,
        behaviours: BehaviourTable,
        *,
        users: UserSource | Callable[[Any], UserRecord | None],
        retrieve: Retrieve | Callable[[Request], Any] | None = None,
        fallback: Fallback = None,
        items: ItemSource | Callable[[Any], ItemRecords | None] | None = None,
        config: EngineConfig | None = None,
        observers: Sequence[Observer] = (),
        progress: Progress | None = None,
    ):
        self.config = config or EngineConfig()
        self.config.check_items(items)
        self._sources = Sources(users, retrieve, fallback, items)
        self._loop = EventLoop()
        self._scheduler = _native.Scheduler(
            blocking_threads=self.config.blocking_threads,
            compute_threads=self.config.compute_threads,
            queue_bound=self.config.queue_bound,
        )
        self.tasks = Tasks(self._scheduler)
        try:
            self._releases = Releases(self._made(bundle, index, behaviours, progress))
        except BaseException:
            self._scheduler.shutdown(wait=True)
            raise
        self._shadows = Shadows()
        self.counts = RequestCounts()
        self._handles = Handles(self.config.max_pending_age_s, self.counts)
        self.watch = Watch(self.counts, observers, lambda: self.version)
        self.admission = Admission(self.config.compute_threads)
        self._closed = False
        try:
            self.watch.opened(self)
        except BaseException:
            self.close()
            raise

    # -- requests ---------------------------------------------------------------------------------

    def begin(
        self, user: UserId, context: Mapping[str, Any] | None = None, deadline_ms: float | None = None
    ) -> Pending:
        """Start the user side of a request and return at once.

        Retrieve meanwhile, then call `Pending.rank` on the handle.

        Args:
            user: whom to rank for.
            context: raw context features of the request; an absent one counts as missing.
            deadline_ms: milliseconds from now in which the ranking is wanted. What is predicted to be late is
                gone without, see `EngineConfig.late`, and after it no real-time stage is started.

        Raises:
            RequestError: ``context`` is not a mapping, names an unknown feature, or the deadline is not
                positive or beyond 1e9 milliseconds.
            OverloadedError: too many requests are waiting, and there is no deadline for which to go without a
                user side; nothing was started.
            SchedulerError: the engine is closed.
        """
        return self._begin(user, context, deadline_ms, start=True)

    def _begin(
        self,
        user: UserId,
        context: Mapping[str, Any] | None,
        deadline_ms: float | None,
        *,
        start: bool,
        many: bool = False,
        group: UserGroup | None = None,
    ) -> Pending:
        """Check and open a request, maybe one of many; without ``start``, the caller starts its user side."""
        with self.watch.errors(user, deadline_ms):
            if self._closed:
                raise SchedulerError("the engine is closed; make a new one.")
            check_user(user)
            check_deadline(deadline_ms)
            context = {} if context is None else context
            release = self._releases.enter()
            try:
                check_context(context, release.generation.bundle.schema)
            except BaseException:
                release.leave()
                raise
            # It is read in another thread, later: the caller may use the mapping again.
            pending = Pending(self, release, user, dict(context), deadline_ms)
            pending.batched |= many
            pending.group = group
            self.counts.add("begun")
            self._handles.add(pending)
            try:
                self.admission.enter(pending)
                if start:
                    self._start(pending)
            except BaseException:
                self.forget(pending)
                pending.over()
                raise
            return pending

    def _start(self, pending: Pending) -> None:
        """Start a user side, unless that was done or the request goes without."""
        if pending.shed or pending.started:
            return
        pending.started = True
        try:
            pending.release.user_sides.start(pending)
        except OverloadedError as error:
            if not pending.rungs.ladder.degrades(pending.deadline_ms):
                raise
            pending.fail(error)

    def rank(
        self,
        user: UserId,
        context: Mapping[str, Any] | None = None,
        k: int | None = None,
        deadline_ms: float | None = None,
        *,
        filters: Filters | None = None,
    ) -> Ranking:
        """Begin, call the engine's own ``retrieve`` in this thread, and rank.

        Raises:
            RetrievalError: ``retrieve`` raised, or returned something that is not candidates, and there is no
                fallback.
            ConfigError: the engine was made without ``retrieve``.
            DeadlineExceededError: retrieval took too long, and there is no fallback.
            AifError: see `begin` and `Pending.rank`.
        """
        self._release.retrieval.require()
        pending = self._begin_own(user, context, deadline_ms, start=False)
        return self._retrieve_and_rank(pending, k, filters)

    async def rank_async(
        self,
        user: UserId,
        context: Mapping[str, Any] | None = None,
        k: int | None = None,
        deadline_ms: float | None = None,
        *,
        filters: Filters | None = None,
    ) -> Ranking:
        """Like `rank`, without blocking the event loop: a plain ``retrieve`` runs in a thread."""
        self._release.retrieval.require()
        pending = self._begin_own(user, context, deadline_ms, start=False)
        return await self._retrieve_and_rank_async(pending, k, filters)

    async def _retrieve_and_rank_async(
        self, pending: Pending, k: int | None, filters: Filters | None
    ) -> Ranking:
        try:
            with pending.errors():
                request, start = self._request(pending, k, filters), partial(self._start, pending)
                rank_here = partial(pending.rank_here, k=k, filters=filters)
                found, ranked = await pending.release.retrieval.later(pending, request, start, rank_here)
                with BLAMING_RETRIEVAL:
                    if ranked is not None:
                        return pending.told(*ranked)
                    return await pending.rank_uncounted_async(*found, k, filters)
        except BaseException:
            self._drop(pending)
            raise

    def rank_many(
        self,
        users: Sequence[UserId],
        k: int | None = None,
        *,
        contexts: Sequence[Mapping[str, Any] | None] | None = None,
        deadline_ms: float | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Rank for several users, one after the other, while the user sides of the next ones run.

        Without a deadline, user sides are computed together, as many as `EngineConfig.user_batches` allows,
        once the records of all of these are there; with one, those that wait for a thread at the same time.

        Args:
            users: whom to rank for.
            k: results wanted of each; ``None`` for the engine's default.
            contexts: raw context features, a mapping for each user.
            deadline_ms: milliseconds for each request, from the moment in which it is its turn to begin.
            filters: candidates to leave out: the same for all users, or a list of one for each.
            return_exceptions: whether an error takes the place of its user's ranking. Otherwise the first one
                ends all, and what was begun by then is abandoned.

        Returns:
            A `Ranking` for each user, or its error.

        Raises:
            AifError: see `rank`.
        """
        self._release.retrieval.require()
        each, context = for_each_user(filters, users), context_for_each(contexts, len(users))
        return rank_in_order(
            len(users),
            window(self.config, deadline_ms),
            lambda n, group: self._begin_own(
                users[n], context[n], deadline_ms, start=True, many=True, group=group
            ),
            lambda pending, n: self._retrieve_and_rank(pending, k, each[n]),
            return_exceptions=return_exceptions,
        )

    async def rank_many_async(
        self,
        users: Sequence[UserId],
        k: int | None = None,
        *,
        contexts: Sequence[Mapping[str, Any] | None] | None = None,
        deadline_ms: float | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Like `rank_many`, side by side and without blocking the event loop: retrievals overlap too."""
        self._release.retrieval.require()
        each, context = for_each_user(filters, users), context_for_each(contexts, len(users))

        return await rank_side_by_side(
            len(users),
            window(self.config, deadline_ms),
            lambda n, group: self._begin_own(
                users[n], context[n], deadline_ms, start=False, many=True, group=group
            ),
            lambda pending, n: self._retrieve_and_rank_async(pending, k, each[n]),
            return_exceptions=return_exceptions,
        )

    # -- generations ------------------------------------------------------------------------------

    def publish(
        self,
        bundle: Bundle,
        index: ItemIndex,
        behaviours: BehaviourTable,
        *,
        golden: Sequence[GoldenRequest] = (),
        least_overlap: float = 0.5,
        most_drift: float = math.inf,
        least_coverage: float = 0.0,
        coverage_within_s: float = 0.0,
        warm: int = 1000,
        warm_s: float = 10.0,
        progress: Progress | None = None,
    ) -> Publication:
        """Serve another bundle with its tables, without a request that fails, waits or mixes the two.

        The new generation is compiled, tried on the golden requests and given states of recent users while
        the running one serves. Then every request that begins gets the new one; those that were begun before
        end as they began. The generation that served before is kept for `rollback`, and the one before that
        is closed when its last request is over. Called from several threads, they take turns.

        Args:
            bundle: the model.
            index: item rows of the same version.
            behaviours: rows of the items in histories, of the same version.
            golden: requests that both generations rank beforehand.
            least_overlap: share of the best k of each that they must agree on.
            most_drift: how much the score of an item that both return may differ.
            least_coverage: share that each new table must have: the index of the items that can be ranked
                now, the behaviour table of the rows that are there now.
            coverage_within_s: seconds in which it must, for tables that are still being filled.
            warm: users, the latest first, whose states are computed ahead.
            warm_s: seconds after which that is broken off.
            progress: called after every program that was compiled.

        Raises:
            VersionMismatchError: a table was computed by another bundle version.
            PublishError: coverage is too small, the config's ``memory_budget_bytes`` leaves no room, or a
                golden request cannot be ranked or is out of bounds; nothing was changed.
            RequestError: a golden request or a bound is malformed.
            ConfigError: the engine's config does not fit the bundle.
            SchedulerError: the engine is closed.
        """
        check_bounds(least_overlap, most_drift)
        tables, covered = (bundle, index, behaviours), (least_coverage, coverage_within_s)
        return self._releases.publish(
            lambda: self._made(*tables, progress),
            Gates(*tables, self.config, self._held, covered),
            golden,
            (least_overlap, most_drift),
            (warm, warm_s),
        )

    def rollback(self) -> str:
        """Serve the generation again that served before the last `publish`; return its version.

        It is ready, so this takes no time. Another rollback takes it back.

        Raises:
            PublishError: there is none.
            SchedulerError: the engine is closed.
        """
        return self._releases.rollback()

    def drop_previous(self) -> str | None:
        """Go without a rollback, for the memory: let go of the generation that served before.

        Returns:
            Its version; ``None`` if there was none.
        """
        return self._releases.drop_previous()

    def shadow(
        self,
        bundle: Bundle,
        index: ItemIndex,
        behaviours: BehaviourTable,
        *,
        share: float = 0.01,
        seed: int = 0,
        most_waiting: int = 64,
        least_coverage: float = 0.0,
        coverage_within_s: float = 0.0,
        progress: Progress | None = None,
    ) -> Shadow:
        """Rank a share of requests again with another bundle, in the background, and measure how it differs.

        Answers stay as they are, bit for bit. Requests that were ranked with everything (rung 0) are
        compared, however they came.

        Args:
            bundle: the model.
            index: item rows of the same version.
            behaviours: rows of the items in histories, of the same version.
            share: of these requests that is ranked again, from 0 to 1.
            seed: of the choice: the same for the n-th such request in every run.
            most_waiting: requests that may wait for it, with copies of their candidates; others are dropped,
                and counted.
            least_coverage: see `publish`.
            coverage_within_s: see `publish`.
            progress: called after every program that was compiled.

        Returns:
            A handle to read (`Shadow.stats`) and stop; use it as a context manager. `close` stops it too.

        Raises:
            AifError: see `publish`.
        """
        config = ShadowConfig(share, seed, most_waiting)
        tables, covered = (bundle, index, behaviours), (least_coverage, coverage_within_s)
        gates = Gates(*tables, self.config, self._held, covered, user_states=False)
        with self._releases.prepared(gates) as coverage:
            generation = Generation(*tables, self.config)
            generation.warm(progress)
            return self._shadows.start(generation, config, coverage)

    def _held(self) -> dict[str, Needs]:
        """Return what generations need that are not closed yet, by name."""
        return {**self._releases.held(), **self._shadows.held()}

    def _made(
        self, bundle: Bundle, index: ItemIndex, behaviours: BehaviourTable, progress: Progress | None
    ) -> Release:
        tables = (bundle, index, behaviours)
        return Release(*tables, self._sources, self.config, self._loop, self.tasks.submit, progress)

    def invalidate(self, users: UserId | Iterable[UserId]) -> int:
        """Drop the cached states of users of whom more has changed than the revision of their record shows.

        Whatever is begun after this returns is ranked by a record that was fetched after it was called.

        Args:
            users: a user, or several.

        Returns:
            The number of states dropped.
        """
        alone = isinstance(users, (int, str, np.integer))
        return self._releases.invalidate([users] if alone else list(users))

    # -- life -------------------------------------------------------------------------------------

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves."""
        return self._release.generation.bundle

    @property
    def version(self) -> str:
        """Version of the bundle that serves."""
        return self._release.version

    @property
    def closed(self) -> bool:
        """Whether the engine was closed: it takes no more requests."""
        return self._closed

    def stats(self) -> dict[str, Any]:
        """Return counters and sizes.

        ``requests`` counts begun, ranked, expired, abandoned and failed ones and everything left out of
        rankings; ``user_batched`` those whose user state was computed in one call with others. Abandoned are
        those that their caller gave up: a cancelled handle or coroutine, an interrupt from the keyboard, and
        what `rank_many` had begun when an error ended it.
        ``compilations`` counts programs compiled in this process since the engine was made, other than by
        `publish`: 0, unless something else compiles. ``compilation_cache`` tells what the bundle's cache did
        (`CacheCounts`) and where it is; empty without one. ``generations`` counts publishes and rollbacks,
        and says what a rollback would go to and how many requests of that are open. ``memory`` tells the
        bytes of each generation by part (`aif_jax.serving.memory`), and of all together, where what they
        share counts once; ``shadows`` what those that run found (`Shadow.stats`). ``programs`` counts, over
        the whole life of the process and for all bundles, how many were compiled and how many were loaded
        from a cache instead.
        """
        self._handles.expire()
        release, cache = self._release, self.bundle.compilation_cache
        return {
            "version": release.version,
            "generations": self._releases.stats(),
            "memory": as_stats(self._held(), self.config.memory_budget_bytes),
            "shadows": self._shadows.stats(),
            "requests": self.counts.as_dict(),
            "open_handles": len(self._handles),
            "compilations": self._releases.compilations,
            "programs": {"compiled": compilations(), "loaded": loads()},
            "compilation_cache": {} if cache is None else cache.stats(),
            "user_states": release.states.stats(),
            "missing_items": {} if release.missing is None else release.missing.stats(),
            "item_index": release.generation.index.stats(),
            "behaviour_table": release.generation.behaviours.stats(),
            "scheduler": self._scheduler.stats(),
            "ladder": release.rungs.ladder.stats(),
            "admission": self.admission.stats(),
            "observer_errors": self.watch.stats(),
        }

    def close(self) -> None:
        """Drop what waits, finish what runs, and stop the threads.

        Raises:
            SchedulerError: called by a ``retrieve`` or a user source in one of the engine's own threads, for
                whose end it would wait; nothing was changed.
        """
        if self._closed:
            return
        if self._loop.runs_here() or self.tasks.runs_here():
            raise SchedulerError(
                "close: called inside a retrieve or a user source that the engine runs in a thread of its "
                "own, so it would wait for itself; close the engine where it was made, when its requests are "
                "done."
            )
        self._closed = self.tasks.closed = True
        self._shadows.close()
        self._handles.end_all("the engine was closed")
        self._scheduler.shutdown(wait=True)
        self._loop.close()
        self._releases.close()
        self.watch.closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- for handles ------------------------------------------------------------------------------

    def choose(self, pending: Pending, asked: Asked) -> Chosen:
        """Check and filter candidates as far as that needs no user side, and have missing rows computed."""
        missing = None if pending.shed else pending.release.missing
        return choose(asked, pending, self.config.unknown_columns, missing)

    def finish(
        self,
        pending: Pending,
        side: UserSide,
        asked: Asked,
        chosen: Chosen | None = None,
        choice: Choice | None = None,
    ) -> Ranking:
        """Score candidates for a user side, or what stands in for it; see `aif_jax.serving.finishing`."""
        ranking = finish(pending, side, asked, chosen, choice, self.choose)
        if not ranking.report.rung:
            self._shadows.offer(pending, asked, ranking)
        return ranking

    def forget(self, pending: Pending) -> None:
        """Take a handle off the list of those that may expire."""
        self._handles.forget(pending)

    def abandon(self, pending: Pending) -> None:
        """Count a handle that its caller gave up, and forget it."""
        self.forget(pending)
        self.counts.add("abandoned")

    @property
    def _release(self) -> Release:
        return self._releases.current

    # -- inside -----------------------------------------------------------------------------------

    def _begin_own(
        self, user: UserId, context: Mapping[str, Any] | None, deadline_ms: float | None, **how: Any
    ) -> Pending:
        """Begin a request that the engine itself ranks or drops, however long ``retrieve`` takes."""
        pending = self._begin(user, context, deadline_ms, **how)
        pending.expires, pending.retrieval = False, "own"
        return pending

    def _retrieve_and_rank(self, pending: Pending, k: int | None, filters: Filters | None) -> Ranking:
        try:
            with pending.errors():
                request, start = self._request(pending, k, filters), partial(self._start, pending)
                ids, pair = pending.release.retrieval.now(pending, request, start)
                with BLAMING_RETRIEVAL:
                    return pending.rank_uncounted(ids, pair, k, filters)
        except BaseException:
            self._drop(pending)
            raise

    def _request(self, pending: Pending, k: int | None, filters: Filters | None) -> Request:
        k = pending.generation.sizes.k if k is None else k
        return Request(user=pending.user, context=pending.context, k=k, filters=filters)

    def _drop(self, pending: Pending) -> None:
        pending.end("its request failed or was abandoned")
        self.forget(pending)
