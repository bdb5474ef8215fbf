"""Timing contenders in turns: every round times each of them once, in an order drawn anew.

A turn begins with runs that are not timed, on other requests: a service answers one request after the other,
with its threads awake and its weights in the caches, and not one after eleven other programs, of which some
leave threads behind that spin for a while (ONNX Runtime's do). The rows of the timed request are as cold as
they would be there.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stage.request import TURNS

SETTLING_S = 0.03
"""How long a contender runs before the run that is timed, at least once."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that answers a request.

    Attributes:
        name: what tables call it.
        run: from the number of a turn to positions of the best candidates and their scores, ready in memory.
    """

    name: str
    run: Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one contender in milliseconds, one a round."""

    ms: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """Return a quantile over the rounds."""
        return float(np.quantile(self.ms, share))

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return self.quantile(0.5)

    def to_json(self) -> dict[str, Any]:
        """Return the summary that results hold."""
        return {
            "median_ms": self.median, "p25_ms": self.quantile(0.25), "p75_ms": self.quantile(0.75),
            "min_ms": min(self.ms), "max_ms": max(self.ms), "rounds": len(self.ms),
        }  # fmt: skip


def interleaved(
    contenders: Sequence[Contender],
    rounds: int,
    *,
    warmup: int = 3,
    seed: int = 0,
    each_round: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time contenders in turns, each round with the same request for all, the order drawn anew.

    Args:
        contenders: whose answers have been checked.
        rounds: timed rounds.
        warmup: rounds before them that are not timed.
        seed: of the order.
        each_round: called after every round, for a progress bar.

    Returns:
        Times by name.
    """
    order = random.Random(seed)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(-warmup, rounds):
        for contender in order.sample(contenders, len(contenders)):
            began, other = time.perf_counter(), number + 1
            while time.perf_counter() - began < SETTLING_S:
                contender.run(other % TURNS)
                # Any request but the one that is timed.
                other += 1 + ((other + 1 - number) % TURNS == 0)
            began = time.perf_counter()
            contender.run(number % TURNS)
            spent = (time.perf_counter() - began) * 1e3
            if number >= 0:
                times[contender.name].append(spent)
        each_round()
    return {name: Timing(tuple(ms)) for name, ms in times.items()}
