"""The bars as data: what is promised, one line each; every page that judges a figure takes it from here."""

import dataclasses
from collections.abc import Iterable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Bar:
    """A promise.

    Attributes:
        name: its key in ``bars.json``.
        what: the comparison in words.
        needed: the least that is good enough.
        reach: what is hoped for.
        better: which way is better than ``needed``.
        unit: of all three.
    """

    name: str
    what: str
    needed: float
    reach: float
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["ratio", "ms"] = "ratio"

    def holds(self, value: float) -> bool:
        """Return whether a value is good enough; one that is no number is not."""
        return value >= self.needed if self.better == "higher" else value <= self.needed

    def reached(self, value: float) -> bool:
        """Return whether a value is what was hoped for."""
        return value >= self.reach if self.better == "higher" else value <= self.reach

    def outcome(self, value: float) -> str:
        """Return ``reached``, ``met`` or ``missed``."""
        return "reached" if self.reached(value) else "met" if self.holds(value) else "missed"


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
