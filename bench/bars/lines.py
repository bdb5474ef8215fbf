"""The bars as data, and a row for each of them, whatever happened to its measurement."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from results import Row


@dataclasses.dataclass(frozen=True)
class Bar:
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


BARS = {bar.name: bar for bar in (
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
)}  # fmt: skip
"""In the order of the table."""


class Value(NamedTuple):
    value: float  # the median over the rounds, unless `how` says otherwise
    spread: tuple[float, float]  # its 25 % and 75 % quantiles over the rounds
    how: str  # sizes, rounds, further figures, and what was left out to be quick


class NotMeasuredError(Exception):
    """A bar cannot be measured with what was given; the message says what to give."""

    holds = "not measured"


class InconclusiveError(Exception):
    """A bar was measured, and the data do not say on which side of it the figure is."""

    holds = "inconclusive"


Measurement = tuple[Sequence[str], Callable[[], Mapping[str, Value]]]
"""Names of bars, and the function that measures all of them."""


def measured(
    bars: Mapping[str, Bar], measurements: Iterable[Measurement], each: Callable[[str], None] = lambda _: None
) -> dict[str, Row]:
    """Return a row for every bar, in their order; one that fails takes none of the others with it.

    One without a value ``failed``, is ``inconclusive`` or ``not measured``, by its column ``holds``, and its
    note says why. ``each`` is called with a line for each that failed.
    """
    found: dict[str, Row] = {}
    for names, measure in measurements:
        try:
            values = measure()
            found |= {name: bars[name].row(*values[name]) for name in names}
        except (NotMeasuredError, InconclusiveError) as error:
            found |= {name: bars[name].row(None, None, str(error), error.holds) for name in names}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            each(f"{', '.join(names)}: {reason}")
            found |= {name: bars[name].row(None, None, reason, "failed") for name in names}
    nothing = "nothing in this run measures it"
    return {n: found.get(n) or bar.row(None, None, nothing, "not measured") for n, bar in bars.items()}


def exit_code(found: Mapping[str, Row], *, strict: bool) -> int:
    """Return 1 if a measurement failed; with ``strict`` also if a measured bar does not hold."""
    states = {row.also["holds"] for row in found.values()}
    return int("failed" in states or (strict and "NO" in states))
