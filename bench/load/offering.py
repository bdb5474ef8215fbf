"""From ways of serving to curves: what each saturates at, and how it behaves below and beyond that."""

import asyncio
import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from aif_jax.serving import Threads
from load.arrivals import Load, Wrong, closed_loop, open_loop
from load.progress import Step
from load.service import Answer, Service, Truth
from load.ways import Engined, Overlapped, Sequential, Way, engine_config
from stage.xla_simtier import ONE_CORE, WAYS

SIMTIER = (ONE_CORE, "popcount, 8 behaviours at a time, all candidates")
"""Ways of SimTier in pure XLA that need the least work; the rivals get the one that serves most."""

UNLOADED_TIMES = 3.0
"""An answer is in time within this many times the way's own unloaded latency."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run.

    Attributes:
        retrieval_ms: how long retrieval sleeps.
        seconds: of arrivals at each load.
        shares: loads, as shares of a way's own saturation, ascending.
        rounds: rounds in which the ways take turns to saturate.
        threads: numbers of threads that the rivals may choose from.
        compute_threads: the engine's; ``None`` as it comes.
    """

    retrieval_ms: float
    seconds: float
    shares: tuple[float, ...]
    rounds: int
    threads: tuple[int, ...]
    callers: int = 24
    compute_threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """A way, what checks its answers, and how it was set up."""

    way: Way
    wrong: Wrong
    setting: str


def measure(service: Service, plan: Plan, step: Step) -> dict[str, Any]:
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
        ways.append(
            Checked(
                Sequential(service, retrieval_s, WAYS[name], int(threads.split()[0]), "linear"),
                linear.wrong,
                best.setting,
            )
        )
        step("overlapped: choosing threads and SimTier")
        ways.append(
            _best(
                lambda simtier, threads: Overlapped(service, retrieval_s, WAYS[simtier], threads),
                linear.wrong,
                plan,
            )
        )
        engine = engine_as_it_comes(service, linear, plan)
        ways.append(engine)
        # As a server should when it is warm: else each collection walks all of JAX, for 0.1 s.
        gc.collect()
        gc.freeze()
        saturation = saturate(ways, plan, step)
        curves = [
            _curve(checked, saturation[checked.way.name]["throughput"], plan, step)
            for checked in ways
            if checked.way.name != "sequential, linear attention"
        ]
        step("the generator by itself")
        rate = saturation[engine.way.name]["throughput"]
        generator = open_loop(Nothing(linear.answers, retrieval_s), rate, plan.seconds, linear.wrong)
    finally:
        gc.unfreeze()
        for checked in ways:
            checked.way.close()
    return {
        "saturation": saturation, "curves": curves,
        "settings": {checked.way.name: checked.setting for checked in ways},
        "generator": {
            "rate": generator.offered, "core_ms": generator.core_ms, "late_p99_ms": generator.late_ms,
        },
    }  # fmt: skip


def best_sequential(service: Service, exact: Truth, plan: Plan) -> Checked:
    """Return the sequential way with exact attention, with the threads and the SimTier that serve most."""
    return _best(
        lambda simtier, threads: Sequential(
            service, plan.retrieval_ms / 1e3, WAYS[simtier], threads, "exact"
        ),
        exact.wrong, plan,
    )  # fmt: skip


def engine_as_it_comes(service: Service, linear: Truth, plan: Plan) -> Checked:
    """Return the engine, with another number of compute threads only if the plan says so."""
    compute = plan.compute_threads
    config = engine_config(service, **({} if compute is None else {"threads": Threads(compute=compute)}))
    threads = f"{config.threads.blocking} blocking and {config.threads.compute} compute threads"
    return Checked(Engined(service, plan.retrieval_ms / 1e3, config), linear.wrong, threads)


class Nothing:
    """Answers what it knows, after retrieval: what is left is the cost of sending."""

    name = "nothing"

    def __init__(self, answers: list[Answer], retrieval_s: float):
        self._answers = answers
        self._retrieval_s = retrieval_s

    async def serve(self, number: int, deadline_ms: float | None) -> Answer:
        """Answer from memory."""
        await asyncio.sleep(self._retrieval_s)
        return self._answers[number % len(self._answers)]

    def close(self) -> None:
        """Have nothing to stop."""


