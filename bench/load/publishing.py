"""Requests under steady load while bundles take turns, before, during and after."""

import asyncio
import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.nearline import BehaviourTable
from aif_jax.serving import GoldenRequest, PublishChecks
from load.arrivals import Sent, send
from load.service import REQUESTS, Service
from load.ways import Engined
from results import step
from stage.request import CONTEXT
from workload import Built, with_other_weights

RETRIEVAL_S = 0.010


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    rate: float  # requests a second
    seconds: float  # of arrivals; publishes are in their middle third
    warm: int  # users whose states are computed ahead
    publishes: int = 10
    users: int = 3 * REQUESTS  # ask in turns, a multiple of `REQUESTS`; 0: every request is by a new one


Expected = dict[tuple[str, int], tuple[bytes, bytes]]
"""Ids and scores of each different request by each version."""


def answers_of(service: Service, built: Built) -> Expected:
    """Return the answers of an engine that serves one version only."""
    way = Engined(service, RETRIEVAL_S, built=built)
    rankings = [way.engine.rank(number, CONTEXT) for number in range(REQUESTS)]
    version = way.engine.version
    way.close()
    return {
        (version, number): (ranking.ids.tobytes(), ranking.scores.tobytes())
        for number, ranking in enumerate(rankings)
    }


async def _run(
    way: Engined, requests: list[Sent], publish: Callable[[int], Any], swap_at: list[float]
) -> list[dict[str, float]]:
    """Send requests when they are due, and publish at given times; return when each publish was."""
    origin_s, swaps = time.perf_counter() + 0.02, []

    async def swap() -> None:
        for number, at in enumerate(swap_at):
            await asyncio.sleep(max(0.0, origin_s + at - time.perf_counter()))
            start_s = time.perf_counter() - origin_s
            await asyncio.to_thread(publish, number)
            swaps.append({"start_s": start_s, "end_s": time.perf_counter() - origin_s})

    await asyncio.gather(swap(), send(way, requests, origin_s))
    return swaps


def times_by_phase(found: dict[str, Any]) -> dict[str, list[float]]:
    """Return milliseconds of requests before the first publish, during one, after the last, and between."""
    swaps = found["swaps"]
    times: dict[str, list[float]] = {name: [] for name in ("before", "during", "after", "between")}
    for due_s, ms, _ in found["done"]:
        done_s = due_s + ms / 1e3
        if done_s < swaps[0]["start_s"]:
            phase = "before"
        elif due_s > swaps[-1]["end_s"]:
            phase = "after"
        else:
            meets = any(due_s < swap["end_s"] and done_s > swap["start_s"] for swap in swaps)
            phase = "during" if meets else "between"
        times[phase].append(ms)
    return times


def measure(service: Service, plan: Plan, folder: Path) -> dict[str, Any]:
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
    way = Engined(service, RETRIEVAL_S, users=plan.users)
    with way.engine as engine:
        step("serving")
        for number in range(max(plan.users, REQUESTS)):
            engine.rank(number, CONTEXT)
        # As a server should when it is warm: else each collection walks all of JAX, for 0.1 s.
        gc.collect()
        gc.freeze()

        def publish(number: int) -> None:
            engine.publish(*generations[number % 2], golden=golden, checks=checks, warm=plan.warm)

        requests = [Sent(number, due_s) for number, due_s in enumerate(due.tolist())]
        swaps = asyncio.run(_run(way, requests, publish, swap_at))
        stats = engine.stats()
        gc.unfreeze()
    assert stats["compilations"] == 0
    done, faults = [], []
    for request in requests:
        if (answer := request.answer) is None:
            assert request.error is not None, f"request {request.number} was lost"
            faults.append(f"{type(request.error).__name__}: {request.error}")
            continue
        done.append((request.due_s, (request.done_s - request.due_s) * 1e3, answer.version))
        given = answer.ids.tobytes(), answer.scores.tobytes()
        if given != expected[answer.version, request.number % REQUESTS]:
            faults.append(f"request {request.number}: not the answer of version {answer.version[:12]}")
    return {"done": done, "swaps": swaps, "faults": faults, "published": stats["generations"]["published"]}
