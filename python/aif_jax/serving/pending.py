"""A request under way: its user side runs while the caller retrieves."""

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aif_jax.errors import DeadlineExceededError, OverloadedError, RequestError, SchedulerError
from aif_jax.serving.admission import Ticket
from aif_jax.serving.awaiting import SHUT_DOWN, TimeLimit, Waiter, result_of
from aif_jax.serving.candidates import Asked, Chosen
from aif_jax.serving.filters import Filters
from aif_jax.serving.ladder import Choice, Reason
from aif_jax.serving.release import Release
from aif_jax.serving.report import Ranking, Retrieval, Task
from aif_jax.serving.user_batches import UserGroup
from aif_jax.serving.user_side import UserSide
from aif_jax.types import UserId, UserRecord

if TYPE_CHECKING:
    from aif_jax.serving.engine import Engine

_TASKS = {
    "user_fetch": "the user source", "user": "the user program", "users": "the user program",
    "retrieve": "retrieve", "stage": "the real-time stage", "items": "the item source",
    "candidates": "the check of candidates",
}  # fmt: skip
"""What a request's tasks are in words, by the name that a trace shows."""

_SHED = Choice(3, "overloaded")


class Pending:
    """A handle from `Engine.begin`. The first `rank` uses it up, whatever comes of it; unused, it expires."""

    def __init__(
        self,
        engine: "Engine",
        release: Release,
        user: UserId,
        context: Mapping[str, Any],
        deadline_ms: float | None,
    ):
        self.user = user
        self.context = context
        self.deadline_ms = deadline_ms
        self.release = release
        self.generation = release.generation
        self.rungs = release.rungs
        self.began_s = time.perf_counter()
        self.step = "its user source has not started"
        """What the user side is doing, for the message of a deadline that passes meanwhile."""
        self.late_because: Reason = "user source late"
        """What the user side waits for, for the report of a request that goes on without it."""
        self.ticket: Ticket | None = None
        """What is owed to it, if it has a deadline and was let in."""
        self.shed = False
        """Whether an overloaded engine computes nothing for it: it is ranked by the item prior."""
        self.record: UserRecord | None = None
        """What the user source knows of the user, once it has answered."""
        self.source_failed = False
        """Whether the user source raised, or returned what is no record."""
        self.retrieval: Retrieval = "caller"
        """Where the candidates came from."""
        self.retrieval_reason: str | None = None
        """Why they are the engine's fallback, if they are."""
        self.taken_on = False
        """Whether a first step of it was queued."""
        self.started = False
        """Whether its user side was started."""
        self.batched = release.generation.config.user_batching == "all"
        """Whether its user side may share a call with others."""
        self.taken_along = False
        """Whether another one's task computes its user side, so that its own does not run."""
        self.group: UserGroup | None = None
        """Requests with which it was begun, whose user sides are computed together."""
        self.expires = True
        """Whether the engine may give it up because nobody ranks it."""
        self.dropped = False
        """Whether it was given up: nobody will ask for the user side."""
        self.tasks: list[Task] = []
        """What the scheduler ran for it."""
        self._engine = engine
        self._lock = threading.Lock()
        self._ended: str | None = None
        self._gone_on = False
        self._settled = False
        self._steps: list[concurrent.futures.Future[Any]] = []
        self._side: concurrent.futures.Future[UserSide] = concurrent.futures.Future()
        # A future that runs cannot be cancelled, by asyncio for example: only the user side resolves it.
        self._side.set_running_or_notify_cancel()

    @property
    def version(self) -> str:
        """The bundle version that this request is pinned to."""
        return self.generation.version

    def remaining_ms(self) -> float | None:
        """Return the milliseconds until the deadline, negative after it; ``None`` without one."""
        if self.deadline_ms is None:
            return None
        return self.deadline_ms - (time.perf_counter() - self.began_s) * 1e3

    def rank(
        self,
        candidates: Any,
        pair: Mapping[str, Any] | None = None,
        k: int | None = None,
        *,
        filters: Filters | None = None,
    ) -> Ranking:
        """Wait for the user side if need be, score the candidates and return the best.

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
                a bundle whose item rows have no prior, allows no lower rung.
        """
        with self.errors():
            return self.rank_uncounted(candidates, pair, k, filters)

    async def rank_async(
        self,
        candidates: Any,
        pair: Mapping[str, Any] | None = None,
        k: int | None = None,
        *,
        filters: Filters | None = None,
    ) -> Ranking:
        """Like `rank`, without blocking the event loop: the stage runs in the engine's threads."""
        with self.errors():
            return await self.rank_uncounted_async(candidates, pair, k, filters)

    def cancel(self) -> None:
        """Give the request up; what has not started will not start. It is counted as abandoned."""
        if self.end("it was cancelled"):
            self._engine.abandon(self)

    # -- for the engine ---------------------------------------------------------------------------

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Count the errors that pass, and tell the engine's observers; not to be nested."""
        return self._engine.watch.errors(self.user, self.deadline_ms, self.began_s, self.tasks, self.version)

    def rank_uncounted(
        self, candidates: Any, pair: Mapping[str, Any] | None, k: int | None, filters: Filters | None = None
    ) -> Ranking:
        """Rank for a caller that counts the errors itself, because it may call them by another name."""
        return self.told(self._ranked(Asked(candidates, pair, k, filters, time.perf_counter())))

    def rank_here(
        self, candidates: Any, pair: Mapping[str, Any], k: int | None, filters: Filters | None
    ) -> tuple[Ranking | None, BaseException | None] | None:
        """Rank in the thread of retrieval if nothing is to be waited for, for `told` where the caller waits.

        Returns:
            The ranking, or the error in its place; ``None`` if the user side, missing rows or a seat in the
            compute lane would have to be waited for: that thread has other requests' retrievals to do.
        """
        engine = self._engine
        if not self._side.done() or self.release.missing is not None or not engine.tasks.has_idle("compute"):
            return None
        try:
            return self._ranked(Asked(candidates, pair, k, filters, time.perf_counter())), None
        except BaseException as error:
            return None, error

    def told(self, ranking: Ranking | None, error: BaseException | None = None) -> Ranking:
        """Return a ranking to whoever waits for it, or raise the error in its place; learn and tell of it.

        Not where the stage runs: it may run to its end for a caller that was cancelled meanwhile.
        """
        if ranking is None:
            assert error is not None, "one of them"
            raise error
        self._engine.admission.learn(self.ticket, ranking.report)
        self._engine.watch.ranked(ranking.report)
        return ranking

    def _ranked(self, asked: Asked) -> Ranking:
        self.claim()
        try:
            self._check_in_time()
            # Before the wait for the user side: by then it costs nothing more.
            chosen = self._engine.choose(self, asked)
            chosen.wait()
            return self._finish(self._waited(len(chosen.keys)), asked, chosen)
        except BaseException:
            self._drop_steps()
            raise
        finally:
            self.over()

    async def rank_uncounted_async(
        self, candidates: Any, pair: Mapping[str, Any] | None, k: int | None, filters: Filters | None = None
    ) -> Ranking:
        """Like `rank_uncounted`, for coroutines."""
        asked = Asked(candidates, pair, k, filters, time.perf_counter())
        self.claim()
        submit, engine = self._engine.tasks.submit, self._engine
        try:
            self._check_in_time()
            chosen = None
            if self.release.missing is not None and not self.shed:
                task = submit("compute", engine.choose, self, asked, name="candidates", pending=self)
                chosen = await result_of(task)
                await chosen.wait_async()
            side = await self._waited_async(asked.count() if chosen is None else len(chosen.keys))
            ranking = await self._finish_async(side, asked, chosen)
        except BaseException:
            self._drop_steps()
            raise
        finally:
            self.over()
        return self.told(ranking)

    def too_late(self, name: str) -> DeadlineExceededError:
        """Return the error of a request whose deadline passed before a task could start."""
        spent = (time.perf_counter() - self.began_s) * 1e3
        return DeadlineExceededError(
            f"user {self.user!r}: {spent:.1f} ms had passed of the deadline of {self.deadline_ms:g} ms "
            f"before {_TASKS[name]} could start; make retrieval or the user source faster, or give the "
            "request more time."
        )

    def track(self, task: concurrent.futures.Future[Any]) -> None:
        """Follow a task of the user side: if it is dropped or fails, so does the user side."""
        self._steps.append(task)
        task.add_done_callback(self._step_done)

    def resolve(self, side: UserSide) -> None:
        """Hand in the finished user side; late, it is of use to the user's next request only."""
        self._engine.admission.user_done(self.ticket)
        if not self._settles():
            return
        if self._gone_on:
            self._engine.counts.add("late_user_sides")
        self._side.set_result(side)

    def fail(self, error: BaseException) -> None:
        """Go without a user side, because of an error."""
        self._engine.admission.user_done(self.ticket)
        if self._settles():
            self._side.set_exception(error)

    def _settles(self) -> bool:
        """Return whether this is the first end of the user side; there is one, whoever comes with another."""
        with self._lock:
            first, self._settled = not self._settled, True
        return first

    def end(self, reason: str) -> bool:
        """Mark the handle as used up; return whether it was still open. Drops tasks that have not started."""
        with self._lock:
            if self._ended is not None:
                return False
            self._ended = reason
        self._drop_steps()
        self.over()
        return True

    def over(self) -> None:
        """Let go of what the engine holds for it: it was answered, or never will be."""
        self._engine.admission.done(self.ticket)
        self.release.leave()

    def claim(self) -> None:
        """Use the handle up.

        Raises:
            RequestError: it is used up already.
        """
        with self._lock:
            if self._ended is not None:
                raise RequestError(f"this handle cannot be ranked: {self._ended}; begin a new request.")
            self._ended = "it was ranked already"
        self._engine.forget(self)

    # -- inside -----------------------------------------------------------------------------------

    def _drop_steps(self) -> None:
        """Keep from starting what has not started: nobody will ask for the user side."""
        self.dropped = True
        for task in self._steps:
            task.cancel()

    def _step_done(self, task: concurrent.futures.Future[Any]) -> None:
        error: BaseException | None
        if task.cancelled() and (self._gone_on or self.taken_along):
            return
        if task.cancelled() and not self.dropped:
            error = SchedulerError(SHUT_DOWN)
        elif task.cancelled():
            error = RequestError(f"this handle cannot be ranked: {self._ended}; begin a new request.")
        else:
            error = task.exception()
        if error is not None:
            self.fail(error)

    def _waited(self, n: int) -> UserSide:
        """Wait for the user side as long as n candidates allow; return it, or what stands in for it."""
        if self.shed:
            return self.release.user_sides.prior(self, _SHED)
        try:
            if self._side.done():
                return self._side.result()
            return self._wait(self._patience_ms(n))
        except Exception as error:
            return self._instead(error)

    async def _waited_async(self, n: int) -> UserSide:
        if self.shed:
            return self.release.user_sides.prior(self, _SHED)
        try:
            if self._side.done():
                return self._side.result()
            return await self._wait_async(self._patience_ms(n))
        except Exception as error:
            return self._instead(error)

    def _finish(self, side: UserSide, asked: Asked, chosen: Chosen) -> Ranking:
        """Rank in a seat of the compute lane; by the item prior, if none is free in time."""
        engine = self._engine
        if side.choice.rung == 3:
            return engine.finish(self, side, asked, chosen)
        try:
            return engine.tasks.run(
                "compute", engine.finish, self, side, asked, chosen, name="stage", pending=self
            )
        except (DeadlineExceededError, OverloadedError) as error:
            return engine.finish(self, side, asked, chosen, self._last_rung(error))

    async def _finish_async(self, side: UserSide, asked: Asked, chosen: Chosen | None) -> Ranking:
        """Like `_finish`, in one of the engine's threads; by the item prior in the caller's: it is quick."""
        engine = self._engine
        if side.choice.rung == 3:
            return engine.finish(self, side, asked, chosen)
        try:
            waiter = Waiter()
            finish = engine.tasks.submit(
                "compute", waiter.run, engine.finish, self, side, asked, chosen, name="stage", pending=self
            )
            return await waiter.of(finish)
        except (DeadlineExceededError, OverloadedError) as error:
            return engine.finish(self, side, asked, chosen, self._last_rung(error))

    def _last_rung(self, error: DeadlineExceededError | OverloadedError) -> Choice:
        """Return the choice of the item prior because the stage was not run; raise the error without one."""
        if not self.rungs.ladder.item_prior or not self.rungs.ladder.degrades(self.deadline_ms):
            raise error
        return Choice(3, "overloaded" if isinstance(error, OverloadedError) else "stage would not fit")

    def _check_in_time(self) -> None:
        """Refuse a request whose caller, or own retrieval, comes after its deadline."""
        remaining = self.remaining_ms()
        # A retrieval that was given up in time is not to blame if we were woken late.
        if remaining is None or remaining > 0 or self.retrieval == "fallback":
            return
        if not self._side.done():
            raise self._late()
        error = self._side.exception()
        # Its own error comes first, but a queue that was full is none that keeps a request from an answer.
        if error is None or (isinstance(error, OverloadedError) and not self.source_failed):
            raise self.too_late("stage")
        raise error

    def _patience_ms(self, n: int) -> float | None:
        return self.rungs.ladder.wait_ms(self.remaining_ms(), n)

    def _instead(self, error: Exception) -> UserSide:
        """Return what the ladder has in place of a user side that failed or is late; else raise the error."""
        if (reason := self._reason(error)) is None:
            raise error
        with self._lock:
            self._gone_on = True
        # What has not started by now would only be in the way of other requests.
        for task in self._steps:
            task.cancel()
        self._engine.admission.user_done(self.ticket)
        return self.release.user_sides.prior(self, Choice(2, reason))

    def _reason(self, error: Exception) -> Reason | None:
        if self.source_failed:
            degrade = self._engine.config.user_source_failure == "degrade"
            return "user source failed" if degrade else None
        if not self.rungs.ladder.degrades(self.deadline_ms):
            return None
        if isinstance(error, OverloadedError):
            return "overloaded"
        return self.late_because if isinstance(error, DeadlineExceededError) else None

    def _wait(self, remaining: float | None) -> UserSide:
        try:
            return self._side.result(None if remaining is None else max(0.0, remaining / 1e3))
        except TimeoutError:
            if self._side.done():
                # The source's own, or the user side was done between the timeout and here.
                return self._side.result()
            raise self._late() from None

    async def _wait_async(self, remaining: float | None) -> UserSide:
        try:
            async with TimeLimit(None if remaining is None else max(0.0, remaining / 1e3)):
                return await result_of(self._side)
        except TimeoutError:
            if self._side.done():
                return self._side.result()
            raise self._late() from None

    def _late(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"user {self.user!r}: the deadline of {self.deadline_ms:g} ms passed and {self.step}; give the "
            "request "
            "more time, make the user source faster, or give the engine more threads."
        )
