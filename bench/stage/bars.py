"""The bars that the stage is held to, and how often a rival takes its time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from stage import contenders
from stage.timing import Timing


@dataclasses.dataclass(frozen=True)
class Bar:
    """A ratio that is promised.

    Attributes:
        what: the comparison in words.
        rival: the contender that should take longer.
        ours: the contender that should be faster.
        bar: the least ratio that is good enough.
        reach: the ratio hoped for.
    """

    what: str
    rival: str
    ours: str
    bar: float
    reach: float


BARS = (
    Bar("float32 against the sequential model in JAX", contenders.SEQUENTIAL, contenders.STAGE, 8, 12),
    Bar("16 bit against the same", contenders.SEQUENTIAL, f"{contenders.STAGE}, bfloat16", 12, 18),
    Bar("float32 against ONNX Runtime", contenders.ONNX, contenders.STAGE, 5, 8),
    Bar("float32 against the hand-rolled alternative", contenders.HAND_ROLLED, contenders.STAGE, 3, 6),
)
ROOFLINE_BAR, ROOFLINE_REACH = 2.0, 1.4


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
    for bar in BARS:
        line: dict[str, Any] = {**dataclasses.asdict(bar), "outcome": "not measured"}
        if {bar.rival, bar.ours} <= times.keys():
            measured = ratio(times, bar.rival, bar.ours)
            line |= {"ratio": measured, "outcome": _outcome(measured["median"], bar.bar, bar.reach)}
        found.append(line)
    line = {
        "what": "float32 over the roofline (lower is better)", "rival": "floor", "ours": contenders.STAGE,
        "bar": ROOFLINE_BAR, "reach": ROOFLINE_REACH, "outcome": "not measured",
    }  # fmt: skip
    if floor_ms is not None and stage is not None:
        quantiles = {"median": 0.5, "p25": 0.25, "p75": 0.75}
        over = {name: stage.quantile(share) / floor_ms for name, share in quantiles.items()}
        line |= {"ratio": over, "outcome": _outcome(-over["median"], -ROOFLINE_BAR, -ROOFLINE_REACH)}
    return [*found, line]


def _outcome(value: float, bar: float, reach: float) -> str:
    if value >= reach:
        return "reached"
    return "met" if value >= bar else "missed"