def _best(make: Callable[[str, int], Way], wrong: Wrong, plan: Plan) -> Checked:
    """Return the way with the setting that serves most."""
    tried: dict[tuple[str, int], float] = {}
    for simtier in SIMTIER:
        for threads in plan.threads:
            way = make(simtier, threads)
            closed_loop(way, plan.callers, plan.seconds / 8, wrong)
            tried[simtier, threads] = closed_loop(way, plan.callers, plan.seconds / 4, wrong)[0]
            way.close()
    simtier, threads = max(tried, key=lambda setting: tried[setting])
    return Checked(make(simtier, threads), wrong, f"{simtier}; {threads} threads")


def saturate(ways: list[Checked], plan: Plan, step: Step) -> dict[str, dict[str, float]]:
    """Return answers a second and core-milliseconds of each way, in turns, and how often the engine's."""
    rates: dict[str, list[tuple[float, float]]] = {checked.way.name: [] for checked in ways}
    for turn in range(-1, plan.rounds):
        step("saturation, in turns")
        for checked in ways:
            seconds = plan.seconds / (8 if turn < 0 else 2)
            found = closed_loop(checked.way, plan.callers, seconds, checked.wrong)
            if turn >= 0:
                rates[checked.way.name].append(found)
    ours = np.array([rate for rate, _ in rates[Engined.name]])
    return {
        name: {
            "throughput": float(np.median([rate for rate, _ in found])),
            "core_ms": float(np.median([core for _, core in found])),
            **{
                f"engine_times_p{round(100 * q)}": float(np.quantile(ours / [rate for rate, _ in found], q))
                for q in (0.25, 0.5, 0.75)
            },
        }
        for name, found in rates.items()
    }


def _curve(checked: Checked, saturation: float, plan: Plan, step: Step) -> dict[str, Any]:
    """Return what becomes of a way's requests from a tenth of its saturation to twice as much."""
    step(f"{checked.way.name}: unloaded")
    unloaded = _unloaded_ms(checked, plan)
    deadline = UNLOADED_TIMES * unloaded
    loads: list[tuple[float, Load]] = []
    for number, share in enumerate(plan.shares):
        step(f"{checked.way.name}: {share:.0%} of saturation")
        rate = share * saturation
        load = open_loop(checked.way, rate, plan.seconds, checked.wrong, deadline_ms=deadline, seed=number)
        loads.append((share, load))
    peak = max(load.in_time for _, load in loads)
    full = [load.in_full for _, load in loads]
    return {
        "way": checked.way.name, "saturation": saturation, "unloaded_ms": unloaded, "deadline_ms": deadline,
        "within": _within(loads, deadline), "peak_goodput": peak,
        "kept_beyond": _kept_beyond([(share, load.in_time) for share, load in loads]),
        "peak_in_full": max(full),
        "in_full_beyond": _kept_beyond([(share, load.in_full) for share, load in loads]),
        "loads": [{"share": share, **load.to_json()} for share, load in loads],
        "unexpected": sorted({text for _, load in loads for text in load.unexpected}),
    }  # fmt: skip


def _kept_beyond(loads: list[tuple[float, float]]) -> float:
    """Return the least share that is kept past saturation of the best at any load up to there."""
    kept = [
        good / best
        for number, (share, good) in enumerate(loads)
        if share > 1 and (best := max(other for _, other in loads[: number + 1])) > 0
    ]
    return min(kept, default=float("nan"))


def _unloaded_ms(checked: Checked, plan: Plan) -> float:
    """Return the median latency of requests that are alone."""

    async def ask() -> float:
        taken = []
        for number in range(max(10, round(plan.seconds * 10))):
            began = time.perf_counter()
            answer = await checked.way.serve(number, None)
            taken.append((time.perf_counter() - began) * 1e3)
            assert not (told := checked.wrong(number, answer)), told
            await asyncio.sleep(0.005)
        return float(np.median(taken))

    return asyncio.run(ask())


def _within(loads: list[tuple[float, Load]], limit_ms: float) -> float:
    """Return the most answers a second at which p99 stays within a limit and 99 % are answered in full."""
    kept = [
        load.throughput
        for _, load in loads
        if load.quantile(0.99) <= limit_ms and load.rungs.get(0, 0) >= 0.99 * load.counted
    ]
    return max(kept, default=0.0)
