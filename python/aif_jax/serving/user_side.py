"""The user side of requests: records fetched, states looked up or computed, contexts encoded.

It runs while the caller retrieves. It takes values and gives its results to functions; it knows no request.

**Single flight.** Requests of one user at the same time share one run of the user program, if their records
have the same revision; each fetches its own record, so that a change counts from then on. A record without a
revision gets one of its content.

**Groups.** Requests that `Engine.rank_many` begins together have their states computed in one call, when the
records of all of them are there or never will be. A publish in between parts a group.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from aif_jax.aio import SHUT_DOWN
from aif_jax.errors import RequestError, SchedulerError, SchemaError, UnknownUserError
from aif_jax.features import EncodeReport, bucket_for
from aif_jax.features.copies import own_record
from aif_jax.features.records import fetch_record
from aif_jax.serving.generation import Generation
from aif_jax.serving.ladder import FULL, Choice, Ladder
from aif_jax.serving.report import Task
from aif_jax.serving.stage import Shared
from aif_jax.serving.tasks import Tasks
from aif_jax.serving.user_program import compute_states, long_bucket
from aif_jax.serving.user_states import UserState, UserStates
from aif_jax.types import UserId, UserRecord, UserSource

_NOTHING = UserRecord()


@dataclasses.dataclass(slots=True)
class UserSide:
    """Result of one user side, or its stand-in; times on the clock of ``time.perf_counter``."""

    state: UserState
    shared: Shared
    """State and context, laid out for the real-time stage."""
    encoding: EncodeReport
    unknown_user: bool
    fetch_began_s: float
    fetched_s: float
    finished_s: float
    choice: Choice = FULL
    joined: bool = False
    """True if its state was computed for another request."""
    batch: int = 0
    """Users whose states were computed in one call, its own included; 0 if it was not computed."""


@dataclasses.dataclass(slots=True, eq=False)
class UserWork:
    """One user side under way.

    Attributes:
        user: user to compute for.
        context: raw context features.
        tasks: run the steps.
        fetched: called with the record when the user source has answered.
        computed: called with the result.
        failed: called with the error in its place.
        member: its membership in a group, if it has one.
        sides: run it, once it was started.
        record, unknown: the user's record; whether the source did not know the user.
        length: history length of the user program.
        times: begin and end of the fetch, on the clock of ``time.perf_counter``.
        moment: `UserStates.moment` before the record was fetched.
        flight: the computation that others may join.
        submitted_s: time at which it was handed to the compute lane.
        dropped: whether nobody asks for the result any more.
        quiet: whether the end of a cancelled task is no failure.
        queued: tasks that may not have started.
    """

    user: UserId
    context: Mapping[str, Any]
    tasks: Tasks
    fetched: Callable[[UserRecord], None]
    computed: "Callable[[UserSide], None]"
    failed: Callable[[BaseException], None]
    member: "GroupMember | None" = None
    sides: "UserSides | None" = None
    record: UserRecord = _NOTHING
    length: int = 0
    unknown: bool = False
    times: tuple[float, float] = (0.0, 0.0)
    moment: int = 0
    flight: "Flight | None" = None
    submitted_s: float = 0.0
    dropped: bool = False
    quiet: bool = False
    queued: "list[Future[Any]]" = dataclasses.field(default_factory=list)

    def follow(self, task: "Future[Any]") -> None:
        """Watch a task: if it is dropped or fails, so does the user side."""
        self.queued.append(task)
        task.add_done_callback(self._step_ended)

    def cancel_queued(self) -> None:
        """Cancel the tasks that have not started: the request continues without them."""
        self.quiet = True
        for task in self.queued:
            task.cancel()

    def end(self, *, drop: bool) -> None:
        """Let go of the tasks; with ``drop``, stop after the one that runs: nobody asks for the result."""
        if drop:
            self.dropped = True
            self.cancel_queued()
        self.queued = []

    def _step_ended(self, task: "Future[Any]") -> None:
        error: BaseException | None
        if task.cancelled():
            if self.quiet:
                return
            error = SchedulerError(SHUT_DOWN)
        else:
            error = task.exception()
        if error is not None:
            self.failed(error)


class UserGroup:
    """Requests whose user programs start together. Safe to use from any thread.

    Args:
        size: number of its members.
    """

    def __init__(self, size: int):
        self._works: list[UserWork] = []
        self._awaited = size
        self._lock = threading.Lock()

    def add(self, work: UserWork) -> bool:
        """Take a user side in; return whether that was in time, before the programs were started."""
        with self._lock:
            if self._awaited <= 0:
                return False
            self._works.append(work)
            return True

    def one_less(self) -> None:
        """Wait for one member less; the last one starts the programs."""
        with self._lock:
            self._awaited -= 1
            last = not self._awaited
        if last:
            for sides in {work.sides for work in self._works}:
                assert sides is not None, "a work is added by the sides that run it"
                sides.start_together([work for work in self._works if work.sides is sides])


class GroupMember:
    """Membership of one request in a group."""

    __slots__ = ("_fetching", "group")

    def __init__(self, group: UserGroup):
        self.group = group
        self._fetching = False

    def fetches(self, task: "Future[Any]") -> None:
        """Have the group wait for the task that fetches the record."""
        self._fetching = True
        task.add_done_callback(lambda _: self.group.one_less())

    def left(self) -> None:
        """Note that the request ended or never began; a fetch under way is waited for all the same."""
        if not self._fetching:
            self.group.one_less()


@dataclasses.dataclass(slots=True, eq=False)
class Flight:
    """A user state that is being computed, and who else waits for it."""

    key: tuple[Any, ...]
    moment: int
    due_s: float
    state: UserState | None = None
    """The result, if it is as good as each of them would compute it."""
    waiting: list[Callable[[UserState | None], None]] = dataclasses.field(default_factory=list)


class SingleFlight:
    """The user states that are being computed, by user, revision and history length. Safe from any thread.

    A request joins another one's computation if the user was not invalidated since the other's record was
    fetched, and the other is not due later, since work is done in order of deadlines.

    Args:
        states: know which users were invalidated when.
    """

    def __init__(self, states: UserStates):
        self._states = states
        self._flights: dict[tuple[Any, ...], Flight] = {}
        self._lock = threading.Lock()
        self.shared = 0

    def __len__(self) -> int:
        return len(self._flights)

    def lead(self, work: UserWork, then: Callable[[UserState | None], None]) -> Flight | None:
        """Return a flight that the caller has to compute and `land`; or ``None``: then ``then`` is called.

        Args:
            work: the user side, its record fetched.
            then: called once, with the state that another one computed, or with ``None`` if that
                failed, in the thread in which the other's computation ends.
        """
        user, due_s = work.user, work.tasks.deadline.due_s
        # 5 and NumPy's 5 are one user, and "5" is another.
        kind = "text" if isinstance(user, str) else "number"
        key = (kind, str(user), repr(work.record.revision), work.length)
        with self._lock:
            other = self._flights.get(key)
            if other is None:
                flight = self._flights[key] = Flight(key, work.moment, due_s)
                return flight
            if other.due_s <= due_s and not self._states.invalidated_since(user, other.moment):
                other.waiting.append(then)
                self.shared += 1
                return None
            # On its own; whoever comes next may still join the other.
            return Flight(key, work.moment, due_s)

    def land(self, flight: Flight | None) -> None:
        """End a flight, with or without a state, and wake the user sides that wait for it."""
        if flight is None:
            return
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            waiting, flight.waiting = flight.waiting, []
        for then in waiting:
            then(flight.state)


def fetched(
    users: UserSource | Callable[[Any], UserRecord | None], user: UserId, generation: Generation
) -> UserRecord | None:
    """Return a copy of a user's record with a revision; ``None`` for an unknown user.

    Raises:
        UserSourceError: the source raised, or returned something else, or what cannot be copied.
    """
    record = fetch_record(users, user)
    names, longest = generation.bundle.schema.names("user"), generation.sizes.histories[-1]
    return None if record is None else own_record(user, record, names, longest)


class UserSides:
    """Runs the user sides of one generation's requests. Safe to use from any thread.

    Args:
        users: the user source.
        states: cached user states.
        generation: its programs and its tables are used.
        ladder: chooses the user program, and learns how long it takes.
    """

    def __init__(
        self,
        users: UserSource | Callable[[Any], UserRecord | None],
        states: UserStates,
        generation: Generation,
        ladder: Ladder,
    ):
        self.users = users
        self._states = states
        self._generation = generation
        self._ladder = ladder
        self._refuses_unknown = generation.config.unknown_user == "error"
        self._sizes = tuple(reversed(generation.sizes.users[1:]))
        self._flights = SingleFlight(states)

    def start(self, work: UserWork) -> None:
        """Start a user side; it runs without the caller and ends in a call of ``computed`` or ``failed``.

        Raises:
            OverloadedError: too many tasks are waiting; nothing was started.
            DeadlineExceededError: the deadline has passed.
        """
        work.sides = self
        fetch = work.tasks.submit("blocking", "user_fetch", self._fetch, work)
        if work.member is not None:
            work.member.fetches(fetch)
        work.follow(fetch)

    def start_together(self, works: Sequence[UserWork]) -> None:
        """Run the user programs of a group, in as few calls as pay."""
        led: list[UserWork] = []
        for work in works:
            try:
                # Not before: a request that joined would have waited for all records of the group.
                if not work.dropped and self._leads(work):
                    led.append(work)
            except Exception as error:
                work.failed(error)
        for length in sorted({work.length for work in led}):
            left = [work for work in led if work.length == length]
            while left:
                # A call takes as long as a full one: it must be more than half full.
                size = next((size for size in self._sizes if size < 2 * len(left)), 1)
                self._submit_group(left[:size])
                left = left[size:]

    def prior(self, state: UserState, context: Mapping[str, Any], began_s: float, choice: Choice) -> UserSide:
        """Return the stand-in for a user side: a user of whom nothing is known.

        Args:
            state: of that user.
            context: raw context features of the request.
            began_s: begin of the request.
            choice: the rung, and why.

        Raises:
            RequestError: the context is malformed.
        """
        encoding = EncodeReport()
        shared = self._shared(state, context, encoding)
        return UserSide(state, shared, encoding, False, began_s, began_s, began_s, choice)

    def stats(self) -> dict[str, int]:
        """Return the computations ``under_way``, and how many requests ``shared`` another one's so far."""
        return {"under_way": len(self._flights), "shared": self._flights.shared}

    # -- steps ------------------------------------------------------------------------------------

    def _fetch(self, work: UserWork) -> None:
        """In the blocking lane: fetch the record and look for a cached state, or go to the compute lane."""
        began_s, work.moment = time.perf_counter(), self._states.moment()
        record = fetched(self.users, work.user, self._generation)
        work.times = (began_s, time.perf_counter())
        if record is None:
            if self._refuses_unknown:
                raise UnknownUserError(
                    f"user {work.user!r}: the user source knows nothing of this user; check the id, or "
                    "configure unknown_user='default' to rank for a user of whom nothing is known."
                )
            work.unknown, record = True, UserRecord()
        if work.dropped:
            return
        work.record = record
        work.fetched(record)
        work.length = long_bucket(record, self._generation)
        state = None if work.unknown else self._states.get(work.user, record.revision, work.length)
        if state is not None:
            work.computed(self._side(work, state))
            return
        self._compute_or_join(work)

    def _compute_or_join(self, work: UserWork) -> None:
        """Run the user program, or wait for another request's of the same user."""
        if (work.member is not None and work.member.group.add(work)) or not self._leads(work):
            return
        try:
            work.submitted_s = time.perf_counter()
            task = work.tasks.submit("compute", "user", self._compute, work)
        except BaseException:
            self._flights.land(work.flight)
            raise
        # Called however it ends: done, failed, or dropped from the queue.
        task.add_done_callback(lambda _: self._flights.land(work.flight))
        work.follow(task)

    def _leads(self, work: UserWork) -> bool:
        """Return whether a state is to be computed; if not, the work continues with another request's."""
        if work.unknown:
            return True
        work.flight = self._flights.lead(work, lambda state: self._joined(work, state))
        return work.flight is not None

    def _joined(self, work: UserWork, state: UserState | None) -> None:
        """Go on with the state that another request computed; without one, have it computed."""
        if work.dropped:
            return
        try:
            if state is None:
                self._compute_or_join(work)
            else:
                work.computed(self._side(work, state, joined=True))
        except Exception as error:
            work.failed(error)

    def _submit_group(self, works: Sequence[UserWork]) -> None:
        def over(error: BaseException | None) -> None:
            for work in works:
                if error is not None:
                    work.failed(error)
                self._flights.land(work.flight)

        submitted_s = time.perf_counter()
        for work in works:
            work.submitted_s = submitted_s
        try:
            # None of them follows the task: one that is given up takes nothing from the others.
            task = works[0].tasks.submit("compute", "users", self._compute_group, works)
        except Exception as error:
            over(error)
            return
        task.add_done_callback(
            lambda task: over(SchedulerError(SHUT_DOWN) if task.cancelled() else task.exception())
        )

    def _compute(self, work: UserWork) -> None:
        """In the compute lane: run the user program that will be in time."""
        choice = self._ladder.user_program(work.tasks.deadline.left_ms(), work.length)
        if (error := self._run([work], choice).get(work)) is not None:
            raise error

    def _compute_group(self, works: Sequence[UserWork]) -> None:
        """In the compute lane: run the user program for a group."""
        for work, error in self._run(works, FULL).items():
            work.failed(error)

    def _run(self, works: Sequence[UserWork], choice: Choice) -> dict[UserWork, Exception]:
        """Compute states in one call and hand in the user sides; return the errors.

        The first work's task is the one that runs; those that were given up are left out.
        """
        began_s, own = time.perf_counter(), works[0]
        works = [work for work in works if not work.dropped]
        if not works:
            return {}
        generation = self._generation
        length = generation.sizes.histories[0] if choice.rung else works[0].length
        users = [(work.user, work.record) for work in works]
        before = [self._states.kept(work.user, length) for work in works] if generation.kept else None
        found = compute_states(users, length, generation, long=not choice.rung, kept=before)
        errors: dict[UserWork, Exception] = {}
        made: list[tuple[UserWork, UserSide]] = []
        for work, state in zip(works, found, strict=True):
            try:
                if isinstance(state, Exception):
                    raise state
                # While the program of a single user still runs.
                made.append((work, self._side(work, state, choice=choice)))
            except Exception as error:
                errors[work] = error
        for _, side in made:
            jax.block_until_ready(list(side.state.leaves.values()))
        finished_s = time.perf_counter()
        computed = sum(isinstance(state, UserState) for state in found)
        if made and not any(side.state.why == "extended" for _, side in made):
            size = bucket_for(computed, generation.sizes.users)
            self._ladder.record_user(length, (finished_s - began_s) * 1e3, size)
        for work, side in made:
            side.finished_s, side.batch = finished_s, computed
            if work is not own:
                thread = threading.get_native_id()
                work.tasks.note(Task("users", "compute", work.submitted_s, began_s, finished_s, thread))
            if work.flight is not None and not choice.rung:
                self._states.put(work.user, work.record.revision, side.state, work.moment)
                work.flight.state = side.state
            work.computed(side)
        return errors

    def _side(
        self, work: UserWork, state: UserState, *, choice: Choice = FULL, joined: bool = False
    ) -> UserSide:
        encoding = EncodeReport() if state.encoding is None else state.encoding.copy()
        shared = self._shared(state, work.context, encoding)
        return UserSide(
            state, shared, encoding, work.unknown, *work.times, time.perf_counter(), choice, joined
        )

    def _shared(self, state: UserState, context: Mapping[str, Any], report: EncodeReport) -> Shared:
        """Encode the context, and lay out what the candidates of the request share."""
        generation = self._generation
        try:
            encoded: dict[str, np.ndarray] = generation.bundle.schema.encode_one(
                "context", context, report=report
            )
        except SchemaError as error:
            raise RequestError(f"context: {error}") from error
        return generation.prepare(state.leaves, state.length, encoded)
