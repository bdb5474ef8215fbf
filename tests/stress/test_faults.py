"""Faults under load: every request ends, rightly or in an error that says so, and nothing is left over.

A test run makes 120 requests of each scenario; `make stress` makes as many as ``AIF_FAULT_REQUESTS`` says.
"""

import dataclasses
import os

import pytest

from aif_jax.bundle import Bundle
from support.faults import exit_in_flight, run
from support.faults.injection import Fault
from support.faults.scenarios import scenarios
from support.faults.service import Service, Truth
from support.served import Served, World

REQUESTS = int(os.environ.get("AIF_FAULT_REQUESTS", "120"))

NAMES = (
    "nothing goes wrong", "retrieval raises", "retrieval hangs", "retrieval returns garbage",
    "retrieval returns duplicates and unknown items", "user source raises", "user source hangs",
    "user source returns garbage", "a worker panics", "deadlines of 1 ms",
    "more requests at once than may wait", "requests cancelled at random", "event loops closed midway",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(world: World, one: Served) -> Service:
    return Service(world, *one)


@pytest.fixture(scope="module")
def truth(service: Service) -> Truth:
    return Truth(service)


def test_scenarios_are_all_named_here(service: Service) -> None:
    assert tuple(scenario.name for scenario in scenarios(service)) == NAMES


# A plain retrieve may have returned a coroutine to a loop that was closed just then: Python warns of it.
@pytest.mark.filterwarnings("ignore:coroutine 'Injected._later' was never awaited:RuntimeWarning")
@pytest.mark.timeout(max(300, REQUESTS))
@pytest.mark.parametrize("name", NAMES)
def test_engine_under_load_accounts_for_every_request(service: Service, truth: Truth, name: str) -> None:
    (scenario,) = (scenario for scenario in scenarios(service) if scenario.name == name)
    account = run.run(service, truth, scenario, REQUESTS, threads=3)
    assert not account.wrong
    assert not account.unexpected
    assert (account.lost, account.left, account.healthy) == (0, (), True)
    assert account.requests == sum(account.rungs.values()) + sum(account.errors.values())
    # A scenario whose fault never happened would show nothing.
    if scenario.errors or scenario.answers:
        assert account.hit >= 2


def test_account_finds_a_wrong_answer(service: Service, truth: Truth) -> None:
    """The check itself: an engine whose retrieval finds the candidates of another request."""
    (scenario,) = (
        s for s in scenarios(service) if s.name == "retrieval returns duplicates and unknown items"
    )
    swapped = dataclasses.replace(
        scenario,
        faults=lambda number: Fault(retrieve=lambda _: service.candidates(number + 1)),
    )
    account = run.run(service, truth, swapped, 40, threads=3)
    assert len(account.wrong) == account.hit > 0
    assert not account.good


# Handles are begun in all of the ways.
@pytest.mark.thorough
@pytest.mark.parametrize("way", exit_in_flight.WAYS if REQUESTS > 120 else exit_in_flight.WAYS[1:3])
def test_interpreter_exits_cleanly_with_requests_under_way(way: str, bundle: Bundle) -> None:
    ended = exit_in_flight.leave(way, bundle.path)
    assert ended.clean, ended.output
    assert ended.seconds < exit_in_flight.ENDS_WITHIN_S
