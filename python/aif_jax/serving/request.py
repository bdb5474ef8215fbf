"""One request: the state machine from its begin to its ranking, and the handle that callers hold."""

import concurrent.futures
import contextlib
import dataclasses
import enum
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn

from aif_jax import processes
from aif_jax.aio import Waiter, result_of
from aif_jax.errors import DeadlineExceededError, OverloadedError, RequestError, UserSourceError
from aif_jax.features import EncodeReport, Filters
from aif_jax.features.copies import copied
from aif_jax.serving.account import Account, RankTimes, describe
from aif_jax.serving.admission import Admission, Ticket
from aif_jax.serving.candidates import ParsedCandidates, RankArgs, checked_k, encode, parse
from aif_jax.serving.ladder import Choice, Reason
from aif_jax.serving.missing_items import PendingRows
from aif_jax.serving.observer import Observers
from aif_jax.serving.release import OpenRequests, Release
from aif_jax.serving.report import Ranking, Retrieval, Served
from aif_jax.serving.retrieval import Found, Outcome, blamed
from aif_jax.serving.shadow import FinishedRequest, Shadows
from aif_jax.serving.tasks import Deadline, Tasks, Workers
from aif_jax.serving.user_side import GroupMember, UserSide, UserWork
from aif_jax.types import Request, UserId, UserRecord


class Phase(enum.Enum):
    """Progress of a request as a whole; see `Pending`."""

    OPEN = "open"
    RETRIEVING = "retrieving"
    RANKING = "ranking"
    OVER = "over"


class UserPhase(enum.Enum):
    """Progress of a request's user side; see `Pending`."""

    IDLE = "idle"
    FETCHING = "fetching"
    COMPUTING = "computing"
    READY = "ready"
    FAILED = "failed"
    SHED = "shed"
    DROPPED = "dropped"


_UNSETTLED = (UserPhase.IDLE, UserPhase.FETCHING, UserPhase.COMPUTING)
_UNRANKED = (Phase.OPEN, Phase.RETRIEVING)
_RANKED = "it was ranked already"
_SHED = Choice(3, "overloaded")


@dataclasses.dataclass(slots=True)
class Services:
    """The parts of an engine that its requests call.

    ``around_scoring`` is a test hook: called with the scoring step, in its thread, it returns its result.
    """

    workers: Workers
    admission: Admission
    observers: Observers
    open: OpenRequests
    shadows: Shadows
    around_scoring: Callable[[Callable[[], Ranking]], Ranking] | None = None
    made_after: int = dataclasses.field(default_factory=lambda: processes.forks)


