"""The engine: the public interface of serving. `aif_jax.serving.request` describes how a request runs."""

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple, Self, TypedDict, Unpack, overload

from aif_jax import processes
from aif_jax.aio import EventLoop
from aif_jax.bundle import Bundle, compilations, loads
from aif_jax.errors import SchedulerError
from aif_jax.features.copies import copied
from aif_jax.features.filters import Filters
from aif_jax.features.schema import check_request
from aif_jax.inputs import is_user_id, read_user_ids
from aif_jax.memory import Needs, memory_stats
from aif_jax.nearline import Tables
from aif_jax.nearline.tables import check_tables
from aif_jax.processes import OfOneProcess
from aif_jax.serving.admission import Admission
from aif_jax.serving.candidates import read_deadline
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.generation import Generation
from aif_jax.serving.many import Context, Window, for_each, own_context, rank_in_order, rank_side_by_side
from aif_jax.serving.observer import Observer, Observers
from aif_jax.serving.publish import Generations, GoldenRequest, PreChecks, Publication, PublishChecks
from aif_jax.serving.release import OpenRequests, Release, Sources
from aif_jax.serving.report import Ranking
from aif_jax.serving.request import Pending, Services
from aif_jax.serving.retrieval import Fallback
from aif_jax.serving.shadow import Shadow, ShadowConfig, Shadows
from aif_jax.serving.stage import Progress
from aif_jax.serving.tasks import Deadline, Lane, Workers
from aif_jax.serving.user_side import GroupMember
from aif_jax.types import ItemSource, Request, Retrieve, UserId, UserRecord, UserSource


class ManyArgs(TypedDict, total=False):
    """Arguments of `Engine.rank_many`, for type checkers."""

    k: int | None
    contexts: Sequence[Context | None] | None
    deadline_ms: float | None
    filters: Filters | Sequence[Filters | None] | None


