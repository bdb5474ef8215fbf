"""A row for each bar, whatever happened to its measurement."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bars.lines import Bar
from results import Row

RATIOS = ("share",)
"""Further figures that are ratios themselves."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A measurement."""

    value: float  # the median over the rounds, unless `how` says otherwise
    spread: tuple[float, float]  # its 25 % and 75 % quantiles over the rounds
    how: str  # sizes, rounds, and what was left out to be quick
    also: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further figures of the same run


class NotMeasuredError(Exception):
    """A bar cannot be measured with what was given; the message says what to give."""


class InconclusiveError(Exception):
    """A bar was measured, and the data do not say on which side of it the figure is."""


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
            found |= {name: _row(bars[name], values[name]) for name in names}
        except NotMeasuredError as error:
            found |= {name: bars[name].row(None, None, str(error), "not measured") for name in names}
        except InconclusiveError as error:
            found |= {name: bars[name].row(None, None, str(error), "inconclusive") for name in names}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            each(f"{', '.join(names)}: {reason}")
            found |= {name: bars[name].row(None, None, reason, "failed") for name in names}
    nothing = "nothing in this run measures it"
    return {n: found.get(n) or bar.row(None, None, nothing, "not measured") for n, bar in bars.items()}


def _row(bar: Bar, found: Value) -> Row:
    # Times of one machine say nothing beside another's, so they stay out where the bar is a ratio.
    shown = {name: x for name, x in found.also.items() if bar.unit == "ms" or name in RATIOS}
    notes = [found.how, *(f"{name.replace('_', ' ')} {x:.3g}" for name, x in shown.items() if x is not None)]
    return bar.row(found.value, found.spread, "; ".join(notes))


def exit_code(found: Mapping[str, Row], *, strict: bool) -> int:
    """Return 1 if a measurement failed; with ``strict`` also if a measured bar does not hold."""
    states = {row.also["holds"] for row in found.values()}
    return int("failed" in states or (strict and "NO" in states))
