"""All contenders of one case, their answers checked, and the bars that are ratios of two of them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import cache

import numpy as np

from results import Step
from stage.hand_rolled import hand_rolled
from stage.onnx_sequential import fastest_block, onnx_sequential
from stage.request import Case
from stage.sequential import as_defined, sequential
from stage.staged import Stage, stage_contender
from stage.timing import Contender, Times, check_same, overlap
from stage.weaker import TwoTower, cold, two_tower
from stage.xla_simtier import WAYS
from workload import Built

SEQUENTIAL, ONNX, HAND_ROLLED, COLD, STAGE = "sequential", "ONNX Runtime", "hand-rolled", "cold", "stage"
TOWERS_NUMPY, TOWERS_JAX = "two towers, NumPy", "two towers, JAX"

WHAT = {
    SEQUENTIAL: "JAX: user side, item tower, exact attention and SimTier per request, in one call, "
    "each part in the fastest form found",
    ONNX: "the same in ONNX Runtime",
    HAND_ROLLED: "JAX: cached folded rows by position, user side done, best pure-XLA SimTier, one call",
    COLD: "JAX: COLD, a smaller model without the long sequence; everything per request, one call",
    TOWERS_NUMPY: "another, weaker model: one dot product a candidate, vectors by position; NumPy",
    TOWERS_JAX: "the same in JAX, one call",
    STAGE: "this project: ids in, rows from the cache, user side done",
}

COMPARISONS = {
    "stage_float32": (SEQUENTIAL, STAGE),
    "stage_bfloat16": (SEQUENTIAL, f"{STAGE}, bfloat16"),
    "stage_onnx": (ONNX, STAGE),
    "stage_hand_rolled": (HAND_ROLLED, STAGE),
}
"""By bar, the rival that should take longer, and ours."""

Ratio = tuple[float, tuple[float, float]]
"""Median and quartiles."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """Contenders whose answers are right."""

    contenders: list[Contender]  # to be timed
    stage: Stage  # in float32, one of them
    answers: dict[str, str]  # by contender in words, how near it is to its definition
    settings: str  # how the rivals were set up, in words


def contenders_of(
    case: Case,
    served: Mapping[str, Built],
    way: str,
    choosing_rounds: int,
    step: Step = lambda _: None,
    only: Collection[str] = tuple(WHAT),
) -> Checked:
    """Build and check the contenders of a case, with the rivals' way of SimTier in `stage.xla_simtier.WAYS`.

    ``served`` holds the workload by precision; the stage is always there, in each of them.
    """
    simtier, settings = WAYS[way], f"SimTier of the rivals in XLA: {way}"
    step("definitions")
    exact, linear = as_defined(case, "exact, as defined"), as_defined(case, "linear")
    stages = {precision: stage_contender(case, built, precision) for precision, built in served.items()}
    stage = stages["float32"]
    block = 0
    if ONNX in only:
        step("ONNX Runtime: choosing a block")
        block = fastest_block(case, choosing_rounds)
        settings += f"; ONNX Runtime takes {block} candidates at a time"

    @cache
    def towers() -> TwoTower:
        return two_tower(case)

    step("contenders, and their answers")
    # By name a contender and its definition, made only if wanted.
    makers: dict[str, Callable[[], tuple[Contender, Contender]]] = {
        SEQUENTIAL: lambda: (sequential(case, simtier, SEQUENTIAL), exact),
        ONNX: lambda: (onnx_sequential(case, ONNX, block), exact),
        HAND_ROLLED: lambda: (hand_rolled(case, simtier, stage, HAND_ROLLED), linear),
        COLD: lambda: cold(case, COLD),
        TOWERS_NUMPY: lambda: (towers().numpy(), towers().definition()),
        TOWERS_JAX: lambda: (towers().jax(), towers().definition()),
        STAGE: lambda: (stage, linear),
    }
    pairs = [make() for name, make in makers.items() if name in only or name == STAGE]
    answers = {
        contender.name: f"within {check_same(contender, definition):.1e} of the {definition.name}"
        for contender, definition in pairs
    }
    contenders = [contender for contender, _ in pairs]
    for precision, contender in stages.items():
        if precision != "float32":
            contenders.append(contender)
            answers[contender.name] = f"{overlap(contender, linear):.1%} of the best of the {linear.name}"
    return Checked(contenders, stage, answers, f"{settings}; the stage runs its {stage.kind} programs")


def ratio(times: Times, rival: str, ours: str) -> Ratio:
    """Return how many times longer the rival takes: median and quartiles over the rounds' own ratios."""
    low, middle, high = (float(q) for q in np.quantile(times[rival] / times[ours], (0.25, 0.5, 0.75)))
    return middle, (low, high)


def ratios_of_bars(times: Times) -> dict[str, Ratio]:
    """Return by bar the ratio of the two contenders that it is about, if both were timed."""
    pairs = {bar: pair for bar, pair in COMPARISONS.items() if set(pair) <= times.keys()}
    return {bar: ratio(times, *pair) for bar, pair in pairs.items()}
