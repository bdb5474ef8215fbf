"""The user side of a request: its record is fetched, its state looked up or computed, its context encoded."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from aif_jax.errors import RequestError, SchemaError, UnknownUserError
from aif_jax.features import EncodeReport
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.ladder import FULL, Choice
from aif_jax.serving.single_flight import Flight, SingleFlight
from aif_jax.serving.user_program import compute_state, long_bucket
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


class _Work(NamedTuple):
    """What is known of a user side once its record is there."""

    record: UserRecord
    length: int
    unknown: bool
    times: tuple[float, float]
    moment: int


class UserSides:
    """Runs the user sides of an engine's requests. Safe to use from any thread.

    Args:
        users: the user source.
        states: cached user states.
        config: settings of the engine.
        submit: runs a task of a request.
    """

    def __init__(
        self,
        users: UserSource | Callable[[Any], UserRecord | None],
        states: UserStates,
        config: EngineConfig,
        submit: Submit,
    ):
        self.users = users
        self._states = states
        self._config = config
        self._submit = submit
        self._flights = SingleFlight(states)

    def start(self, pending: "Pending") -> None:
        """Start the user side of a request, which goes on without the caller and ends in its handle.

        Raises:
            OverloadedError: too many tasks are waiting; nothing was started.
            DeadlineExceededError: the request's deadline has passed.
        """
        pending.track(self._submit("blocking", self._fetch, pending, name="user_fetch", pending=pending))

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
        self._compute_or_join(pending, _Work(record, length, unknown, times, moment))

    def _compute_or_join(self, pending: "Pending", work: "_Work") -> None:
        """Have the user program run, or wait for another request's of the same user."""
        if work.unknown:
            self._submit_program(pending, work, None)
            return
        flight = self._flights.lead(
            pending,
            work.record.revision,
            work.length,
            work.moment,
            lambda state: self._go_on(pending, work, state),
        )
        if flight is None:
            return
        try:
            task = self._submit_program(pending, work, flight)
        except BaseException:
            self._flights.land(flight)
            raise
        # Called however it ends: done, failed, or dropped from the queue.
        task.add_done_callback(lambda _: self._flights.land(flight))

    def _go_on(self, pending: "Pending", work: "_Work", state: UserState | None) -> None:
        """Go on with the state that another request computed; without one, have it computed."""
        if pending.dropped:
            return
        try:
            if state is None:
                self._compute_or_join(pending, work)
                return
            encoding = EncodeReport() if state.encoding is None else state.encoding.copy()
            context = self._encode_context(pending, encoding)
        except Exception as error:
            pending.fail(error)
            return
        finished_s = time.perf_counter()
        pending.resolve(UserSide(state, context, encoding, False, *work.times, finished_s, joined=True))

    def _submit_program(self, pending: "Pending", work: "_Work", flight: Flight | None) -> "Future[Any]":
        task = self._submit("compute", self._compute, pending, work, flight, name="user", pending=pending)
        pending.track(task)
        return task

    def _compute(self, pending: "Pending", work: "_Work", flight: Flight | None) -> None:
        """In the compute lane: run the user program that will be in time, and keep a full result."""
        ladder, began_s = pending.rungs.ladder, time.perf_counter()
        length = work.length
        choice = ladder.user_program(pending.remaining_ms(), length)
        if choice.rung:
            length = pending.generation.sizes.long_buckets[0]
        state = compute_state(pending.user, work.record, length, pending.generation, long=not choice.rung)
        encoding = EncodeReport() if state.encoding is None else state.encoding.copy()
        context = self._encode_context(pending, encoding)
        for leaf in state.leaves.values():
            leaf.block_until_ready()
        finished_s = time.perf_counter()
        ladder.record_user(length, (finished_s - began_s) * 1e3)
        if flight is not None and not choice.rung:
            self._states.put(pending.user, work.record.revision, state, work.moment)
            flight.state = state
        pending.resolve(UserSide(state, context, encoding, work.unknown, *work.times, finished_s, choice))

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
