"""The suites' medians, group by group, from what pytest-benchmark wrote."""

from collections import defaultdict
from typing import Any

from report.markup import bar, table

_OURS = ("stage", "native", "cache", "scheduler", "known", "new_user", "rows_are", "snapshot", "aif")


def sentence(name: str) -> str:
    """Return the name of a benchmark as a sentence: its parameter comes last."""
    words, _, parameter = name.removeprefix("test_").partition("[")
    return ": ".join(filter(None, (words.replace("_", " "), parameter.rstrip("]"))))


def time(seconds: float) -> str:
    """Return seconds in a unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def section(held: dict[str, Any]) -> str:
    """Return a table for each group, the fastest first; bars are as long as the medians are."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in held["benchmarks"]:
        groups[one["group"] or one["fullname"].partition("::")[0]].append(one)
    parts = []
    for group, every in groups.items():
        every.sort(key=lambda one: one["stats"]["median"])
        fastest, slowest = (every[place]["stats"]["median"] for place in (0, -1))
        rows = []
        for one in every:
            stats, extra = one["stats"], one.get("extra_info", {})
            ours = any(word in one["name"] for word in _OURS)
            notes = "; ".join(
                f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
                for name, value in extra.items()
                if isinstance(value, float | str)
            )
            rows.append(
                (
                    sentence(one["name"]), time(stats["median"]),
                    f"{time(stats['q1'])} to {time(stats['q3'])}", f"{stats['median'] / fastest:.2f}",
                    bar(stats["median"] / slowest, ours=ours), notes,
                )
            )  # fmt: skip
        head = ("", "median", "quartiles", "times the fastest", "", "")
        parts.append(f"<h4>{group}</h4>" + table(head, rows, raw=frozenset({4})))
    return f'<div class="suite">{"".join(parts)}</div>'
