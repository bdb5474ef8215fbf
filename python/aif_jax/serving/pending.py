"""A request under way: its user side runs while the caller retrieves."""

import asyncio
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aif_jax.errors import DeadlineExceededError, RequestError, SchedulerError
from aif_jax.features import EncodeReport
from aif_jax.serving.awaiting import SHUT_DOWN, result_of
from aif_jax.serving.candidates import Asked
from aif_jax.serving.filters import Filters
from aif_jax.serving.report import Ranking
from aif_jax.serving.stages import Generation
from aif_jax.serving.user_states import UserState
from aif_jax.types import UserId

if TYPE_CHECKING:
    from aif_jax.serving.engine import Engine


@dataclasses.dataclass(slots=True)
class UserSide:
    """The finished user side of one request; times on the clock of ``time.perf_counter``."""

    state: UserState
    context: Mapping[str, np.ndarray]
    encoding: EncodeReport
    unknown_user: bool
    fetch_began_s: float
    fetched_s: float
    finished_s: float


class Pending:
    """A handle from `Engine.begin`. The first `rank` uses it up, whatever comes of it; unused, it expires."""

    def __init__(
        self,
        engine: "Engine",
        generation: Generation,
        user: UserId,
        context: Mapping[str, Any],
        deadline_ms: float | None,
    ):
        self.user = user
        self.context = context
        self.deadline_ms = deadline_ms
        self.generation = generation
        self.began_s = time.perf_counter()
        self.step = "its user source has not started"
        """What the user side is doing, for the message of a deadline that passes meanwhile."""
        self.expires = True
        """Whether the engine may give it up because nobody ranks it."""
        self.dropped = False
        """Whether it was given up: nobody will ask for the user side."""
        self._engine = engine
        self._lock = threading.Lock()
        self._ended: str | None = None
        self._tasks: list[concurrent.futures.Future[Any]] = []
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
            DeadlineExceededError: the deadline passed before the real-time stage could start.
        """
        with self._engine.counts.errors():
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
        with self._engine.counts.errors():
            return await self.rank_uncounted_async(candidates, pair, k, filters)

    def cancel(self) -> None:
        """Give the request up; what has not started will not start. It is counted as abandoned."""
        if self.end("it was cancelled"):
            self._engine.abandon(self)

    # -- for the engine ---------------------------------------------------------------------------

    def rank_uncounted(
        self, candidates: Any, pair: Mapping[str, Any] | None, k: int | None, filters: Filters | None = None
    ) -> Ranking:
        """Rank for a caller that counts the errors itself, because it may call them by another name."""
        asked = Asked(candidates, pair, k, filters, time.perf_counter())
        self.claim()
        try:
            # Before the wait for the user side: by then it costs nothing more.
            chosen = self._engine.choose(self, asked)
            chosen.wait()
            ranking = self._engine.finish(self, self._wait(), asked, chosen)
        except BaseException:
            self._drop_tasks()
            raise
        self._engine.counts.ranking(ranking.report)
        return ranking

    async def rank_uncounted_async(
        self, candidates: Any, pair: Mapping[str, Any] | None, k: int | None, filters: Filters | None = None
    ) -> Ranking:
        """Like `rank_uncounted`, for coroutines."""
        asked = Asked(candidates, pair, k, filters, time.perf_counter())
        self.claim()
        submit, engine = self._engine.submit, self._engine
        try:
            chosen = None
            if engine.computes_missing:
                task = submit("compute", engine.choose, self, asked, name="candidates", pending=self)
                chosen = await result_of(task)
                await chosen.wait_async()
            side = await self._wait_async()
            finish = submit("compute", engine.finish, self, side, asked, chosen, name="stage", pending=self)
            ranking = await result_of(finish)
        except BaseException:
            self._drop_tasks()
            raise
        # Here and not where the stage runs: it may run to its end for a caller that was cancelled meanwhile.
        self._engine.counts.ranking(ranking.report)
        return ranking

    def track(self, task: concurrent.futures.Future[Any]) -> None:
        """Follow a task of the user side: if it is dropped or fails, so does the user side."""
        self._tasks.append(task)
        task.add_done_callback(self._task_done)

    def resolve(self, side: UserSide) -> None:
        """Hand in the finished user side."""
        self._side.set_result(side)

    def end(self, reason: str) -> bool:
        """Mark the handle as used up; return whether it was still open. Drops tasks that have not started."""
        with self._lock:
            if self._ended is not None:
                return False
            self._ended = reason
        self._drop_tasks()
        return True

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

    def _drop_tasks(self) -> None:
        """Keep from starting what has not started: nobody will ask for the user side."""
        self.dropped = True
        for task in self._tasks:
            task.cancel()

    def _task_done(self, task: concurrent.futures.Future[Any]) -> None:
        error: BaseException | None
        if task.cancelled() and not self.dropped:
            error = SchedulerError(SHUT_DOWN)
        elif task.cancelled():
            error = RequestError(f"this handle cannot be ranked: {self._ended}; begin a new request.")
        else:
            error = task.exception()
        if error is not None and not self._side.done():
            self._side.set_exception(error)

    def _wait(self) -> UserSide:
        remaining = self.remaining_ms()
        try:
            return self._side.result(None if remaining is None else max(0.0, remaining / 1e3))
        except TimeoutError:
            if self._side.done():
                # The source's own, or the user side was done between the timeout and here.
                return self._side.result()
            raise self._late() from None

    async def _wait_async(self) -> UserSide:
        remaining = self.remaining_ms()
        try:
            async with asyncio.timeout(None if remaining is None else max(0.0, remaining / 1e3)):
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