class Pending:
    """A request under way, from `Engine.begin`: its user side runs while the caller retrieves.

    The first `rank` uses the handle up, whatever comes of it; unused, it expires.

    **States.** A request is in one `Phase` and its user side in one `UserPhase`. Only the methods of this
    class change them, under one lock, and nobody else writes a field of it.

    ============  ======================================================  ==================================
    phase         user side                                               left by
    ============  ======================================================  ==================================
    OPEN          FETCHING, COMPUTING, READY, FAILED, SHED (IDLE while    claim, cancel, expire, close
                  it begins)
    RETRIEVING    the same, IDLE until retrieval was handed over          claim, take over, cancel, close
    RANKING       FETCHING, COMPUTING, READY, FAILED, SHED, or DROPPED    the end of `rank`
                  if it goes on without
    OVER          READY, FAILED, SHED, DROPPED                            nothing
    ============  ======================================================  ==================================

    OPEN: the caller retrieves. RETRIEVING: the engine does; a thread of it may go on to rank, until the
    coroutine that waits for it takes over (to OPEN) because time is up.

    A user side goes IDLE -> FETCHING -> COMPUTING -> READY, without COMPUTING if its state is cached. It is
    FAILED when a step raises or is refused, SHED from the begin if an overloaded engine computes nothing for
    it, and DROPPED if the request ends or goes on without it: a result that comes then is of use to the
    user's next request only.

    Whoever moves the phase to OVER, and only they, let go of the engine: the release is left, the ticket of
    admission given back, queued tasks are cancelled if nobody asks for their result. Whoever moves the user
    side out of IDLE, FETCHING and COMPUTING settles it. So both happen once on every path.

    Made by `Engine`, which holds the release open for it; ``own`` says that the engine retrieves.
    """

    __slots__ = (
        "_group", "_lock", "_record", "_release", "_retrieval", "_retrieval_reason", "_served", "_services",
        "_settled", "_side", "_tasks", "_ticket", "_user_error", "_went_on", "_why_over", "_work",
        "context", "deadline", "phase", "user", "user_phase", "version",
    )  # fmt: skip

    def __init__(
        self,
        services: Services,
        release: Release,
        user: UserId,
        context: Mapping[str, Any],
        deadline: Deadline,
        *,
        own: bool = False,
        member: GroupMember | None = None,
    ):
        self.user = user
        self.context = context
        self.deadline = deadline
        self.version = release.version
        self._services = services
        self._release = release
        self._group = member
        self._tasks = Tasks(services.workers, user, deadline)
        self._lock = threading.Lock()
        self.phase = Phase.RETRIEVING if own else Phase.OPEN
        self.user_phase = UserPhase.IDLE
        # Why the handle cannot be ranked any more.
        self._why_over = ""
        # The user side under way, its result or the error in its place.
        self._work: UserWork | None = None
        self._side: UserSide | None = None
        self._user_error: BaseException | None = None
        # Resolved when the user side is settled; made by the one who waits, if there is anything to wait for.
        self._settled: concurrent.futures.Future[None] | None = None
        # Whether the request continued without its user side.
        self._went_on = False
        # The user's record, once the source has answered, for shadows.
        self._record: UserRecord | None = None
        # Inputs of the ranking, if an observer reads them, until it reached its caller.
        self._served: Served | None = None
        # The work owed to it, if it has a deadline and was let in.
        self._ticket: Ticket | None = None
        # Origin of the candidates, and why they are the fallback's.
        self._retrieval: Retrieval = "own" if own else "caller"
        self._retrieval_reason: str | None = None

    # -- for callers ------------------------------------------------------------------------------

    def __reduce__(self) -> NoReturn:
        raise processes.not_pickled(self, "pass on its user and its candidates.")

    def __repr__(self) -> str:
        left = self.deadline.left_ms()
        deadline = "" if left is None else f", {left:.1f} ms left"
        return f"Pending(user {self.user!r}, {self.phase.value}, user side {self.user_phase.value}{deadline})"

    def rank(
        self,
        candidates: Any,
        pair: Mapping[str, Any] | None = None,
        *,
        k: int | None = None,
        filters: Filters | None = None,
    ) -> Ranking:
        """Wait for the user side if need be, score the candidates and return the best.

        >>> ranking = engine.begin("ann").rank({"id": candidates, "bid": bids}, k=3)
        >>> ranking.ids.shape, sorted(ranking.heads)
        ((3,), ['ctr', 'cvr'])

        Args:
            candidates: item ids, ``[N]``, integers or strings, as array, list, series or Arrow array. Or a
                table with the ids in the column ``id`` (or ``item_id``) and a pair feature in every other: a
                mapping of columns, a NumPy structured array, a frame of pandas or polars, a table or record
                batch of Arrow.
            pair: raw pair features by name, each ``[N]``; an absent one counts as missing.
            k: results wanted; ``None`` for the engine's default.
            filters: candidates to leave out. If they leave none, the ranking is empty, and its report says
                why.

        Raises:
            RequestError: candidates, pair features, filters, context or ``k`` are malformed, or the handle is
                used up.
            UnknownUserError: the source does not know the user, under ``unknown_user="error"``.
            UnknownItemError: a candidate has no row, under ``missing_items="error"``.
            DeadlineExceededError: the deadline had passed already, or it passed and the engine's config, or
                a model that declares none, allows no lower rung.
        """
        try:
            self._services.workers.check_outside()
            args = RankArgs(candidates, pair, k, filters, time.perf_counter())
            self._claim()
            ranking = self._rank(args)
        except BaseException as error:
            self._report_failure(error)
            raise
        return self._deliver(ranking)

    def rank_async(
        self,
        candidates: Any,
        pair: Mapping[str, Any] | None = None,
        *,
        k: int | None = None,
        filters: Filters | None = None,
    ) -> Coroutine[Any, Any, Ranking]:
        """Rank like `rank`, without blocking the event loop: the stage runs in the engine's threads.

        Candidates and pair features are copied when it is called.

        >>> asyncio.run(engine.begin("ann").rank_async(candidates, k=3)).ids.shape
        (3,)

        Raises:
            RequestError: candidates or pair features cannot be copied; the handle is not used up.
        """
        return self._ranked_later(RankArgs(copied(candidates), copied(pair), k, filters, 0.0))

    async def _ranked_later(self, args: RankArgs) -> Ranking:
        try:
            args = args._replace(called_s=time.perf_counter())
            self._claim()
            ranking = await self._rank_async(args)
        except BaseException as error:
            self._report_failure(error)
            raise
        return self._deliver(ranking)

    def cancel(self) -> None:
        """Give the request up; queued work does not start. It is counted as abandoned.

        >>> pending = engine.begin("ann")
        >>> pending.cancel()
        >>> pending.phase
        <Phase.OVER: 'over'>

        Raises:
            ProcessError: the handle was made before this process was forked.
        """
        self._check_process()
        if self._end(_UNRANKED, "it was cancelled"):
            self._services.observers.count("abandoned")

    # -- for the engine ---------------------------------------------------------------------------

    def begin(self, *, start: bool) -> None:
        """Let the request in, and start its user side at once or leave that to `retrieve_and_rank`.

        Raises:
            OverloadedError: there is no room or no time for it, and no rung that needs less; it is over.
        """
        services = self._services
        services.observers.count("begun")
        try:
            services.open.add(self)
            if self.deadline.ms is not None:
                self._admit()
            if start:
                self._start()
        except BaseException as error:
            self._end(_UNRANKED, "it could not begin")
            self._report_failure(error)
            raise

    def retrieve_and_rank(self, k: int | None, filters: Filters | None) -> Ranking:
        """Call the engine's ``retrieve`` from this thread, and rank."""
        try:
            limit_ms = None if self.deadline.ms is None else self._retrieval_ms()
            outcome = self._release.retrieval.now(
                self._request(k, filters), limit_ms, self._submit_retrieval, self._start
            )
            args = self._retrieved(outcome, k, filters)
            self._claim()
            ranking = self._rank(args)
        except BaseException as error:
            raise self._own_failure(error) from error.__cause__
        return self._deliver(ranking)

    async def retrieve_and_rank_async(self, k: int | None, filters: Filters | None) -> Ranking:
        """Retrieve and rank without blocking the event loop: a plain ``retrieve`` runs in a thread."""
        retrieval = self._release.retrieval
        try:
            request = self._request(k, filters)
            ranking: Ranking | BaseException | None = None
            if retrieval.is_coroutine:
                outcome = await retrieval.in_loop(request, self._retrieval_ms(), self._start)
            else:
                outcome, ranking = await retrieval.in_thread(
                    request, self._retrieval_ms(), self._submit_retrieval, self._start,
                    lambda found: self._rank_here(found, k, filters), self._take_over,
                )  # fmt: skip
            if ranking is None:
                args = self._retrieved(outcome, k, filters)
                self._claim()
                ranking = await self._rank_async(args)
            elif isinstance(ranking, BaseException):
                raise ranking
        except BaseException as error:
            raise self._own_failure(error) from error.__cause__
        return self._deliver(ranking)

    def expire(self, age_s: float) -> bool:
        """End it because its caller did not rank it in time; return whether it was open."""
        if self._retrieval != "caller":  # the engine ends these itself, however long retrieval takes
            return False
        return self._end((Phase.OPEN,), f"it expired after {age_s:g} s without being ranked")

    def close(self) -> None:
        """End it because the engine closes, unless it is being ranked."""
        self._end(_UNRANKED, "the engine was closed")

    # -- transitions ------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let a request with a deadline in, or shed it: IDLE, SHED, or FAILED for the stage alone."""
        admission = self._services.admission
        admitted = admission.enter(self.deadline, self._release.ladder, self.user)
        with self._lock:
            over = self.phase is Phase.OVER
            if not over:
                self._ticket = admitted.ticket
                if admitted.level == "shed":
                    self.user_phase = UserPhase.SHED
        if over:  # closed meanwhile
            admission.done(admitted.ticket)
        elif admitted.level == "stage":
            self._user_failed(OverloadedError(f"user {self.user!r}: there is no time for its user side."))

    def _start(self) -> None:
        """Start the user side, once: IDLE -> FETCHING, or FAILED if it is refused and may be gone without."""
        with self._lock:
            if self.user_phase is not UserPhase.IDLE:
                return
            self.user_phase = UserPhase.FETCHING
            work = self._work = UserWork(
                self.user, self.context, self._tasks, self._user_fetched, self._user_computed,
                self._user_failed, self._group,
            )  # fmt: skip
        try:
            self._release.user_sides.start(work)
        except OverloadedError as error:
            if not self._release.ladder.degrades(self.deadline.ms):
                raise
            self._user_failed(error)

    def _user_fetched(self, record: UserRecord) -> None:
        """Take note of the user's record: FETCHING -> COMPUTING."""
        with self._lock:
            self._record = record
            if self.user_phase is UserPhase.FETCHING:
                self.user_phase = UserPhase.COMPUTING

    def _user_computed(self, side: UserSide) -> None:
        """Take the user side: FETCHING, COMPUTING -> READY."""
        self._services.admission.user_done(self._ticket)
        with self._lock:
            first = self.user_phase in _UNSETTLED
            if first:
                self.user_phase, self._side = UserPhase.READY, side
            late, waited = self._went_on and not first, self._settled
        if first and waited is not None:
            waited.set_result(None)
        elif late:
            self._services.observers.count("late_user_sides")

    def _user_failed(self, error: BaseException) -> None:
        """Take the error in the user side's place: IDLE, FETCHING, COMPUTING -> FAILED."""
        self._services.admission.user_done(self._ticket)
        with self._lock:
            first = self.user_phase in _UNSETTLED
            if first:
                self.user_phase, self._user_error = UserPhase.FAILED, error
            waited = self._settled
        if first and waited is not None:
            waited.set_result(None)

    def _go_on_without(self) -> bool:
        """Stop waiting for the user side: FETCHING, COMPUTING -> DROPPED; return whether it is not READY."""
        with self._lock:
            if self.user_phase is UserPhase.READY:
                return False
            self._went_on = True
            if self.user_phase in _UNSETTLED:
                self.user_phase = UserPhase.DROPPED
            work = self._work
        # Work that has not started by now would only be in the way of other requests.
        if work is not None:
            work.cancel_queued()
        self._services.admission.user_done(self._ticket)
        return True

    def _claim(self) -> None:
        """Use the handle up: OPEN, RETRIEVING -> RANKING.

        Raises:
            RequestError: it is used up already.
        """
        self._check_process()
        with self._lock:
            if self.phase not in _UNRANKED:
                why = self._why_over or _RANKED
                raise RequestError(f"this handle cannot be ranked: {why}; begin a new request.")
            self.phase = Phase.RANKING
        self._services.open.remove(self)

    def _check_process(self) -> None:
        if self._services.made_after != processes.forks:
            raise processes.of_another_process("Pending")

    def _take_over(self) -> bool:
        """Keep the thread that retrieves from ranking: RETRIEVING -> OPEN; return whether in time."""
        with self._lock:
            if self.phase is not Phase.RETRIEVING:
                return False
            self.phase = Phase.OPEN
        return True

    def _end(self, phases: tuple[Phase, ...], why: str, *, drop: bool = True) -> bool:
        """End the request if it is in one of these phases: -> OVER; return whether it was.

        Args:
            phases: phases to leave.
            why: reason for later calls.
            drop: whether nobody asks for the user side any more.
        """
        with self._lock:
            before = self.phase
            if before not in phases:
                return False
            self.phase, self._why_over = Phase.OVER, why
            if self.user_phase in _UNSETTLED:
                self.user_phase = UserPhase.DROPPED
            ticket, work, self._work = self._ticket, self._work, None  # no circle is left to collect
        if work is not None:
            work.end(drop=drop)
        if ticket is not None:
            self._services.admission.done(ticket)
        if before is not Phase.RANKING:
            self._services.open.remove(self)
        self._release.leave()
        return True

    # -- retrieval --------------------------------------------------------------------------------

    def _rank_here(
        self, found: Found, k: int | None, filters: Filters | None
    ) -> Ranking | BaseException | None:
        """Rank in the thread that retrieved, unless that would wait: it has other retrievals to do."""
        settled = self.user_phase in (UserPhase.READY, UserPhase.FAILED)
        waits = not settled or self._release.missing is not None
        if waits or not self._services.workers.has_idle("compute"):
            return None
        with self._lock:
            if self.phase is not Phase.RETRIEVING:
                return None
            self.phase = Phase.RANKING
        self._services.open.remove(self)
        try:
            return self._rank(RankArgs(*found, k, filters, time.perf_counter()))
        except BaseException as error:
            return error

    def _retrieved(self, outcome: Outcome, k: int | None, filters: Filters | None) -> RankArgs:
        found, reason = outcome
        if reason is not None:
            self._retrieval, self._retrieval_reason = "fallback", reason
        return RankArgs(found.ids, found.pair, k, filters, time.perf_counter())

    def _submit_retrieval(self, call: Callable[[], Any]) -> "concurrent.futures.Future[Any]":
        """Run ``retrieve`` in a thread; a request that may be degraded is taken on by a full queue too."""
        try:
            return self._tasks.submit("blocking", "retrieve", call)
        except OverloadedError as error:
            if not self._release.ladder.degrades(self.deadline.ms):
                raise
            task = self._tasks.submit("blocking", "retrieve", call, always=True)
            self._user_failed(error)
            return task

    def _retrieval_ms(self) -> float | None:
        """Return how long ``retrieve`` may take: the time that ranking a fallback takes is not its own."""
        left_ms = self.deadline.left_ms()
        if left_ms is None or not self._release.retrieval.has_fallback:
            return left_ms
        return self._release.ladder.retrieval_ms(left_ms)

    def _request(self, k: int | None, filters: Filters | None) -> Request:
        generation = self._release.generation
        k = generation.sizes.k if k is None else checked_k(k, generation.k_max)
        return Request(user=self.user, context=dict(self.context), k=k, filters=filters)

    # -- ranking ----------------------------------------------------------------------------------

    def _rank(self, args: RankArgs) -> Ranking:
        """Rank in this thread, in the seat of a compute thread: RANKING -> OVER."""
        drop = True
        try:
            with_deadline = self.deadline.ms is not None
            if with_deadline:
                self._check_in_time()
            # Before the wait for the user side: by then it costs nothing more.
            parsed, rows = self._parsed_with_rows(args)
            if rows is not None:
                rows.wait()
            if self.user_phase in _UNSETTLED:
                with contextlib.suppress(TimeoutError):
                    self._unsettled().result(self._wait_s(len(parsed.keys)) if with_deadline else None)
            side = self._user_side()
            choice = self._before_stage(side, len(parsed.keys)) if with_deadline else side.choice
            given = (side, args, parsed, rows)
            if choice.rung == 3:
                ranking = self._score(*given, choice)
            else:
                try:
                    ranking = self._tasks.run("compute", "stage", self._scoring(), *given)
                except (DeadlineExceededError, OverloadedError) as error:
                    ranking = self._score(*given, self._last_rung(error))
            drop = False
            return ranking
        finally:
            self._end((Phase.RANKING,), _RANKED, drop=drop)

    async def _rank_async(self, args: RankArgs) -> Ranking:
        """Rank like `_rank`, in the engine's threads; by the item prior in the caller's: that is quick."""
        drop = True
        try:
            if self.deadline.ms is not None:
                self._check_in_time()
            parsed, rows, n = None, None, args.size()
            if self._release.missing is not None and self.user_phase is not UserPhase.SHED:
                task = self._tasks.submit("compute", "candidates", self._parsed_with_rows, args)
                parsed, rows = await result_of(task)
                n = len(parsed.keys)
                if rows is not None:
                    await rows.wait_async()
            if self.user_phase in _UNSETTLED:
                with contextlib.suppress(TimeoutError):
                    await result_of(self._unsettled(), self._wait_s(n))
            side = self._user_side()
            choice = self._before_stage(side, n)
            given = (side, args, parsed, rows)
            if choice.rung == 3:
                ranking = self._score(*given, choice)
            else:
                try:
                    waiter = Waiter()
                    task = self._tasks.submit("compute", "stage", waiter.run, self._scoring(), *given)
                    ranking = await waiter.of(task)
                except (DeadlineExceededError, OverloadedError) as error:
                    ranking = self._score(*given, self._last_rung(error))
            drop = False
            return ranking
        finally:
            self._end((Phase.RANKING,), _RANKED, drop=drop)

    def _scoring(self) -> Callable[..., Ranking]:
        """Return the scoring step, within the test hook if there is one."""
        around = self._services.around_scoring
        return self._score if around is None else lambda *given: around(lambda: self._score(*given))

    def _check_in_time(self) -> None:
        """Refuse a request whose caller, or own retrieval, comes after its deadline."""
        left_ms = self.deadline.left_ms()
        # A retrieval that was given up in time is not to blame if we were woken late.
        if left_ms is None or left_ms > 0 or self._retrieval == "fallback":
            return
        if self.user_phase in _UNSETTLED or self.user_phase is UserPhase.SHED:
            raise self._late()
        error = self._user_error
        # Its own error comes first, but a queue that was full does not keep a request from an answer.
        if error is None or isinstance(error, OverloadedError):
            raise self._tasks.too_late("stage")
        raise error

    def _parsed(self, args: RankArgs) -> ParsedCandidates:
        generation = self._release.generation
        return parse(args, generation.bundle.schema, generation.config.unknown_columns)

    def _parsed_with_rows(self, args: RankArgs) -> tuple[ParsedCandidates, PendingRows | None]:
        """Return the candidates, and the item rows to wait for, if the engine has missing ones computed."""
        parsed, missing = self._parsed(args), self._release.missing
        if missing is None or self.user_phase is UserPhase.SHED or not len(parsed.keys):
            return parsed, None
        return parsed, missing.start(parsed.ids, parsed.keys, self._tasks)

    def _unsettled(self) -> "concurrent.futures.Future[None]":
        """Return a future that is done when the user side is settled."""
        with self._lock:
            if self._settled is None:
                self._settled = concurrent.futures.Future()
                self._settled.set_running_or_notify_cancel()  # asyncio cannot cancel a future that runs
                if self.user_phase not in _UNSETTLED:
                    self._settled.set_result(None)
            return self._settled

    def _wait_s(self, n: int) -> float | None:
        """Return how long the user side of a request of n candidates may be waited for."""
        wait_ms = self._release.ladder.wait_ms(self.deadline.left_ms(), n)
        return None if wait_ms is None else max(0.0, wait_ms / 1e3)

    def _user_side(self) -> UserSide:
        """Return the user side, or the stand-in for one that failed or is late; else raise the error."""
        phase = self.user_phase
        if phase is UserPhase.SHED:
            return self._prior(_SHED)
        if phase is not UserPhase.READY:
            error = self._user_error if phase is UserPhase.FAILED else self._late()
            assert error is not None, "it failed with one"
            reason = self._reason(error)
            if reason is None:
                raise error
            if self._go_on_without():
                return self._prior(Choice(self._release.ladder.without_user or 2, reason))
        assert self._side is not None, "it is ready"
        return self._side

    def _prior(self, choice: Choice) -> UserSide:
        release = self._release
        return release.user_sides.prior(
            release.priors.user_prior, self.context, self.deadline.began_s, choice
        )

    def _reason(self, error: BaseException) -> Reason | None:
        """Return why the request continues without its user side; ``None`` if it does not."""
        if self._release.ladder.without_user is None:
            return None
        if isinstance(error, UserSourceError):
            degrade = self._release.generation.config.on_user_source_error == "degrade"
            return "user source failed" if degrade else None
        if not self._release.ladder.degrades(self.deadline.ms):
            return None
        if isinstance(error, OverloadedError):
            return "overloaded"
        if not isinstance(error, DeadlineExceededError):
            return None
        return "user source late" if self._record is None else "user program late"

    def _late(self) -> DeadlineExceededError:
        """Return the error of a request whose user side was not there in time."""
        if self._record is not None:
            step = "its user side has not been computed"
        elif self.user_phase is UserPhase.FETCHING:
            step = "its user source has not answered"
        else:
            step = "its user source has not started"
        return DeadlineExceededError(
            f"user {self.user!r}: the deadline of {self.deadline.ms:g} ms passed and {step}; give the "
            "request more time, make the user source faster, or give the engine more threads."
        )

    def _before_stage(self, side: UserSide, n: int) -> Choice:
        """Return the rung before the stage is queued: the item prior if the queue would make it late."""
        left_ms, ladder = self.deadline.left_ms(), self._release.ladder
        if left_ms is None or side.choice.rung == 3:
            return side.choice
        choice = ladder.stage(side.choice, left_ms, n, side.state.length)
        if choice.rung == 3 or not (3 in ladder.rungs and ladder.degrades(left_ms)):
            return choice
        # Without a queue it is tried: without new measurements it would never run again.
        queue_ms, end_ms = self._tasks.predict_ms("compute", "stage")
        return Choice(3, "stage would not fit") if queue_ms > 0 and end_ms > left_ms else choice

    def _last_rung(self, error: DeadlineExceededError | OverloadedError) -> Choice:
        """Return the choice of the item prior because the stage was not run; raise the error without one."""
        ladder = self._release.ladder
        if 3 not in ladder.rungs or not ladder.degrades(self.deadline.ms):
            raise error
        return Choice(3, "overloaded" if isinstance(error, OverloadedError) else "stage would not fit")

    def _score(
        self,
        side: UserSide,
        args: RankArgs,
        parsed: ParsedCandidates | None,
        rows: PendingRows | None,
        choice: Choice | None = None,
    ) -> Ranking:
        """Score candidates for a user side, or its stand-in, on the rung that is in time.

        Args:
            side: the user side.
            args: arguments of `rank`.
            parsed: its candidates, if they were parsed before.
            rows: missing rows that were waited for.
            choice: the rung, if it is decided.

        Raises:
            RequestError: candidates, pair features, filters or ``k`` are malformed.
            UnknownItemError: a candidate has no row, under ``missing_items="error"``.
            DeadlineExceededError: the deadline has passed, and no lower rung is allowed.
        """
        ready_s, release = time.perf_counter(), self._release
        generation, ladder = release.generation, release.ladder
        bundle = generation.bundle
        k = generation.sizes.k if args.k is None else checked_k(args.k, generation.k_max)
        early = parsed is not None
        if parsed is None:
            parsed = self._parsed(args)
        encoding = EncodeReport()
        candidates = encode(
            parsed, generation.tables.items, bundle.schema, generation.raw_pair, encoding,
            drop_unknown=generation.missing_policy == "default",
        )  # fmt: skip
        n, length = len(candidates.keys), side.state.length
        if self.deadline.ms is not None:
            left_ms = self.deadline.left_ms()
            choice = choice or ladder.stage(side.choice, left_ms, n, length)
            if choice.rung < 3 and left_ms is not None and left_ms <= 0:
                raise self._tasks.too_late("stage")
        choice = choice or side.choice
        parsed_s = parsed.parsed_s if early else args.called_s
        times = RankTimes(args.called_s, parsed_s, ready_s, time.perf_counter())
        accounts: list[Account] = []

        def account() -> None:
            accounts.append(describe(
                next(self._services.observers.names), self.user, release.version, bundle.kind, self.deadline,
                self._retrieval, self._retrieval_reason, self._tasks.ran, side, parsed, rows, choice,
                encoding, k, times,
            ))  # fmt: skip

        if choice.rung == 3:
            scored = release.priors.by_item_prior(candidates, k)
        else:
            scored = generation.score(side.shared, candidates, k, account)
            ladder.record_finish(n, length, (time.perf_counter() - ready_s) * 1e3)
        if not accounts:
            account()
        facts = accounts[0].finish(scored)
        heads = dict(zip(bundle.spec.heads, scored.heads.T, strict=True))
        ranking = Ranking(candidates.ids[scored.order], scored.scores, heads, facts)
        if self._services.observers.want_served:
            record = None if facts.values["user_state"] == "prior" else self._record
            self._served = Served(record, self.context, parsed.ids, parsed.pair, parsed.rows)
        if not choice.rung and self._services.shadows.running:
            self._services.shadows.offer(
                FinishedRequest(self.user, self._record, self.context, args, k, release.version, ranking)
            )
        return ranking

    # -- the account ------------------------------------------------------------------------------

    def _deliver(self, ranking: Ranking) -> Ranking:
        """Return a ranking to whoever waits for it; learn and notify.

        Not in the stage's thread: that may run to its end for a caller that was cancelled meanwhile.
        """
        if self._ticket is not None:
            values = ranking.facts.values
            self._services.admission.learn(
                self._ticket, values["total_ms"], values["retrieval_ms"], values["rung"]
            )
        served, self._served = self._served, None
        self._services.observers.ranked(ranking, served)
        return ranking

    def _report_failure(self, error: BaseException) -> None:
        """Count an error that the request ended in, and notify."""
        self._services.observers.failed(
            error, self.user, self.version, self.deadline.ms, self.deadline.began_s, self._tasks.ran
        )

    def _own_failure(self, error: BaseException) -> BaseException:
        """End a request that the engine retrieved for; return its error, with the right one to blame."""
        blame = blamed(error)
        self._end(_UNRANKED, "its request failed or was abandoned")
        self._report_failure(blame)
        return blame
