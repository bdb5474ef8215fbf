"""All contenders of one case, their answers checked, and the bars that are ratios of two of them."""

import dataclasses
from collections.abc import Mapping

from results import quartiles, step
from stage.hand_rolled import hand_rolled
from stage.onnx_sequential import fastest_block, onnx_sequential
from stage.request import Case
from stage.sequential import as_defined, sequential
from stage.staged import Stage, stage_contender
from stage.timing import Contender, Times, check_same, overlap
from stage.xla_simtier import WAYS
from workload import Built

SEQUENTIAL, ONNX, HAND_ROLLED, STAGE = "sequential", "ONNX Runtime", "hand-rolled", "stage"

WHAT = {
    SEQUENTIAL: "JAX: user side, item tower, exact attention and SimTier per request, in one call, "
    "each part in the fastest form found",
    ONNX: "the same in ONNX Runtime",
    HAND_ROLLED: "JAX: cached folded rows by position, user side done, best pure-XLA SimTier, one call",
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


def contenders_of(case: Case, served: Mapping[str, Built], way: str, choosing_rounds: int) -> Checked:
    """Build and check the contenders of a case.

    ``served`` holds the workload by precision; ``way`` names the rivals' SimTier in `stage.xla_simtier.WAYS`.
    """
    simtier, settings = WAYS[way], f"SimTier of the rivals in XLA: {way}"
    step("definitions")
    exact, linear = as_defined(case, "exact, as defined"), as_defined(case, "linear")
    stages = {precision: stage_contender(case, built, precision) for precision, built in served.items()}
    stage = stages["float32"]
    step("ONNX Runtime: choosing a block")
    block = fastest_block(case, choosing_rounds)
    settings += f"; ONNX Runtime takes {block} candidates at a time"
    step("contenders, and their answers")
    pairs = [
        (sequential(case, simtier, SEQUENTIAL), exact),
        (onnx_sequential(case, ONNX, block), exact),
        (hand_rolled(case, simtier, stage, HAND_ROLLED), linear),
        (stage, linear),
    ]
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
    return quartiles(times[rival] / times[ours])


def ratios_of_bars(times: Times) -> dict[str, Ratio]:
    """Return by bar the ratio of the two contenders that it is about, if both were timed."""
    pairs = {bar: pair for bar, pair in COMPARISONS.items() if set(pair) <= times.keys()}
    return {bar: ratio(times, *pair) for bar, pair in pairs.items()}
