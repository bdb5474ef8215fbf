"""Faults under load: every request ends, rightly or in an error that says so, and nothing is left over.

The scenarios, and what each allows, are those of `bench/faults.py`.
"""

import dataclasses

import pytest

from load import exit_in_flight, fault_run
from load.injection import Fault
from load.scenarios import scenarios
from load.service import Service, Truth, make_service
from workload import W, Workload

SMALL = Workload(
    items=1000, candidates=64, short_length=8, long_length=32, k=16,
    config=W.config.replace(
        width=16, hidden=32, head_layers=(16,), item_layers=(16,), content_width=16, value_width=16,
        bridges=4, short_length=8, long_length=32,
    ),
)  # fmt: skip

NAMES = (
    "nothing goes wrong", "retrieval raises", "retrieval hangs", "retrieval returns garbage",
    "retrieval returns duplicates and unknown items", "user source raises", "user source hangs",
    "user source returns garbage", "a worker panics", "deadlines of 1 ms",
    "more requests at once than may wait", "requests cancelled at random", "event loops closed midway",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return make_service(SMALL, tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def truth(service: Service) -> Truth:
    return Truth(service, "linear")


def test_every_scenario_is_tested(service: Service) -> None:
    assert tuple(scenario.name for scenario in scenarios(service)) == NAMES


# A plain retrieve may have returned a coroutine to a loop that was closed just then: Python says so of it.
@pytest.mark.filterwarnings("ignore:coroutine 'Injected._later' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_under_load(service: Service, truth: Truth, name: str) -> None:
    (scenario,) = (scenario for scenario in scenarios(service) if scenario.name == name)
    account = fault_run.run(service, truth, scenario, 120, threads=3)
    assert not account.wrong
    assert not account.unexpected
    assert (account.lost, account.left, account.healthy) == (0, (), True)
    assert account.requests == sum(account.rungs.values()) + sum(account.errors.values())
    # A scenario whose fault never happened would show nothing.
    if scenario.errors or scenario.answers:
        assert account.hit >= 2


def test_a_wrong_answer_would_be_found(service: Service, truth: Truth) -> None:
    """The check itself: an engine whose retrieval finds the candidates of another request."""
    (scenario,) = (
        s for s in scenarios(service) if s.name == "retrieval returns duplicates and unknown items"
    )
    swapped = dataclasses.replace(
        scenario,
        faults=lambda number: Fault(retrieve=lambda _: service.candidates(number + 1)),
    )
    account = fault_run.run(service, truth, swapped, 40, threads=3)
    assert len(account.wrong) == account.hit > 0
    assert not account.good


# Handles are begun in all of the ways.
@pytest.mark.parametrize("way", exit_in_flight.WAYS[1:3])
def test_the_interpreter_exits_with_requests_under_way(way: str) -> None:
    ended = exit_in_flight.leave(way)
    assert ended.clean, ended.told
    assert ended.seconds < exit_in_flight.ENDS_WITHIN_S
