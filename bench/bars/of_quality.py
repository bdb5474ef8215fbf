"""Bars of quality, read from the table that `bench/studies/run.py` writes; training it takes hours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bars.lines import InconclusiveError, Measurement, NotMeasuredError, Value

KINDS = {"quality": "growing", "quality_frozen": "frozen"}
"""By bar, which histories of the table it is about."""


def measurements(table: Path | None) -> list[Measurement]:
    def reading(bar: str) -> Measurement:
        return (bar,), lambda: {bar: _read(table, KINDS[bar])}

    return [reading(bar) for bar in KINDS]


def _read(path: Path | None, kind: str) -> Value:
    if path is None:
        raise NotMeasuredError(
            "give the table.json of bench/studies/run.py with --table, or TABLE=... to make bars"
        )
    table: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not table.get("lost"):
        raise NotMeasuredError(f"{path} has no `lost`: study the variants aif, exact and cold together")
    lost = table["lost"][kind]
    gain = lost["gain"]
    said = f"exact gains {gain['value']:+.4f} ± {gain['standard_error']:.4f} GAUC over cold"
    if lost["upper"] is None:
        raise InconclusiveError(
            f"{said}, less than 4 standard errors, so a share of it says nothing ({path})"
        )
    how = (
        f"{table['data']}, {table['seeds']} seeds, {kind} histories; {said}; the upper 95 % bound of the "
        f"share lost; quartiles: share and bound; share {lost['share']:.3g}; from {path}"
    )
    return Value(lost["upper"], (lost["share"], lost["upper"]), how)
