"""What became of each bar, whatever happened to its measurement, for people and for machines."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bars.lines import Bar
from load.tables import table

RATIOS = ("share",)
"""Further figures that are ratios themselves."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A measurement.

    Attributes:
        value: the median over the rounds, unless ``how`` says otherwise.
        spread: its 25 % and 75 % quantiles over the rounds.
        how: sizes, rounds, and what was left out to be quick.
        also: further figures of the same run, by name; of a bar that is a ratio only `RATIOS` are written.
    """

    value: float
    spread: tuple[float, float]
    how: str
    also: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class NotMeasuredError(Exception):
    """A bar cannot be measured with what was given; says what to give."""


class InconclusiveError(Exception):
    """A bar was measured, and the data do not say on which side of it the figure is."""


Measurement = tuple[Sequence[str], Callable[[], Mapping[str, Value]]]
"""Names of bars, and what measures all of them."""


def measured(
    bars: Mapping[str, Bar], measurements: Iterable[Measurement], each: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, Any]]:
    """Measure bars; one that fails takes none of the others with it.

    Args:
        bars: by name.
        measurements: what measures them.
        each: told of each that failed.

    Returns:
        By name, in the order of ``bars``, what ``bars.json`` holds. Every bar is there: without a ``value``
        it has ``failed``, ``inconclusive`` or ``not_measured`` with the reason.
    """
    found: dict[str, dict[str, Any]] = {}
    for names, measure in measurements:
        try:
            values = measure()
            found |= {name: _value(bars[name], values[name]) for name in names}
        except NotMeasuredError as error:
            found |= {name: _without(bars[name], "not_measured", str(error)) for name in names}
        except InconclusiveError as error:
            found |= {name: _without(bars[name], "inconclusive", str(error)) for name in names}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            each(f"{', '.join(names)}: {reason}")
            found |= {name: _without(bars[name], "failed", reason) for name in names}
    nothing = "nothing in this run measures it"
    return {name: found.get(name) or _without(bar, "not_measured", nothing) for name, bar in bars.items()}


def _promised(bar: Bar) -> dict[str, Any]:
    return {
        "what": bar.what, "unit": bar.unit, "needed": bar.needed, "reach": bar.reach, "better": bar.better,
    }  # fmt: skip


def _value(bar: Bar, found: Value) -> dict[str, Any]:
    if not math.isfinite(found.value):
        return _without(bar, "failed", f"the measurement gave {found.value}, which is no figure")
    # Times of one machine say nothing beside another's, so they stay out where the bar is a ratio.
    also = found.also if bar.unit == "ms" else {name: x for name, x in found.also.items() if name in RATIOS}
    return {
        "value": found.value, **_promised(bar), "holds": bar.holds(found.value),
        "reached": bar.reached(found.value), "spread": list(found.spread), "how": found.how, **also,
    }  # fmt: skip


def _without(bar: Bar, why: str, reason: str) -> dict[str, Any]:
    return {"value": None, **_promised(bar), "holds": None, "reached": None, "spread": None, why: reason}


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return bars as a table in Markdown, and the reasons of what is not in it."""
    rows, reasons = [], []
    for name, bar in found.items():
        sign, unit = (">=", "<=")[bar["better"] == "lower"], " ms" if bar["unit"] == "ms" else ""
        wanted = (f"{sign} {bar['needed']:g}{unit}", f"{sign} {bar['reach']:g}{unit}")
        if bar["value"] is None:
            why = next(why for why in ("failed", "inconclusive", "not_measured") if why in bar)
            rows.append((name, bar["what"], "", *wanted, why.replace("_", " ")))
            reasons.append(f"{name}: {why.replace('_', ' ')}: {bar[why]}")
            continue
        low, high = bar["spread"]
        holds = "reached" if bar["reached"] else "yes" if bar["holds"] else "NO"
        shown = f"{bar['value']:.3g}{unit} ({low:.3g} to {high:.3g})"
        rows.append((name, bar["what"], shown, *wanted, holds))
    head = ("bar", "what", "measured (quartiles)", "needed", "reach for", "holds")
    return "\n".join((table(head, rows), *(["", *reasons] if reasons else []))) + "\n"


def exit_code(found: Mapping[str, Mapping[str, Any]], *, strict: bool) -> int:
    """Return 1 if a measurement failed; with ``strict`` also if a measured bar does not hold."""
    failed = any("failed" in bar for bar in found.values())
    missed = any(bar["holds"] is False for bar in found.values())
    return int(failed or (strict and missed))
