"""Times of a log as whole numbers of one unit: datetimes of any unit and zone, ISO 8601 text, epochs.

Numbers are epochs. Their unit follows from their size: seconds from 1973 to 5138, and milliseconds,
microseconds and nanoseconds of the same years, do not overlap. Smaller numbers are steps: an order without
dates. Datetimes without a zone are taken as UTC.
"""

import dataclasses
import datetime
import re
from typing import Any

import numpy as np

from aif_jax.data.tables import compute
from aif_jax.errors import DataError
from aif_jax.shown import shown

UNITS: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of epochs, and how many make a second."""

_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_SMALLEST = {"s": 10**8, "ms": 10**11, "us": 10**14, "ns": 10**17}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclasses.dataclass(frozen=True)
class Moments:
    """Times of rows.

    Attributes:
        values: int64 ``[n]``; anything where missing.
        missing: bool ``[n]``, or ``None`` if none is.
        unit: ``s``, ``ms``, ``us``, ``ns``, or ``step`` for an order without dates.
        origin: what the source held, for a reader.
    """

    values: np.ndarray
    missing: np.ndarray | None
    unit: str
    origin: str

    def in_unit(self, unit: str) -> "Moments":
        """Return the times in a finer unit."""
        if unit == self.unit:
            return self
        return dataclasses.replace(self, values=self.values * (UNITS[unit] // UNITS[self.unit]), unit=unit)


def read_moments(column: Any, what: str, unit: str | None = None) -> Moments:
    """Read a column of times.

    Args:
        column: an Arrow column.
        what: names it in errors.
        unit: of numbers: ``s``, ``ms``, ``us``, ``ns`` or ``step``; ``None`` to tell from their size.

    Raises:
        DataError: not times, or numbers of several units.
    """
    import pyarrow as pa

    pc = compute()

    if unit is not None and unit not in (*UNITS, "step"):
        raise DataError(f"time_unit: got {unit!r}, expected one of {', '.join(UNITS)}, step, or None.")
    kind, origin = column.type, str(column.type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column, origin = _parsed(column, what), "text in ISO 8601"
    elif pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s"))
    kind = column.type
    missing = np.asarray(column.is_null()) if column.null_count else None
    if pa.types.is_timestamp(kind):
        zone = f"zone {kind.tz}" if kind.tz else "no zone, taken as UTC"
        values = np.asarray(pc.fill_null(column.cast(pa.int64()), 0))
        return Moments(values, missing, kind.unit, f"{origin} ({zone})")
    if pa.types.is_integer(kind):
        values = np.asarray(pc.fill_null(column, 0)).astype(np.int64, copy=False)
    elif pa.types.is_floating(kind):
        numbers = np.asarray(pc.fill_null(column, np.nan)).astype(np.float64, copy=False)
        gone = ~np.isfinite(numbers)
        missing = gone if gone.any() else None
        numbers = np.where(gone, 0.0, numbers)
        if np.any(numbers != np.trunc(numbers)):  # fractions of seconds or milliseconds
            found = unit or _unit_of(numbers, missing, what)
            if found not in ("s", "ms"):
                raise DataError(
                    f"{what}: holds fractions, such as {numbers[numbers != np.trunc(numbers)][0]}, expected "
                    "datetimes, or epochs in s, ms, us or ns; convert it first."
                )
            scale = 10**6 // UNITS[found]
            values = np.round(numbers * scale).astype(np.int64)
            return Moments(values, missing, "us", f"epochs in {_WORDS[found]} with fractions")
        values = numbers.astype(np.int64)
    else:
        raise DataError(
            f"{what}: got {origin}, expected datetimes, ISO 8601 text, or epochs in s, ms, us or ns; convert "
            "it first."
        )
    found = unit or _unit_of(values, missing, what)
    words = "steps (numbers too small for dates)" if found == "step" else f"epochs in {_WORDS[found]}"
    return Moments(values, missing, found, words)


def common_unit(first: Moments, second: Moments) -> tuple[Moments, Moments]:
    """Return two columns of times in the finer unit of the two.

    Raises:
        DataError: one has dates and the other steps.
    """
    if "step" in (first.unit, second.unit) and first.unit != second.unit:
        raise DataError(
            f"time: the two tables hold {first.origin} and {second.origin}; give both the same clock, or "
            "name the unit with time_unit=."
        )
    if first.unit == "step":
        return first, second
    finer = max(first.unit, second.unit, key=UNITS.__getitem__)
    return first.in_unit(finer), second.in_unit(finer)


def duration(value: Any, unit: str, what: str) -> int | None:
    """Return a duration in a unit: a timedelta or text such as ``12h``; ``None`` for anything else.

    Raises:
        DataError: the times are steps, which have no duration.
    """
    if isinstance(value, np.timedelta64):
        value = value.astype("timedelta64[us]").astype(datetime.timedelta)
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        return None
    if unit == "step":
        raise DataError(
            f"{what}: got the duration {value!r}, but the times are steps without dates; give a share such "
            "as 0.1, or the unit with time_unit=."
        )
    return round(seconds * UNITS[unit])


def moment(value: Any, unit: str, what: str) -> int:
    """Return a point in time in a unit: a datetime, a date, or ISO 8601 text; without a zone UTC.

    Raises:
        DataError: not a point in time, or the times are steps.
    """
    try:
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day)
        if isinstance(value, datetime.datetime):
            if value.tzinfo is not None:
                value = value.astimezone(datetime.UTC).replace(tzinfo=None)
            micros = int(np.datetime64(value, "us").astype(np.int64))
        elif isinstance(value, np.datetime64) and not np.isnat(value):
            micros = int(value.astype("datetime64[us]").astype(np.int64))
        else:
            raise TypeError
    except (TypeError, ValueError):
        raise DataError(
            f"{what}: got {shown(value)}, expected a share such as 0.1, a duration such as '7d', or a "
            "date such as '2026-11-01'."
        ) from None
    if unit == "step":
        raise DataError(f"{what}: got a date, but the times are steps without dates; give a share.")
    return micros * UNITS[unit] // 10**6


def as_text(value: int, unit: str) -> str:
    """Return a time for a reader, to the second, in UTC."""
    if unit == "step":
        return f"{value:,}"
    return str(np.datetime64(int(value // UNITS[unit]), "s")).replace("T", " ")


def _unit_of(values: np.ndarray, missing: np.ndarray | None, what: str) -> str:
    """Tell the unit of epochs from their size."""
    known = values if missing is None else values[~missing]
    if not len(known):
        return "step"
    size = np.abs(known)
    if int(size.max()) < _SMALLEST["s"]:
        return "step"
    edges = np.array([0, *_SMALLEST.values()])
    counts = np.bincount(np.searchsorted(edges[1:], size, side="right"), minlength=5)
    names = ("less than any date since 1973", *(f"epochs in {_WORDS[name]}" for name in UNITS))
    present = np.flatnonzero(counts)
    if len(present) == 1:
        return tuple(UNITS)[int(present[0]) - 1]
    shown = []
    for place in present[np.argsort(-counts[present], kind="stable")]:
        inside = (size >= edges[place]) & (size < edges[place + 1] if place < 4 else True)
        shown.append(f"{counts[place]:,} rows are {names[place]} (such as {known[inside][0]})")
    raise DataError(
        f"{what}: mixes units: {', '.join(shown)}. Bring all rows to one unit; leave rows without a time "
        "empty, not 0."
    )


def _parsed(column: Any, what: str) -> Any:
    import pyarrow as pa

    pc = compute()

    column = pc.if_else(pc.equal(column, ""), None, column)
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    example = next((str(value) for value in column.drop_null()[:1].to_pylist()), "")[:80]
    raise DataError(
        f"{what}: cannot be read as times (the first is {example!r}); expected ISO 8601 such as "
        "'2026-11-30 20:15:00', all with or all without a zone; parse it first, as with pandas.to_datetime."
    )