class Engine(OfOneProcess, guards=("publish", "rollback", "drop_previous", "shadow", "invalidate", "stats")):
    """Ranks candidates for users with one bundle and the tables it computed. Safe to call from any thread.

    Everything is compiled while the engine is made; no request compiles anything. Close it, or use it as a
    context manager.

    >>> with Engine(bundle, tables, users=users) as engine:
    ...     pending = engine.begin("ann", {"hour": 20})  # the user side starts, and this returns at once
    ...     ranking = pending.rank(candidates, k=3)  # the rest is one compiled call
    >>> len(ranking), ranking.report.user_state
    (3, 'computed')

    Args:
        bundle: the model.
        tables: item rows and rows of the items in histories, of the same bundle version, from `build_tables`;
            may be written to while the engine runs.
        users: the user source: from a user id to a `UserRecord`, or ``None`` for an unknown user; a plain or
            coroutine function or a mapping. Its records are copied when they are fetched.
        retrieve: from a `Request` to item ids or `Candidates`, plain or coroutine function; needed by
            `rank`, `rank_async` and `rank_many`, not by `begin`.
        fallback: candidates for when ``retrieve`` raises, is late or returns something else: ids,
            `Candidates`, or a plain and quick function from a `Request` to either. With it, a plain
            ``retrieve`` of a request with a deadline runs in a thread, so that it can be given up.
        items: the item source, for ``missing_items="compute"``: from ids that have no row to `ItemRecords` of
            those that it knows.
        config: settings.
        observers: notified of how each request ended, see `aif_jax.observe`.
        progress: called after every program that was compiled.

    Raises:
        VersionMismatchError: a table was computed by another bundle version.
        ConfigError: the config does not fit the bundle, ``items`` not the config, or an argument is of
            another kind.
        ProcessError: bundle or tables were made before this process was forked, or gevent is in the way.

    Attributes:
        config: settings.
        hooks: for tests.
    """

    unpickled = "make one in each process: Engine(Bundle.load(path), tables, ...)."

    def __init__(
        self,
        bundle: Bundle,
        tables: Tables,
        *,
        users: UserSource | Callable[[Any], Any] | Mapping[UserId, UserRecord],
        retrieve: Retrieve | Callable[[Request], Any] | None = None,
        fallback: Fallback = None,
        items: ItemSource | Callable[[Any], Any] | None = None,
        config: EngineConfig | None = None,
        observers: Sequence[Observer] = (),
        progress: Progress | None = None,
    ):
        super().__init__()
        processes.check_threads()
        check_tables(bundle, tables)
        self.config = config or EngineConfig()
        self.config.check_items(items)
        self._observers = Observers(observers)
        self._loop = EventLoop()
        self._workers = Workers(self.config.threads)
        try:
            self._sources = Sources.of(users, retrieve, fallback, items, self._workers.loop)
            self._generations = Generations(self._made(bundle, tables, progress))
        except BaseException:
            self._workers.close()
            raise
        self._services = Services(
            workers=self._workers,
            admission=Admission(self.config.threads.compute),
            observers=self._observers,
            open=OpenRequests(self.config.max_pending_age_s, self._observers),
            shadows=Shadows(),
        )
        self.hooks = Hooks(self._services, self._generations)
        self._closed = False
        try:
            self._observers.opened(self)
        except BaseException:
            self.close()
            raise

    # -- requests ---------------------------------------------------------------------------------

    def begin(
        self, user: UserId, context: Context | None = None, *, deadline_ms: float | None = None
    ) -> Pending:
        """Start the user side of a request and return at once.

        Retrieve meanwhile, then call `Pending.rank` on the handle.

        >>> pending = engine.begin("ann", {"hour": 20}, deadline_ms=60_000)
        >>> len(pending.rank(candidates, k=3))
        3

        Args:
            user: user to rank for.
            context: raw context features of the request; an absent one counts as missing.
            deadline_ms: milliseconds from now in which the ranking is wanted. Parts that are predicted to be
                late are left out, see `EngineConfig.on_deadline`, and after it no real-time stage is started.

        Raises:
            RequestError: ``context`` is not a mapping, names an unknown feature, or the deadline is not
                positive or beyond 1e9 milliseconds.
            OverloadedError: too many requests are waiting, and there is no deadline for which to go without a
                user side; nothing was started.
            SchedulerError: the engine is closed.
        """
        pending = self._opened(user, context, deadline_ms)
        pending.begin(start=True)
        return pending

    def rank(
        self,
        user: UserId,
        context: Context | None = None,
        *,
        k: int | None = None,
        deadline_ms: float | None = None,
        filters: Filters | None = None,
    ) -> Ranking:
        """Begin, call the engine's own ``retrieve`` in this thread, and rank.

        >>> ranking = engine.rank("ann", {"hour": 20}, k=3, filters=Filters(exclude=candidates[:2]))
        >>> len(ranking), ranking.report.filtered
        (3, {'exclude': 2})

        Args:
            user: see `begin`.
            context: see `begin`.
            k: results wanted; ``None`` for the engine's default.
            deadline_ms: see `begin`.
            filters: candidates to leave out.

        Raises:
            RetrievalError: ``retrieve`` raised, or returned something that is not candidates, and there is no
                fallback.
            ConfigError: the engine was made without ``retrieve``.
            DeadlineExceededError: retrieval took too long, and there is no fallback.
            AifError: see `begin` and `Pending.rank`.
        """
        pending = self._opened(user, context, deadline_ms, own=True)
        pending.begin(start=False)
        return pending.retrieve_and_rank(k, filters)

    def rank_async(
        self,
        user: UserId,
        context: Context | None = None,
        *,
        k: int | None = None,
        deadline_ms: float | None = None,
        filters: Filters | None = None,
    ) -> Coroutine[Any, Any, Ranking]:
        """Rank like `rank`, without blocking the event loop: a plain ``retrieve`` runs in a thread.

        The context is copied when it is called.

        >>> len(asyncio.run(engine.rank_async("ann", k=3)))
        3
        """
        return self._ranked_later(user, own_context(context), k, deadline_ms, filters)

    async def _ranked_later(
        self, user: UserId, context: Any, k: int | None, deadline_ms: float | None, filters: Filters | None
    ) -> Ranking:
        pending = self._opened(user, context, deadline_ms, own=True)
        pending.begin(start=False)
        return await pending.retrieve_and_rank_async(k, filters)

    @overload
    def rank_many(
        self, users: Sequence[UserId], *, return_exceptions: Literal[False] = False, **given: Unpack[ManyArgs]
    ) -> list[Ranking]: ...

    @overload
    def rank_many(
        self, users: Sequence[UserId], *, return_exceptions: bool, **given: Unpack[ManyArgs]
    ) -> list[Ranking | BaseException]: ...

    def rank_many(
        self,
        users: Sequence[UserId],
        *,
        k: int | None = None,
        contexts: Sequence[Context | None] | None = None,
        deadline_ms: float | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Rank for several users, one after the other, while the user sides of the next ones run.

        Without a deadline, user sides are computed together, as many as ``EngineConfig.shapes.users`` allows,
        once the records of all of these are there.

        >>> [len(ranking) for ranking in engine.rank_many(["ann", "bob"], k=3)]
        [3, 3]

        Args:
            users: users to rank for.
            k: results wanted of each; ``None`` for the engine's default.
            contexts: raw context features, a mapping for each user.
            deadline_ms: milliseconds for each request, from the moment in which it is its turn to begin.
            filters: candidates to leave out: the same for all users, or a list of one for each.
            return_exceptions: whether an error takes the place of its user's ranking. Otherwise the first one
                ends all, and requests begun by then are abandoned.

        Returns:
            A `Ranking` for each user, or its error.

        Raises:
            AifError: see `rank`.
        """
        users, each, context = for_each(users, filters, contexts)
        return rank_in_order(
            len(users),
            Window.of(self.config, deadline_ms),
            lambda n, member: self._begun(users[n], context[n], deadline_ms, member, start=True),
            lambda pending, n: pending.retrieve_and_rank(k, each[n]),
            return_exceptions=return_exceptions,
        )

    @overload
    async def rank_many_async(
        self, users: Sequence[UserId], *, return_exceptions: Literal[False] = False, **given: Unpack[ManyArgs]
    ) -> list[Ranking]: ...

    @overload
    async def rank_many_async(
        self, users: Sequence[UserId], *, return_exceptions: bool, **given: Unpack[ManyArgs]
    ) -> list[Ranking | BaseException]: ...

    def rank_many_async(
        self,
        users: Sequence[UserId],
        *,
        k: int | None = None,
        contexts: Sequence[Context | None] | None = None,
        deadline_ms: float | None = None,
        filters: Filters | Sequence[Filters | None] | None = None,
        return_exceptions: bool = False,
    ) -> Coroutine[Any, Any, list[Any]]:
        """Rank like `rank_many`, side by side and without blocking the event loop: retrievals overlap too.

        The arguments are copied when it is called.

        >>> [len(ranking) for ranking in asyncio.run(engine.rank_many_async(["ann", "bob"], k=3))]
        [3, 3]
        """
        users, each, context = for_each(users, filters, contexts)
        return rank_side_by_side(
            len(users),
            Window.of(self.config, deadline_ms),
            lambda n, member: self._begun(users[n], context[n], deadline_ms, member, start=False),
            lambda pending, n: pending.retrieve_and_rank_async(k, each[n]),
            return_exceptions=return_exceptions,
        )

    # -- generations ------------------------------------------------------------------------------

    def publish(
        self,
        bundle: Bundle,
        tables: Tables,
        *,
        golden: Sequence[GoldenRequest] = (),
        checks: PublishChecks = PublishChecks(),  # noqa: B008, frozen
        warm: int = 1000,
        warm_s: float = 10.0,
        progress: Progress | None = None,
    ) -> Publication:
        """Serve another bundle with its tables, without a request that fails, waits or mixes the two.

        The new generation is compiled, tried on the golden requests and given states of recent users while
        the running one serves. Then every request that begins gets the new one; those that were begun before
        end as they began. The generation that served before is kept for `rollback`, and the one before that
        is closed when its last request is over. If the running version is published again, `rollback` goes
        on leading to another version, where there is one. Called from several threads, they take turns.

        >>> engine.publish(new_bundle, new_tables, checks=PublishChecks(min_coverage=0.99)).coverage.items
        1.0
        >>> engine.rollback() == bundle.version
        True

        Args:
            bundle: the model.
            tables: of the same version.
            golden: requests that both generations rank beforehand.
            checks: bounds that the new generation must meet.
            warm: users, the latest first, whose states are computed ahead.
            warm_s: seconds after which that is broken off.
            progress: called after every program that was compiled.

        Raises:
            VersionMismatchError: a table was computed by another bundle version.
            PublishError: coverage is too small, ``max_memory_bytes`` leaves no room, or a golden request
                cannot be ranked or is out of bounds; nothing was changed.
            RequestError: a golden request is malformed.
            ConfigError: the engine's config does not fit the bundle, or an argument is of another kind.
            SchedulerError: the engine is closed.
        """
        return self._generations.publish(
            lambda: self._made(bundle, tables, progress),
            bundle, tables, self.config, self._held, golden, checks, warm, warm_s,
        )  # fmt: skip

    def rollback(self) -> str:
        """Serve the generation again that served before the last `publish`; return its version.

        It is ready, so this takes no time. Another rollback takes it back.

        >>> engine.publish(new_bundle, new_tables).previous == engine.rollback()
        True

        Raises:
            PublishError: there is none.
            SchedulerError: the engine is closed.
        """
        return self._generations.rollback()

    def drop_previous(self) -> str | None:
        """Release the memory of the generation that served before; a rollback is not possible then.

        >>> engine.drop_previous() is None  # nothing was published
        True

        Returns:
            Its version; ``None`` if there was none.
        """
        return self._generations.drop_previous()

    def shadow(
        self,
        bundle: Bundle,
        tables: Tables,
        *,
        share: float = 0.01,
        seed: int = 0,
        max_waiting: int = 64,
        checks: PublishChecks = PublishChecks(),  # noqa: B008, frozen
        progress: Progress | None = None,
    ) -> Shadow:
        """Rank a share of requests again with another bundle, in the background, and measure how it differs.

        Answers stay as they are, bit for bit. Requests that were ranked with everything (rung 0) are
        compared, with candidates of the engine or the caller.

        >>> with engine.shadow(new_bundle, new_tables, share=1.0) as shadow:
        ...     ranking = engine.rank("ann")
        ...     shadow.stats()["sampled"]
        1

        Args:
            bundle: the model.
            tables: of the same version.
            share: of these requests that is ranked again, from 0 to 1.
            seed: of the choice: the same for the n-th such request in every run.
            max_waiting: requests that may wait for it, with copies of their candidates; others are dropped,
                and counted.
            checks: bounds of coverage; those of golden requests are not used.
            progress: called after every program that was compiled.

        Returns:
            A handle to read (`Shadow.stats`) and stop; use it as a context manager. `close` stops it too.

        Raises:
            RequestError: a share or number is out of its range.
            AifError: see `publish`.
        """
        config = ShadowConfig(share=share, seed=seed, max_waiting=max_waiting)
        prechecks = PreChecks(bundle, tables, self.config, self._held, checks, user_states=False)
        with self._generations.prepared(prechecks) as coverage:
            generation = Generation(bundle, tables, self.config)
            generation.warm(progress)
            return self._services.shadows.start(generation, config, coverage)

    def invalidate(self, users: UserId | Iterable[UserId]) -> int:
        """Drop the cached states of users of whom more has changed than the revision of their record shows.

        Requests that begin after this returns are ranked by a record that was fetched after it was called.

        >>> ranking = engine.rank("ann")
        >>> engine.invalidate("ann")
        1

        Args:
            users: a user, or several.

        Returns:
            The number of states dropped.
        """
        several: list[Any] = [users] if is_user_id(users) else read_user_ids(users)
        return self._generations.invalidate(several)

    # -- life -------------------------------------------------------------------------------------

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves."""
        return self._generations.current.generation.bundle

    @property
    def tables(self) -> Tables:
        """The tables that serve."""
        return self._generations.current.generation.tables

    @property
    def version(self) -> str:
        """Version of the bundle that serves."""
        return self._generations.current.version

    @property
    def closed(self) -> bool:
        """True if the engine was closed: it takes no more requests."""
        return self._closed

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._services.open)} open requests"
        bundle, items = self.bundle, self.tables.items
        about = "of another process" if self.forked else f"{len(items):,} items"
        return f"Engine(bundle {bundle.version[:12]}, {about}, {bundle.kind} programs, {state})"

    def stats(self) -> dict[str, Any]:
        """Return counters and sizes.

        >>> engine.stats()["version"] == bundle.version
        True

        ``requests`` counts begun, ranked, expired, abandoned and failed ones and everything left out of
        rankings; ``user_batched`` those whose user state was computed in one call with others. Abandoned are
        those that their caller gave up: a cancelled handle or coroutine, an interrupt from the keyboard, and
        requests that `rank_many` had begun when an error ended it.
        ``compilations`` counts programs compiled in this process since the engine was made, other than by
        `publish`: 0, unless something else compiles. ``compilation_cache`` holds the counters of the bundle's
        cache (`CacheCounts`) and its place; empty without one. ``generations`` counts publishes and
        rollbacks, and holds the version that a rollback goes to and the open requests of both. ``memory``
        holds the bytes of each generation by part (`aif_jax.memory`), and of all, shared parts once;
        ``shadows`` the findings of those that run (`Shadow.stats`). ``programs`` counts those compiled and
        those loaded from a cache, in the whole life of the process.
        """
        services, release = self._services, self._generations.current
        services.open.expire()
        cache = release.generation.bundle.compilation_cache
        return {
            "version": release.version,
            "generations": self._generations.stats(),
            "memory": memory_stats(self._held(), self.config.max_memory_bytes),
            "shadows": services.shadows.stats(),
            "requests": self._observers.counts(),
            "open_handles": len(services.open),
            "compilations": self._generations.compilations,
            "programs": {"compiled": compilations(), "loaded": loads()},
            "compilation_cache": {} if cache is None else cache.stats(),
            "user_states": release.user_states.stats(),
            "user_sides": release.user_sides.stats(),
            "missing_items": {} if release.missing is None else release.missing.stats(),
            "item_index": release.generation.tables.items.stats(),
            "behaviour_table": release.generation.tables.behaviours.stats(),
            "scheduler": self._workers.scheduler.stats(),
            "ladder": release.ladder.stats(),
            "admission": services.admission.stats(),
            "observer_errors": self._observers.errors(),
        }

    def close(self) -> None:
        """Drop queued work, finish running work, and stop the threads. In a forked child it does nothing.

        >>> engine = Engine(bundle, tables, users=users)
        >>> engine.close()
        >>> engine.closed
        True

        Raises:
            SchedulerError: called by a ``retrieve`` or a user source in one of the engine's own threads, for
                whose end it would wait; nothing was changed.
        """
        if self._closed or self.forked:
            return
        if self._loop.runs_here() or self._workers.runs_here():
            raise SchedulerError(
                "close: called inside a retrieve or a user source that the engine runs in a thread of its "
                "own, so it would wait for itself; close the engine where it was made, when its requests are "
                "done."
            )
        self._closed = self._workers.closed = True
        self._services.shadows.close()
        self._services.open.close()
        self._workers.close()
        self._loop.close()
        self._generations.close()
        self._observers.closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------------

    def _opened(
        self,
        user: UserId,
        context: Context | None,
        deadline_ms: float | None,
        *,
        own: bool = False,
        member: GroupMember | None = None,
    ) -> Pending:
        """Check the arguments of a request, and make it in the generation that serves."""
        if self._made_after != processes.forks:
            raise processes.of_another_process("Engine")
        began_s, wanted_ms = time.perf_counter(), None
        try:
            self._workers.check_outside()
            wanted_ms, release = read_deadline(deadline_ms), self._generations.current
            deadline = Deadline(wanted_ms, began_s)
            while self._closed or not release.enter():
                if self._closed:
                    raise SchedulerError("the engine is closed; make a new one.")
                release = self._generations.current  # it was retired since it was read
            try:
                if own and self._sources.retrieve is None:
                    release.retrieval.require()
                check_request(user, context, release.generation.bundle.schema)
                # Copied: it is read in another thread, later, and the caller may use the mapping again.
                given = copied(context) if context else {}
                return Pending(self._services, release, user, given, deadline, own=own, member=member)
            except BaseException:
                release.leave()
                raise
        except BaseException as error:
            self._observers.failed(error, user, self.version, wanted_ms, began_s)
            raise

    def _begun(
        self,
        user: UserId,
        context: Context | None,
        deadline_ms: float | None,
        member: GroupMember | None,
        *,
        start: bool,
    ) -> Pending:
        pending = self._opened(user, context, deadline_ms, own=True, member=member)
        pending.begin(start=start)
        return pending

    def _made(self, bundle: Bundle, tables: Tables, progress: Progress | None) -> Release:
        return Release(bundle, tables, self._sources, self.config, self._loop, progress)

    def _held(self) -> dict[str, Needs]:
        """Return the memory needs of the generations that are not closed yet, by name."""
        return {**self._generations.held(), **self._services.shadows.held()}


class Hooks(NamedTuple):
    """Parts of an engine for tests: to set latencies, to fill threads, to delay a step.

    Attributes:
        services: parts that requests call; ``services.around_scoring`` may be set.
        generations: ``generations.current`` is the running release.
    """

    services: Services
    generations: Generations

    def submit(self, lane: Lane, function: Callable[[], Any]) -> "Future[Any]":
        """Run a function in one of the engine's threads."""
        return self.services.workers.scheduler.submit(lane, function)
