"""The bars as data, one line each; every page that judges a figure takes it from here."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from results import Row


@dataclasses.dataclass(frozen=True)
class Bar:
    """A promise."""

    name: str  # its row in `bars.json`
    what: str  # the comparison in words
    needed: float  # the least that is good enough
    reach: float  # the value that is hoped for
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["ratio", "ms"] = "ratio"

    def outcome(self, value: float) -> Literal["reached", "yes", "NO"]:
        """Return whether a value holds, and whether it is even what was hoped for; not a number does not."""
        sign = 1 if self.better == "higher" else -1
        if sign * value >= sign * self.reach:
            return "reached"
        return "yes" if sign * value >= sign * self.needed else "NO"

    def row(
        self, value: float | None, quartiles: tuple[float, float] | None, note: str = "", holds: str = ""
    ) -> Row:
        """Return a figure beside what is promised; without one, ``holds`` and ``note`` say why."""
        if value is not None and not math.isfinite(value):
            return self.row(None, None, f"the measurement gave {value}, which is not a figure", "failed")
        sign, unit = (">=", "<=")[self.better == "lower"], " ms" if self.unit == "ms" else ""
        also = {
            "what": self.what, "needed": f"{sign} {self.needed:g}{unit}",
            "reach for": f"{sign} {self.reach:g}{unit}",
            "holds": self.outcome(value) if value is not None else holds,
        }  # fmt: skip
        return Row(self.name, value, self.unit, quartiles, better=self.better, also=also, note=note)


def named(bars: Iterable[Bar]) -> dict[str, Bar]:
    """Return bars by name."""
    return {bar.name: bar for bar in bars}


BARS = named(
    (
        Bar("stage_float32", "stage in float32, times faster than the sequential model in JAX", 8, 12),
        Bar("stage_bfloat16", "stage in 16 bit, times faster than the sequential model in JAX", 12, 18),
        Bar("stage_onnx", "stage in float32, times faster than ONNX Runtime", 5, 8),
        Bar("stage_hand_rolled", "stage in float32, times faster than the hand-rolled alternative", 3, 6),
        Bar("stage_roofline", "stage in float32 over the roofline", 2, 1.4, "lower"),
        Bar(
            "overlap_sleeps", "p50 beyond max(retrieval, user side) + stage, retrieval sleeps",
            0.3, 0.1, "lower", "ms",
        ),
        Bar(
            "overlap_coroutine", "p50 beyond max(retrieval, user side) + stage, retrieval is a coroutine",
            0.3, 0.1, "lower", "ms",
        ),
        Bar("saturation", "requests a second at saturation, cold user states, times sequential", 5, 8),
        Bar("publish_p99", "p99 during a publish over p99 before", 1.2, 1.0, "lower"),
        Bar("cache_gather", "gather of item rows by key over NumPy take by position", 1.0, 0.7, "lower"),
        Bar("cache_beside_writer", "reader's rate beside a writer, share of its rate alone", 0.9, 0.98),
        Bar(
            "quality", "gain of exact over cold in GAUC that aif loses, upper 95 % bound",
            0.25, 0.0, "lower",
        ),
        Bar(
            "quality_frozen", "the same with histories that end where the test part begins",
            0.25, 0.0, "lower",
        ),
    )
)  # fmt: skip
"""In the order of the table."""
