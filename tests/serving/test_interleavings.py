"""User sides in every order of the steps of a few requests and an invalidation, up to a bound."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from aif_jax.errors import AifError, OverloadedError
from aif_jax.serving import UserStateCache, user_side, user_states
from aif_jax.serving.generation import Generation
from aif_jax.serving.priors import Priors
from aif_jax.serving.tasks import Deadline, Tasks
from aif_jax.serving.user_side import GroupMember, SingleFlight, UserGroup, UserSide, UserSides, UserWork
from aif_jax.serving.user_states import UserStates
from aif_jax.types import UserRecord
from support.interleaving import Deadlock, Turns, explore
from support.served import ENGINE_CONFIG, ONE_SIZE, Served, World


class Counter:
    """Adds one without a lock, or with locks in an order of its own."""

    def __init__(self, *locks: Any):
        self.value, self.locks = 0, locks

    def add(self) -> None:
        value = self.value
        self.value = value + 1

    def add_locked(self, first: int) -> None:
        with (
            self.locks[first],
            self.locks[1 - first],
        ):
            self.value += 1


def test_explore_unlocked_counter_loses_an_addition() -> None:
    found = set[int]()

    def model(turns: Turns) -> None:
        counter = Counter()
        turns.run(counter.add, counter.add, watched=[Counter.add])
        found.add(counter.value)

    assert explore(model, preemptions=0) == 2
    assert found == {2}
    assert explore(model, preemptions=1) > 2
    assert found == {1, 2}


def test_explore_locks_taken_in_two_orders_are_a_deadlock() -> None:
    def model(turns: Turns) -> None:
        counter = Counter(turns.lock(), turns.lock())
        turns.run(lambda: counter.add_locked(0), lambda: counter.add_locked(1), watched=[Counter.add_locked])
        assert counter.value == 2

    with pytest.raises(Deadlock, match=r"\[0, 1\]"):
        explore(model, preemptions=1)


@pytest.fixture(scope="module")
def generation(one: Served) -> Generation:
    states = UserStateCache(max_bytes=2**18)
    made = Generation(*one, dataclasses.replace(ENGINE_CONFIG, shapes=ONE_SIZE, user_states=states))
    made.warm()
    return made


@dataclasses.dataclass(slots=True, eq=False)
class InThread(Tasks):
    """Runs tasks in the thread that submits them; one that ``ends`` otherwise does not run."""

    ends: str = "computed"

    def submit(self, lane: Any, name: str, function: Any, *arguments: Any, **_: Any) -> "Future[Any]":
        if self.ends == "refused":
            raise OverloadedError("too many tasks")
        task = Future[Any]()
        if self.ends == "dropped":
            task.cancel()
            return task
        try:
            task.set_result(function(*arguments))
        except Exception as error:
            task.set_exception(error)
        return task


class Requests:
    """User sides of one user, whose record changes without a new revision: its version is told by the number
    of its behaviours that no table knows."""

    def __init__(self, generation: Generation, priors: Priors, world: World):
        self.states, self._world = UserStates(generation), world
        self.sides = UserSides(self.record, self.states, generation, priors.ladder)
        self.version = self.invalidated = 0
        self.least = dict[int, int]()
        """The version that each request must see: of the last invalidation before it."""
        self.found = dict[int, list[int]]()
        self.failed = dict[int, list[BaseException]]()

    def record(self, _: Any) -> UserRecord:
        known = self._world.record(1, length=4)
        return dataclasses.replace(known, items=[*known.items[: 4 - self.version], *[1] * self.version])

    def request(self, number: int, ends: str = "computed", member: GroupMember | None = None) -> None:
        """Fetch, look up, and compute or join, as a task of the blocking lane does."""
        self.least[number] = self.invalidated
        found, failed = self.found.setdefault(number, []), self.failed.setdefault(number, [])

        def computed(side: UserSide) -> None:
            found.append(side.state.unknown_behaviours)

        tasks = InThread(None, 1, Deadline(None, 0.0), ends=ends)  # type: ignore[arg-type]
        work = UserWork(1, {}, tasks, lambda _: None, computed, failed.append, member, self.sides)
        try:
            self.sides._fetch(work)
        except AifError as error:
            failed.append(error)
        if member is not None:
            member.group.one_less()

    def invalidate(self) -> None:
        self.version = 1
        self.states.invalidate([1])
        self.invalidated = 1

    def check(self) -> None:
        """Check that each request has ended once, none with a state from before what it had to see."""
        for number, least in self.least.items():
            assert len(self.found[number]) + len(self.failed[number]) == 1, f"request {number} has not ended"
            assert all(version >= least for version in self.found[number]), f"request {number} is out of date"
        assert self.sides.stats()["under_way"] == 0
        kept = self.states.get(1, 0, 24)
        assert kept is None or kept.unknown_behaviours == self.invalidated == self.version


STEPS: tuple[Callable[..., Any], ...] = (
    UserSides._fetch, UserSides._compute_or_join, SingleFlight.lead, SingleFlight.land, UserStates.put,
    UserStates.invalidate, UserStates.invalidated_since, UserGroup.add, UserGroup.one_less, Requests.request,
    Requests.invalidate,
)  # fmt: skip


@dataclasses.dataclass
class Explorer:
    """Explores requests, each in a thread of its own."""

    generation: Generation
    world: World
    preemptions: int = 1
    shared: int = 0
    """Requests that joined another one's computation, in all orders together."""

    def explore(self, jobs: Callable[[Requests], list[Callable[[], None]]]) -> int:
        priors = Priors(self.generation)

        def model(turns: Turns) -> None:
            requests = Requests(self.generation, priors, self.world)
            turns.run(*jobs(requests), watched=STEPS)
            requests.check()
            self.shared += requests.sides.stats()["shared"]

        return explore(model, user_side, user_states, preemptions=self.preemptions)


