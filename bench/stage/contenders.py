"""All contenders of one case, their answers checked."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

from stage import two_tower
from stage.answers import check_same, overlap
from stage.cold import cold
from stage.hand_rolled import hand_rolled, hand_rolled_in_threads
from stage.onnx_sequential import onnx_sequential, timed_blocks
from stage.request import Case
from stage.sequential import as_defined, sequential, sequential_after_user
from stage.staged import Stage, stage_contender
from stage.timing import Contender
from stage.xla_simtier import ONE_CORE, WAYS, reference
from workload import Built

SEQUENTIAL = "sequential"
SEQUENTIAL_AFTER = "sequential, user side done"
SEQUENTIAL_PLAIN = "sequential, plainly written"
ONNX = "ONNX Runtime"
ONNX_AFTER = "ONNX Runtime, user side done"
ONNX_WITHOUT = "ONNX Runtime, user side done, no SimTier"
HAND_ROLLED = "hand-rolled"
HAND_ROLLED_TWICE = "hand-rolled, in two threads"
COLD = "cold"
TWO_TOWERS_NUMPY = two_tower.NUMPY
TWO_TOWERS_JAX = two_tower.JAX
STAGE = "stage"

WEAKER = (COLD, TWO_TOWERS_NUMPY, TWO_TOWERS_JAX)
"""Those that compute another model, which is cheaper and ranks worse."""

WHAT = {
    SEQUENTIAL: "JAX: user side, item tower, exact attention and SimTier per request, in one call, "
    "each part in the fastest form found",
    SEQUENTIAL_AFTER: "the same with the user side done beforehand",
    SEQUENTIAL_PLAIN: "the first with attention and SimTier as they are defined",
    ONNX: "the first in ONNX Runtime",
    ONNX_AFTER: "the second in ONNX Runtime",
    ONNX_WITHOUT: "the same without SimTier",
    HAND_ROLLED: "JAX: cached folded rows by position, user side done, best pure-XLA SimTier, one call",
    HAND_ROLLED_TWICE: "the same, half of the candidates by each of two threads, one more call for the best",
    COLD: "JAX: COLD, a smaller model without the long sequence; everything per request, one call",
    TWO_TOWERS_NUMPY: "another, weaker model: one dot product a candidate, vectors by position; NumPy",
    TWO_TOWERS_JAX: "the same in JAX, one call",
    STAGE: "this project: ids in, rows from the cache, user side done",
}


@dataclasses.dataclass(frozen=True)
class Checked:
    """Contenders whose answers are right.

    Attributes:
        contenders: to be timed.
        stage: the stage in float32, one of them.
        answers: by contender, the largest difference from its definition, or the overlap with it.
        block: candidates at a time in ONNX Runtime.
    """

    contenders: list[Contender]
    stage: Stage
    answers: dict[str, dict[str, Any]]
    block: int


def contenders_of(
    case: Case,
    served: Mapping[str, Built],
    way: str,
    choosing_rounds: int,
    step: Callable[[str], None] = lambda _: None,
    only: Collection[str] = tuple(WHAT),
) -> Checked:
    """Build and check the contenders of a case.

    Args:
        case: the requests.
        served: the workload by the precision of its bundle and tables.
        way: the rivals' way of SimTier, one of `stage.xla_simtier.WAYS`.
        choosing_rounds: rounds in which ONNX Runtime's block is chosen.
        step: told what is being built.
        only: names of those that are wanted; the stage itself is always there, in every precision.
    """
    simtier = WAYS[way]
    block = case.n
    if {ONNX, ONNX_AFTER, ONNX_WITHOUT} & set(only):
        step("ONNX Runtime: choosing a block")
        blocks = timed_blocks(case, choosing_rounds)
        block = min(blocks, key=lambda size: blocks[size].median)
    step("definitions")
    exact, linear = as_defined(case, "exact, as defined", True), as_defined(case, "linear", True)
    stages = {precision: stage_contender(case, built, precision) for precision, built in served.items()}
    stage = stages["float32"]

    def onnx(name: str, **options: bool) -> Contender:
        return onnx_sequential(case, name, block=block, **options)

    @cache
    def towers() -> two_tower.TwoTower:
        return two_tower.two_tower(case)

    step("contenders, and their answers")
    # By name a contender and its definition, made only if wanted.
    makers: dict[str, Callable[[], tuple[Contender, Contender]]] = {
        SEQUENTIAL: lambda: (sequential(case, "exact", simtier, SEQUENTIAL), exact),
        SEQUENTIAL_AFTER: lambda: (sequential_after_user(case, "exact", simtier, SEQUENTIAL_AFTER), exact),
        SEQUENTIAL_PLAIN: lambda: (
            sequential(case, "exact, as defined", reference, SEQUENTIAL_PLAIN), exact
        ),
        ONNX: lambda: (onnx(ONNX, user_side=True, simtier=True), exact),
        ONNX_AFTER: lambda: (onnx(ONNX_AFTER, user_side=False, simtier=True), exact),
        ONNX_WITHOUT: lambda: (
            onnx(ONNX_WITHOUT, user_side=False, simtier=False), as_defined(case, "exact, as defined", False)
        ),
        HAND_ROLLED: lambda: (hand_rolled(case, simtier, stage, HAND_ROLLED), linear),
        HAND_ROLLED_TWICE: lambda: (
            hand_rolled_in_threads(case, WAYS[ONE_CORE], stage, HAND_ROLLED_TWICE), linear
        ),
        COLD: lambda: cold(case),
        TWO_TOWERS_NUMPY: lambda: (towers().numpy(), towers().definition()),
        TWO_TOWERS_JAX: lambda: (towers().jax(), towers().definition()),
        STAGE: lambda: (stage, linear),
    }  # fmt: skip
    pairs = [make() for name, make in makers.items() if name in only or name == STAGE]
    answers: dict[str, dict[str, Any]] = {
        contender.name: {"against": definition.name, "largest_difference": check_same(contender, definition)}
        for contender, definition in pairs
    }
    contenders = [contender for contender, _ in pairs]
    for precision, contender in stages.items():
        if precision != "float32":
            contenders.append(contender)
            answers[contender.name] = {"against": linear.name, "overlap": overlap(contender, linear)}
    return Checked(contenders, stage, answers, block)
