"""The three measurements, interleaved: each round takes every contender once, in an order drawn anew."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scheduler.contenders import Contender, Lane
from scheduler.work import Compute, Ran, Wait, answer_of


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    samples: int
    """Tasks for each contender and size, at idle."""
    small: int
    """Small tasks in one round of throughput."""
    rounds: int
    """Rounds of throughput."""
    seconds: float
    """Length of one round of the mix."""
    mixes: int
    """Rounds of the mix."""


@dataclass(frozen=True)
class Arrival:
    """One task of the mix."""

    at_s: float
    kind: str
    lane: Lane
    task: Compute | Wait
    deadline_s: float


@dataclass
class Outcome:
    """How one kind of task fared with one contender in the mix."""

    start_ms: list[float] = field(default_factory=list)
    """From the time at which a task was due to its start; infinite if it never started."""
    of_deadline: list[float] = field(default_factory=list)
    """From the time at which a task was due to its end, over what its deadline allows; infinite likewise."""
    late: int = 0
    """Tasks that ended after their deadline, or not at all."""
    never: int = 0
    """Tasks that were refused or dropped."""


def rotate(contenders: Sequence[Contender], rng: random.Random) -> list[Contender]:
    return rng.sample(list(contenders), len(contenders))


def idle(
    contenders: Sequence[Contender], task: Compute, samples: int, rng: random.Random
) -> dict[str, list[float]]:
    """Microseconds from submission to start, one task at a time, all threads asleep."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for sample in range(-20, samples):
        for contender in rotate(contenders, rng):
            # So that the threads have gone to sleep, and not always at the same phase of anything.
            time.sleep(rng.uniform(0.5e-3, 1.5e-3))
            submitted, ran = contender.one("compute", task)
            if ran.answer != task.expected:
                raise AssertionError(f"{contender.name} gave a wrong answer")
            if sample >= 0:
                times[contender.name].append(1e6 * (ran.start_s - submitted))
    return times


def throughput(
    contenders: Sequence[Contender], small: int, rounds: int, rng: random.Random
) -> dict[str, list[float]]:
    """Small tasks per second, from the first submission to the last result."""
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    numbers = range(small)
    expected = [answer_of(number) for number in numbers]
    for this in range(-1, rounds):
        for contender in rotate(contenders, rng):
            start = time.perf_counter()
            answers = contender.many(numbers)
            took = time.perf_counter() - start
            if answers != expected:
                raise AssertionError(f"{contender.name} gave wrong answers")
            if this >= 0:
                rates[contender.name].append(small / took)
    return rates


def mixed_plan(compute: Compute, seconds: float, rng: random.Random) -> list[Arrival]:
    """Bursts of waiting tasks, as requests that fetch from several services make them, among computing tasks.

    Bursts of 12 come at 12 a second, computing tasks singly at 300 a second, both as Poisson processes. Half
    of the waiting tasks are due within 60 ms, the others within 300; computing ones within 10.
    """
    arrivals: list[Arrival] = []
    at = rng.expovariate(12)
    while at < seconds:
        for number in range(12):
            wait = Wait(rng.uniform(5e-3, 20e-3))
            deadline_s = 60e-3 if number % 2 else 300e-3
            arrivals.append(Arrival(at, f"wait {deadline_s * 1e3:.0f}", "blocking", wait, deadline_s))
        at += rng.expovariate(12)
    at = rng.expovariate(300)
    while at < seconds:
        arrivals.append(Arrival(at, "compute", "compute", compute, 10e-3))
        at += rng.expovariate(300)
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def mix(
    contenders: Sequence[Contender],
    compute: Compute,
    plan: Plan,
    rng: random.Random,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Outcome]]:
    """How the kinds of tasks fare, by contender and kind: every contender plays the same arrivals."""
    outcomes: dict[str, dict[str, Outcome]] = {contender.name: {} for contender in contenders}
    for this in range(plan.mixes):
        arrivals = mixed_plan(compute, plan.seconds, rng)
        for contender in rotate(contenders, rng):
            progress(f"mix, round {this + 1} of {plan.mixes}: {contender.name}")
            for arrival, ran in zip(arrivals, contender.play(arrivals), strict=True):
                note(outcomes[contender.name].setdefault(arrival.kind, Outcome()), arrival, ran)
    return outcomes


def note(outcome: Outcome, arrival: Arrival, ran: Ran | None) -> None:
    """Count one task of the mix."""
    if ran is None:
        outcome.start_ms.append(float("inf"))
        outcome.of_deadline.append(float("inf"))
        outcome.late += 1
        outcome.never += 1
        return
    if ran.answer != arrival.task.expected:
        raise AssertionError(f"wrong answer of a task of kind {arrival.kind}")
    outcome.start_ms.append(1e3 * (ran.start_s - arrival.at_s))
    share = (ran.end_s - arrival.at_s) / arrival.deadline_s
    outcome.of_deadline.append(share)
    outcome.late += share > 1
