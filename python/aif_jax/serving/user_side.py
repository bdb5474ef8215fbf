"""The user side of a request: its record is fetched, its state looked up or computed, its context encoded."""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import numpy as np

from aif_jax.errors import RequestError, SchedulerError, SchemaError, UnknownUserError
from aif_jax.features import EncodeReport, bucket_for
from aif_jax.serving.awaiting import SHUT_DOWN
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.ladder import FULL, Choice
from aif_jax.serving.report import Task
from aif_jax.serving.single_flight import SingleFlight
from aif_jax.serving.user_batches import UserBatches, UserWork
from aif_jax.serving.user_program import compute_states, long_bucket
from aif_jax.serving.user_states import UserState, UserStates
from aif_jax.serving.users import checked_record
from aif_jax.types import UserRecord, UserSource

if TYPE_CHECKING:
    from aif_jax.serving.pending import Pending

Lane = Literal["blocking", "compute"]


class Submit(Protocol):
    """Runs a function in one of the engine's threads, unless the request's deadline passes first."""

    def __call__(
        self, lane: Lane, function: Callable[..., Any], *arguments: Any, name: str, pending: "Pending"
    ) -> "Future[Any]":
        """Return the task's future."""
        ...


@dataclasses.dataclass(slots=True)
class UserSide:
    """The user side of one request, or what stands in for it; times on the clock of ``time.perf_counter``."""

    state: UserState
    context: Mapping[str, np.ndarray]
    encoding: EncodeReport
    unknown_user: bool
    fetch_began_s: float
    fetched_s: float
    finished_s: float
    choice: Choice = FULL
    joined: bool = False
    """Whether its state was computed for another request."""
    batch: int = 0
    """Users whose states were computed in one call, its own included; 0 if it was not computed."""


