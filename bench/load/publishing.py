"""Requests under steady load while bundles take turns, before, during and after."""

import asyncio
import dataclasses
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.nearline import BehaviourTable
from aif_jax.serving import Engine, GoldenRequest, PublishChecks
from aif_jax.types import Candidates, Request
from load.service import REQUESTS, Service
from load.ways import engine_config
from results import Step
from stage.request import CONTEXT
from workload import Built, with_other_weights

RETRIEVAL_S = 0.010
PHASES = ("before", "during", "after")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run."""

    rate: float  # requests a second
    seconds: float  # of arrivals; publishes are in their middle third
    warm: int  # users whose states are computed ahead
    publishes: int = 10
    users: int = 3 * REQUESTS  # ask in turns, a multiple of `REQUESTS`; 0: every request is by a new one


Expected = dict[tuple[str, int], tuple[bytes, bytes]]
"""Ids and scores of each different request by each version."""


def engine_of(service: Service, built: Built) -> Engine:
    async def retrieve(request: Request) -> Candidates:
        await asyncio.sleep(RETRIEVAL_S)
        return service.candidates(int(request.user))

    return Engine(
        built.bundle, built.tables, users=service.user, retrieve=retrieve, config=engine_config(service)
    )


def answers_of(service: Service, built: Built) -> Expected:
    """Return the answers of an engine that serves one version only."""
    with engine_of(service, built) as engine:
        rankings = [engine.rank(number, CONTEXT) for number in range(REQUESTS)]
        version = engine.version
    return {
        (version, number): (ranking.ids.tobytes(), ranking.scores.tobytes())
        for number, ranking in enumerate(rankings)
    }


async def run(
    engine: Engine, expected: Expected, due: np.ndarray, users: int, publish: Any, swap_at: list[float]
) -> dict[str, Any]:
    """Send requests when they are due, and publish at given times; return times, faults and publishes."""
    done: list[tuple[float, float, str]] = []
    faults: list[str] = []
    swaps: list[dict[str, float]] = []
    begun = time.perf_counter()

    async def ask(number: int, due_s: float) -> None:
        try:
            # Different users ask the same in turns.
            user = number % users if users else number
            ranking = await engine.rank_async(user, CONTEXT)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
            return
        version = ranking.report.version
        done.append((due_s, (time.perf_counter() - begun - due_s) * 1e3, version))
        if (ranking.ids.tobytes(), ranking.scores.tobytes()) != expected[version, number % REQUESTS]:
            faults.append(f"request {number}: not the answer of version {version[:12]}")

    async def swap(pool: ThreadPoolExecutor) -> None:
        for number, at in enumerate(swap_at):
            await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
            start_s = time.perf_counter() - begun
            made = await asyncio.get_running_loop().run_in_executor(pool, publish, number)
            end_s = time.perf_counter() - begun
            swaps.append({"start_s": start_s, "end_s": end_s, "warmed": made.warmed})

    with ThreadPoolExecutor(1) as pool:
        swapping = asyncio.create_task(swap(pool))
        asked = []
        for number, due_s in enumerate(due.tolist(), REQUESTS):
            await asyncio.sleep(max(0.0, begun + due_s - time.perf_counter()))
            asked.append(asyncio.create_task(ask(number, due_s)))
        await asyncio.gather(swapping, *asked)
    assert len(done) + sum(not fault.startswith("request") for fault in faults) == len(due), (
        "requests were lost"
    )
    return {"done": done, "faults": faults, "swaps": swaps}


def times_by_phase(found: dict[str, Any]) -> dict[str, list[float]]:
    """Return milliseconds of requests before the first publish, during one, after the last, and between."""
    done, swaps = found["done"], found["swaps"]
    first, last = swaps[0]["start_s"], swaps[-1]["end_s"]

    def phase(due_s: float, ms: float) -> str:
        if due_s + ms / 1e3 < first:
            return "before"
        if due_s > last:
            return "after"
        meets = any(due_s < swap["end_s"] and due_s + ms / 1e3 > swap["start_s"] for swap in swaps)
        return "during" if meets else "between"

    times: dict[str, list[float]] = {name: [] for name in (*PHASES, "between")}
    for due_s, ms, _ in done:
        times[phase(due_s, ms)].append(ms)
    return times


def measure(service: Service, plan: Plan, step: Step, folder: Path) -> dict[str, Any]:
    """Send requests to an engine that publishes another model and the first one in turns.

    Returns:
        ``done`` (due, milliseconds and version of every request that was answered), ``swaps``, ``faults``
        (wrong answers and errors), ``published``.
    """
    step("the other model")
    one = service.built
    other = with_other_weights(one, seed=1, folder=folder)
    source = one.source
    behaviours = BehaviourTable.build(other.bundle, source.ids, source.columns, source.content)
    other = dataclasses.replace(other, tables=other.tables._replace(behaviours=behaviours))
    generations = [(other.bundle, other.tables), (one.bundle, one.tables)]
    checks = PublishChecks(min_overlap=0.0)
    step("the right answers")
    expected = answers_of(service, one) | answers_of(service, other)
    rng = np.random.default_rng(7)
    due = np.cumsum(rng.exponential(1 / plan.rate, int(plan.rate * plan.seconds)))
    swap_at = [float(due[-1]) * (1 / 3 + number / plan.publishes / 3) for number in range(plan.publishes)]
    golden = [
        GoldenRequest(user=number, candidates=found.ids, pair=found.pair, context=CONTEXT)
        for number, found in ((number, service.candidates(number)) for number in range(4))
    ]
    with engine_of(service, one) as engine:
        step("serving")
        for number in range(max(plan.users, REQUESTS)):
            engine.rank(number, CONTEXT)
        # As a server should when it is warm: else each collection walks all of JAX, for 0.1 s.
        gc.collect()
        gc.freeze()

        def publish(number: int) -> Any:
            return engine.publish(*generations[number % 2], golden=golden, checks=checks, warm=plan.warm)

        found = asyncio.run(run(engine, expected, due, plan.users, publish, swap_at))
        stats = engine.stats()
        gc.unfreeze()
    assert stats["compilations"] == 0
    return {**found, "published": stats["generations"]["published"]}