THOROUGH = pytest.mark.thorough


@pytest.mark.parametrize("preemptions", [1, pytest.param(2, marks=THOROUGH)])
def test_user_side_request_beside_invalidation_leaves_no_old_state(
    generation: Generation, world: World, preemptions: int
) -> None:
    explorer = Explorer(generation, world, preemptions)
    assert explorer.explore(lambda requests: [lambda: requests.request(1), requests.invalidate]) > 50


@pytest.mark.parametrize(
    ("ends", "preemptions"),
    [("computed", 1), ("dropped", 1), ("refused", 1), pytest.param("computed", 2, marks=THOROUGH)],
)
def test_user_side_two_requests_in_any_order_both_end(
    generation: Generation, world: World, ends: str, preemptions: int
) -> None:
    explorer = Explorer(generation, world, preemptions)
    explorer.explore(lambda requests: [lambda: requests.request(1, ends), lambda: requests.request(2)])
    assert explorer.shared > 0


@pytest.mark.thorough
def test_user_side_requests_beside_invalidation_join_no_old_computation(
    generation: Generation, world: World
) -> None:
    explorer = Explorer(generation, world)
    explorer.explore(
        lambda requests: [lambda: requests.request(1), lambda: requests.request(2), requests.invalidate]
    )
    assert explorer.shared > 0


@pytest.mark.parametrize("ends", ["computed", "dropped"])
def test_user_group_members_in_any_order_start_once_or_alone(
    generation: Generation, world: World, ends: str
) -> None:
    def jobs(requests: Requests) -> list[Callable[[], None]]:
        group = UserGroup(3)
        members = [GroupMember(group) for _ in range(3)]
        return [
            lambda: requests.request(1, ends, members[0]),
            lambda: requests.request(2, "computed", members[1]),
            members[2].left,
        ]

    explorer = Explorer(generation, world)
    explorer.explore(jobs)
    assert explorer.shared > 0