class UserSides:
    """Runs the user sides of an engine's requests. Safe to use from any thread.

    Args:
        users: the user source.
        states: cached user states.
        users_at_once: users that the user program is compiled for, from 1 on, ascending.
        config: settings of the engine.
        submit: runs a task of a request.
    """

    def __init__(
        self,
        users: UserSource | Callable[[Any], UserRecord | None],
        states: UserStates,
        users_at_once: Sequence[int],
        config: EngineConfig,
        submit: Submit,
    ):
        self.users = users
        self._states = states
        self._config = config
        self._submit = submit
        self._flights = SingleFlight(states)
        self._batches = UserBatches(users_at_once)

    def start(self, pending: "Pending") -> None:
        """Start the user side of a request, which goes on without the caller and ends in its handle.

        Raises:
            OverloadedError: too many tasks are waiting; nothing was started.
            DeadlineExceededError: the request's deadline has passed.
        """
        fetch = self._submit("blocking", self._fetch, pending, name="user_fetch", pending=pending)
        if pending.group is not None:
            pending.group.fetches(pending, fetch)
        pending.track(fetch)

    def start_together(self, works: Sequence[UserWork]) -> None:
        """Have the programs of a group's user sides run, in as few calls as pay."""
        led: list[UserWork] = []
        for work in works:
            try:
                # Not before: whoever joined would have waited for all records of the group.
                if not work.pending.dropped and self._leads(work):
                    led.append(work)
            except Exception as error:
                work.pending.fail(error)
        for length in sorted({work.length for work in led}):
            for part in self._batches.parts([work for work in led if work.length == length]):
                self._submit_group(part)

    def _submit_group(self, works: Sequence[UserWork]) -> None:
        def over(error: BaseException | None) -> None:
            for work in works:
                if error is not None:
                    work.pending.fail(error)
                self._land(work)

        submitted_s, first = time.perf_counter(), works[0].pending
        for work in works:
            work.submitted_s = submitted_s
        try:
            # None of them follows the task: one that is given up takes nothing from the others.
            task = self._submit("compute", self._compute_group, works, name="users", pending=first)
        except Exception as error:
            over(error)
            return
        task.add_done_callback(
            lambda task: over(SchedulerError(SHUT_DOWN) if task.cancelled() else task.exception())
        )

    def _fetch(self, pending: "Pending") -> None:
        """In the blocking lane: fetch the record, look for a cached state, else go on in the compute lane."""
        began_s, moment = time.perf_counter(), self._states.moment()
        pending.step = "its user source has not answered"
        try:
            record = self.users(pending.user)
            if record is not None:
                record = checked_record(pending.user, record)
        except Exception:
            pending.source_failed = True
            raise
        fetched_s = time.perf_counter()
        unknown = record is None
        if record is None:
            if self._config.unknown_user == "error":
                raise UnknownUserError(
                    f"user {pending.user!r}: the user source knows nothing of this user; check the id, or "
                    "configure "
                    "unknown_user='default' to rank for a user of whom nothing is known."
                )
            record = UserRecord()
        pending.record = record
        if pending.dropped:
            return
        pending.step = "its user side has not been computed"
        pending.late_because = "user program late"
        times = (began_s, fetched_s)
        length = long_bucket(record, pending.generation)
        state = None if unknown else self._states.get(pending.user, record.revision, length)
        if state is not None:
            encoding = EncodeReport()
            context = self._encode_context(pending, encoding)
            pending.resolve(UserSide(state, context, encoding, unknown, *times, time.perf_counter()))
            return
        self._compute_or_join(UserWork(pending, record, length, unknown, times, moment))

    def _compute_or_join(self, work: UserWork) -> None:
        """Have the user program run, or wait for another request's of the same user."""
        group = work.pending.group
        if (group is not None and group.add(work)) or not self._leads(work):
            return
        try:
            self._submit_program(work)
        except BaseException:
            self._land(work)
            raise

    def _leads(self, work: UserWork) -> bool:
        """Return whether a state is to be computed; if not, another request's will be gone on with."""
        if work.unknown:
            return True
        work.flight = self._flights.lead(
            work.pending,
            work.record.revision,
            work.length,
            work.moment,
            lambda state: self._go_on(work, state),
        )
        return work.flight is not None

    def _go_on(self, work: UserWork, state: UserState | None) -> None:
        """Go on with the state that another request computed; without one, have it computed."""
        pending = work.pending
        if pending.dropped:
            return
        try:
            if state is None:
                self._compute_or_join(work)
                return
            encoding = EncodeReport() if state.encoding is None else state.encoding.copy()
            context = self._encode_context(pending, encoding)
        except Exception as error:
            pending.fail(error)
            return
        finished_s = time.perf_counter()
        pending.resolve(UserSide(state, context, encoding, False, *work.times, finished_s, joined=True))

    def _submit_program(self, work: UserWork) -> None:
        pending = work.pending
        work.submitted_s = time.perf_counter()
        # The scheduler learns by name how long tasks take, and those of a batch take longer.
        name = "users" if pending.batched else "user"
        task = self._submit("compute", self._compute, work, name=name, pending=pending)
        self._batches.wait(work, task)
        # Called however it ends: done, failed, or dropped from the queue.
        task.add_done_callback(
            lambda task: None if task.cancelled() and pending.taken_along else self._land(work)
        )
        pending.track(task)

    def _land(self, work: UserWork) -> None:
        if work.flight is not None:
            self._flights.land(work.flight)

    def _compute(self, work: UserWork) -> None:
        """In the compute lane: run the user program that will be in time, for others too that wait for it."""
        ladder, began_s = work.pending.rungs.ladder, time.perf_counter()
        self._batches.starts(work)
        choice = ladder.user_program(work.pending.remaining_ms(), work.length)
        others = [] if choice.rung else self._batches.taken_along(work, ladder)
        try:
            errors = self._run([work, *others], work, choice, began_s)
        except BaseException as error:
            for other in others:
                other.pending.fail(error)
            raise
        finally:
            for other in others:
                self._land(other)
        own = errors.pop(work, None)
        for other, error in errors.items():
            other.pending.fail(error)
        if own is not None:
            raise own

    def _compute_group(self, works: Sequence[UserWork]) -> None:
        """In the compute lane: run the user program for a group."""
        for work, error in self._run(works, works[0], FULL, time.perf_counter()).items():
            work.pending.fail(error)

    def _run(
        self, works: Sequence[UserWork], own: UserWork, choice: Choice, began_s: float
    ) -> dict[UserWork, Exception]:
        """Compute states in one call and hand in the user sides.

        Args:
            works: whose states are wanted; those that were given up are left out.
            own: whose task this is, which is noted already.
            choice: the rung.
            began_s: when the task began.

        Returns:
            What went wrong.
        """
        works = [work for work in works if not work.pending.dropped]
        if not works:
            return {}
        generation, ladder = works[0].pending.generation, works[0].pending.rungs.ladder
        length = generation.sizes.long_buckets[0] if choice.rung else works[0].length
        users = [(work.pending.user, work.record) for work in works]
        found = compute_states(users, length, generation, long=not choice.rung)
        errors: dict[UserWork, Exception] = {}
        made: list[tuple[UserWork, UserSide]] = []
        for work, state in zip(works, found, strict=True):
            try:
                if isinstance(state, Exception):
                    raise state
                # While the program of a single user still runs.
                encoding = EncodeReport() if state.encoding is None else state.encoding.copy()
                context = self._encode_context(work.pending, encoding)
            except Exception as error:
                errors[work] = error
                continue
            made.append((work, UserSide(state, context, encoding, work.unknown, *work.times, 0.0, choice)))
        for _, side in made:
            jax.block_until_ready(list(side.state.leaves.values()))
        finished_s = time.perf_counter()
        computed = sum(isinstance(state, UserState) for state in found)
        if made:
            users = bucket_for(computed, generation.sizes.users)
            ladder.record_user(length, (finished_s - began_s) * 1e3, users, computed)
        for work, side in made:
            side.finished_s, side.batch = finished_s, computed
            if work is not own:
                thread = threading.get_native_id()
                work.pending.tasks.append(
                    Task("users", "compute", work.submitted_s, began_s, finished_s, thread)
                )
            if work.flight is not None and not choice.rung:
                self._states.put(work.pending.user, work.record.revision, side.state, work.moment)
                work.flight.state = side.state
            work.pending.resolve(side)
        return errors

    def prior(self, pending: "Pending", choice: Choice) -> UserSide:
        """Return what stands in for the user side of a request: a user of whom nothing is known.

        Raises:
            RequestError: the context is malformed.
        """
        encoding, began_s = EncodeReport(), pending.began_s
        context = self._encode_context(pending, encoding)
        state = pending.rungs.user_prior
        return UserSide(state, context, encoding, False, began_s, began_s, began_s, choice)

    def _encode_context(self, pending: "Pending", report: EncodeReport) -> dict[str, np.ndarray]:
        schema = pending.generation.bundle.schema
        try:
            return schema.encode_one("context", pending.context, report=report)
        except SchemaError as error:
            raise RequestError(f"context: {error}") from error
