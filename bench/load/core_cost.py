"""What a request costs in processor time when retrieval computes, against its parts by themselves."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from aif_jax.serving import Engine
from load.parts import Parts, Retrieval
from load.service import CONTEXT_OF_REQUESTS, REQUESTS, Answer, Service, Truth
from load.ways import engine_config

BATCH = 5
"""Requests a measurement: other threads of the process settle a little after each."""


def measure(
    service: Service, truth: Truth, ms: float, rounds: int, each_round: Callable[[], None]
) -> dict[str, Any]:
    """Measure requests of new users whose retrieval computes in Python for a while, in turns with the parts.

    Returns:
        Medians in core-milliseconds a request, and quantiles of what a request costs beyond its parts.

    Raises:
        AssertionError: an answer is wrong.
    """
    parts, retrieval = Parts(service), Retrieval(service, ms, "computes")
    built = service.built
    costs: dict[str, list[float]] = {"request": [], "retrieval": [], "user side": [], "stage": []}
    walls: dict[str, list[float]] = {name: [] for name in costs}
    order = random.Random(0)
    with Engine(
        built.bundle, built.tables,
        users=service.user, retrieve=retrieval.function, config=engine_config(service),
    ) as engine:  # fmt: skip

        def request(number: int) -> None:
            ranking = engine.rank(number, CONTEXT_OF_REQUESTS)
            answer = Answer(ranking.ids, ranking.scores, ranking.report.rung)
            answers.append((number, answer))

        runs: dict[str, Callable[[int], Any]] = {
            "request": request, "retrieval": lambda _: retrieval.alone(), "user side": parts.user_side,
            "stage": parts.stage,
        }  # fmt: skip
        for turn in range(-1, rounds):
            for name in order.sample(list(runs), len(runs)):
                answers: list[tuple[int, Answer]] = []
                time.sleep(0.005)
                cpu, began = time.process_time(), time.perf_counter()
                for step in range(BATCH):
                    runs[name](REQUESTS + turn * BATCH + step)
                wall = time.perf_counter() - began
                # What other threads do after the last result is the request's cost as well.
                time.sleep(0.002)
                cpu = time.process_time() - cpu
                for number, answer in answers:
                    assert not (told := truth.wrong(number, answer)), told
                if turn >= 0:
                    costs[name].append(cpu * 1e3 / BATCH)
                    walls[name].append(wall * 1e3 / BATCH)
            each_round()
    beyond = np.asarray(costs["request"]) - sum(
        np.asarray(costs[name]) for name in costs if name != "request"
    )
    return {
        "ms": ms, "rounds": rounds, "core_ms": {name: float(np.median(c)) for name, c in costs.items()},
        "wall_ms": {name: float(np.median(wall)) for name, wall in walls.items()},
        "beyond": {f"p{round(100 * q)}": float(np.quantile(beyond, q)) for q in (0.25, 0.5, 0.75)},
    }  # fmt: skip
