"""The user side of a request: its record is fetched, its state looked up or computed, its context encoded."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from aif_jax.errors import RequestError, SchemaError, UnknownUserError
from aif_jax.features import EncodeReport
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.ladder import FULL, Choice
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
        self._users = users
        self._states = states
        self._config = config
        self._submit = submit

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
            record = self._users(pending.user)
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
        pending.track(
            self._submit(
                "compute",
                self._compute,
                pending,
                record,
                length,
                unknown,
                times,
                moment,
                name="user",
                pending=pending,
            )
        )

    def _compute(
        self,
        pending: "Pending",
        record: UserRecord,
        length: int,
        unknown: bool,
        times: tuple[float, float],
        moment: int,
    ) -> None:
        """In the compute lane: run the user program that will be in time, and keep a full result."""
        ladder, began_s = pending.rungs.ladder, time.perf_counter()
        choice = ladder.user_program(pending.remaining_ms(), length)
        if choice.rung:
            length = pending.generation.sizes.long_buckets[0]
        state = compute_state(pending.user, record, length, pending.generation, long=not choice.rung)
        encoding = state.encoding or EncodeReport()
        context = self._encode_context(pending, encoding)
        for leaf in state.leaves.values():
            leaf.block_until_ready()
        finished_s = time.perf_counter()
        ladder.record_user(length, (finished_s - began_s) * 1e3)
        if not unknown and not choice.rung:
            self._states.put(pending.user, record.revision, state, moment)
        pending.resolve(UserSide(state, context, encoding, unknown, *times, finished_s, choice))

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
