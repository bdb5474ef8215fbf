"""The bars that the stage is held to, and how often a rival takes its time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bars.lines import BARS
from stage import contenders
from stage.timing import Timing


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A bar that is a ratio of two contenders' times.

    Attributes:
        bar: its name in `bars.lines.BARS`.
        rival: the contender that should take longer.
        ours: the contender that should be faster.
    """

    bar: str
    rival: str
    ours: str


COMPARISONS = (
    Comparison("stage_float32", contenders.SEQUENTIAL, contenders.STAGE),
    Comparison("stage_bfloat16", contenders.SEQUENTIAL, f"{contenders.STAGE}, bfloat16"),
    Comparison("stage_onnx", contenders.ONNX, contenders.STAGE),
    Comparison("stage_hand_rolled", contenders.HAND_ROLLED, contenders.STAGE),
)
ROOFLINE = Comparison("stage_roofline", "floor", contenders.STAGE)


def ratio(times: Mapping[str, Timing], rival: str, ours: str) -> dict[str, float]:
    """Return how many times longer the rival takes: median and quartiles over the rounds' own ratios."""
    ratios = np.asarray(times[rival].ms) / np.asarray(times[ours].ms)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {"median": float(middle), "p25": float(low), "p75": float(high)}


def verdicts(
    times: Mapping[str, Timing], stage: Timing | None, floor_ms: float | None
) -> list[dict[str, Any]]:
    """Return what became of each bar; ``outcome`` is ``reached``, ``met``, ``missed`` or ``not measured``.

    Args:
        times: of the contenders in turns.
        stage: of the stage in turns with its parts, which the floor is about; ``None`` without a floor.
        floor_ms: milliseconds of the floor; likewise.
    """
    found = []
    for comparison in COMPARISONS:
        measured = None
        if {comparison.rival, comparison.ours} <= times.keys():
            measured = ratio(times, comparison.rival, comparison.ours)
        found.append(_verdict(comparison, measured))
    over = None
    if floor_ms is not None and stage is not None:
        quantiles = {"median": 0.5, "p25": 0.25, "p75": 0.75}
        over = {name: stage.quantile(share) / floor_ms for name, share in quantiles.items()}
    return [*found, _verdict(ROOFLINE, over)]


def _verdict(comparison: Comparison, measured: dict[str, float] | None) -> dict[str, Any]:
    bar = BARS[comparison.bar]
    line: dict[str, Any] = {
        **dataclasses.asdict(comparison), "what": bar.what, "needed": bar.needed, "reach": bar.reach,
        "outcome": "not measured",
    }  # fmt: skip
    if measured is not None:
        line |= {"ratio": measured, "outcome": bar.outcome(measured["median"])}
    return line
