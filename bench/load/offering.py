"""Saturation of each way of serving, and its latency and goodput below and beyond that."""

import asyncio
import dataclasses
import functools
import gc
import time
from collections.abc import Callable

import numpy as np

from aif_jax.serving import Threads
from load.arrivals import Load, Wrong, closed_loop, open_loop
from load.service import Service, Truth
from load.ways import Engined, Nothing, Overlapped, Sequential, Way, engine_config
from results import step
from stage.xla_simtier import ONE_CORE, WAYS
from stage.xla_simtier import Way as SimTierWay

SIMTIER = (ONE_CORE, "popcount, 8 behaviours at a time, all candidates")
"""Ways of SimTier in pure XLA that need the least work; the rivals get the one that serves most."""

UNLOADED_TIMES = 3.0
"""An answer is in time within this many times the way's own unloaded latency."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    retrieval_ms: float  # how long retrieval sleeps
    seconds: float  # of arrivals at each load
    shares: tuple[float, ...]  # loads, as shares of a way's own saturation, ascending
    rounds: int  # in which the ways take turns to saturate
    threads: tuple[int, ...]  # that the rivals may choose from
    callers: int = 24
    compute_threads: int | None = None  # the engine's; `None` as it comes


@dataclasses.dataclass(frozen=True)
class Checked:
    """A way, what checks its answers, and how it was set up."""

    way: Way
    wrong: Wrong
    setting: str


@dataclasses.dataclass(frozen=True)
class Curve:
    """One way from a tenth of its saturation to twice as much; shares are of its saturation."""

    way: str
    unloaded_ms: float
    deadline_ms: float
    loads: list[tuple[float, Load]]  # by share

    def most(self, of: Callable[[Load], float]) -> tuple[float, float]:
        """Return the best rate at any load, and the least share of it that is kept past saturation."""
        rates = [(share, of(load)) for share, load in self.loads]
        kept = [
            good / best
            for number, (share, good) in enumerate(rates)
            if share > 1 and (best := max(other for _, other in rates[: number + 1])) > 0
        ]
        return max(rate for _, rate in rates), min(kept, default=float("nan"))

    def within_deadline(self) -> float:
        """Return the most answers a second at which p99 stays within it and 99 % are answered in full."""
        kept = [
            load.throughput
            for _, load in self.loads
            if load.quantile(0.99) <= self.deadline_ms and load.rungs.get(0, 0) >= 0.99 * load.counted
        ]
        return max(kept, default=0.0)


Saturated = dict[str, tuple[np.ndarray, np.ndarray]]
"""By way, answers a second and core-milliseconds each, one a round."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Saturation and setting by way, curves, and the generator by itself."""

    saturation: Saturated
    settings: dict[str, str]
    curves: list[Curve]
    generator: Load


def measure(service: Service, plan: Plan) -> Found:
    """Measure the ways.

    Raises:
        AssertionError: an answer is wrong, or a request got neither answer nor error.
    """
    step("the right answers")
    linear, exact = Truth(service, "linear"), Truth(service, "exact, as defined")
    retrieval_s = plan.retrieval_ms / 1e3
    ways: list[Checked] = []
    try:
        step("sequential: choosing threads and SimTier")
        best = best_sequential(service, exact, plan)
        ways.append(best)
        name, _, threads = best.setting.partition("; ")
        also = Sequential(service, retrieval_s, WAYS[name], int(threads.split()[0]), "linear")
        ways.append(Checked(also, linear.wrong, best.setting))
        step("overlapped: choosing threads and SimTier")
        ways.append(_best(functools.partial(Overlapped, service, retrieval_s), linear.wrong, plan))
        engine = engine_as_it_comes(service, linear, plan)
        ways.append(engine)
        # As a server should when it is warm: else each collection walks all of JAX, for 0.1 s.
        gc.collect()
        gc.freeze()
        saturation = saturate(ways, plan)
        rate_of = {name: float(np.median(rates)) for name, (rates, _) in saturation.items()}
        curved = [checked for checked in ways if checked.way is not also]
        curves = [_curve(checked, rate_of[checked.way.name], plan) for checked in curved]
        step("the generator by itself")
        nothing = Nothing(linear.answers, retrieval_s)
        generator = open_loop(nothing, rate_of[engine.way.name], plan.seconds, linear.wrong)
    finally:
        gc.unfreeze()
        for checked in ways:
            checked.way.close()
    return Found(saturation, {checked.way.name: checked.setting for checked in ways}, curves, generator)


def best_sequential(service: Service, exact: Truth, plan: Plan) -> Checked:
    """Return the sequential way with exact attention, with the threads and the SimTier that serve most."""
    make = functools.partial(Sequential, service, plan.retrieval_ms / 1e3, attention="exact")
    return _best(make, exact.wrong, plan)


def engine_as_it_comes(service: Service, linear: Truth, plan: Plan) -> Checked:
    """Return the engine, with another number of compute threads only if the plan says so."""
    compute = plan.compute_threads
    config = engine_config(service, **({} if compute is None else {"threads": Threads(compute=compute)}))
    threads = f"{config.threads.blocking} blocking and {config.threads.compute} compute threads"
    way = Engined(service, plan.retrieval_ms / 1e3, config=config)
    return Checked(way, linear.wrong, threads)


def _best(make: Callable[[SimTierWay, int], Way], wrong: Wrong, plan: Plan) -> Checked:
    tried: dict[tuple[str, int], float] = {}
    for simtier in SIMTIER:
        for threads in plan.threads:
            way = make(WAYS[simtier], threads)
            closed_loop(way, plan.callers, plan.seconds / 8, wrong)
            tried[simtier, threads] = closed_loop(way, plan.callers, plan.seconds / 4, wrong)[0]
            way.close()
    simtier, threads = max(tried, key=lambda setting: tried[setting])
    return Checked(make(WAYS[simtier], threads), wrong, f"{simtier}; {threads} threads")


def saturate(ways: list[Checked], plan: Plan) -> Saturated:
    """Saturate the ways in turns, after a round that is not counted."""
    rates: dict[str, list[tuple[float, float]]] = {checked.way.name: [] for checked in ways}
    for turn in range(-1, plan.rounds):
        step("saturation, in turns")
        for checked in ways:
            seconds = plan.seconds / (8 if turn < 0 else 2)
            found = closed_loop(checked.way, plan.callers, seconds, checked.wrong)
            if turn >= 0:
                rates[checked.way.name].append(found)
    return {name: tuple(np.array(found).T) for name, found in rates.items()}


def _curve(checked: Checked, saturation: float, plan: Plan) -> Curve:
    step(f"{checked.way.name}: unloaded")
    unloaded = asyncio.run(_unloaded_ms(checked, plan))
    deadline = UNLOADED_TIMES * unloaded
    loads: list[tuple[float, Load]] = []
    for number, share in enumerate(plan.shares):
        step(f"{checked.way.name}: {share:.0%} of saturation")
        rate = share * saturation
        load = open_loop(checked.way, rate, plan.seconds, checked.wrong, deadline_ms=deadline, seed=number)
        loads.append((share, load))
    return Curve(checked.way.name, unloaded, deadline, loads)


async def _unloaded_ms(checked: Checked, plan: Plan) -> float:
    """Return the median latency of requests that are alone."""
    taken = []
    for number in range(max(10, round(plan.seconds * 10))):
        began = time.perf_counter()
        answer = await checked.way.serve(number, None)
        taken.append((time.perf_counter() - began) * 1e3)
        assert not (fault := checked.wrong(number, answer)), fault
        await asyncio.sleep(0.005)
    return float(np.median(taken))
