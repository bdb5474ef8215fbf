"""Pages of results in Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Template

Held = Mapping[str, Any]
"""A result as JSON, see `results.Result`."""


def markdown(result: Held) -> str:
    template = Template((Path(__file__).parent / "page.md.j2").read_text(encoding="utf-8"))
    text = template.render(result=result, where=where(result["environment"]), table_of=table_of)
    return text.strip() + "\n"


def where(at: Held) -> str:
    """Return in words where and on what something was measured."""
    versions = {"device": "device", "jax": "jax", "numpy": "NumPy", "python": "Python"}
    words = [f"{at['cpu']}, {at['cores']} cores, {at['memory_gb']} GB, {at['system']}"]
    words += [f"{name} {at[key]}" for key, name in versions.items() if key in at]
    words.append(f"commit {at['commit']}{' with changes' if at['changed_since_commit'] else ''}")
    words.append(f"load before and after {at['load_1_min']} and {at.get('load_1_min_at_end', 'unknown')}")
    return "; ".join(words)


def table_of(section: Held) -> dict[str, Any]:
    """Return head and rows of a section's table; empty columns are left out."""
    rows, units = section["rows"], {row["unit"] for row in section["rows"]}
    unit = units.pop() if len(units) == 1 else None
    value = section["value"] + (f", {unit}" if unit and unit != "ratio" else "")
    also = list(dict.fromkeys(name for row in rows for name in row["also"]))
    head = ["", value, section["ratio"], *also, "note"]
    lines = [
        [
            row["name"], _spread(row, "" if unit is not None else row["unit"]), number(row["ratio"]),
            *(number(row["also"].get(name)) for name in also), row["note"],
        ]
        for row in rows
    ]  # fmt: skip
    kept = [place for place in range(len(head)) if place == 0 or any(line[place] for line in lines)]
    return {
        "head": [head[place] for place in kept],
        "rows": [[line[place].replace("|", "\\|") for place in kept] for line in lines],
    }


def _spread(row: Held, unit: str) -> str:
    if row["value"] is None:
        return ""
    text = f"{number(row['value'])} {unit if unit != 'ratio' else ''}".strip()
    return f"{text} ({' to '.join(map(number, row['quartiles']))})" if row["quartiles"] else text


def number(value: float | str | None) -> str:
    """Return a figure with three significant digits and thousands apart; words as they are."""
    if value is None or isinstance(value, str):
        return value or ""
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
