"""Figures of a saved run beside those of another one, of any program of bench/.

`python bench/compare_runs.py BASELINE CURRENT`, of two `result.json` or `bars.json`. Exits with 1 if a
figure is worse by more than a tenth, or is gone. Times of two machines cannot be compared. Suites:
`pytest bench --benchmark-compare`.
"""

import sys
from pathlib import Path
from typing import Any

from results import read

WORSE = 0.10


def worse(before: dict[str, Any], after: dict[str, Any] | None) -> float | None:
    """Return how many times worse a figure became: infinity if it is gone, ``None`` if there was none."""
    if before["value"] is None:
        return None
    if after is None or after["value"] is None:
        return float("inf")
    old, new = before["value"], after["value"]
    if before["better"] == "higher":
        old, new = new, old
    return new / old if old else float("inf") if new else 1.0


def main(arguments: list[str]) -> int:
    """Compare two files; return the exit code."""
    if len(arguments) != 2:
        sys.exit(f"{(__doc__ or '').strip()}\n\ngot {len(arguments)} files, expected two")
    runs = [read(Path(file)) for file in arguments]
    for where in dict.fromkeys(f"{run['program']}, {run['environment']['cpu']}" for run in runs):
        print(where)
    # Sections name sizes, and other sizes are other figures.
    before, now = (
        {f"{row['name']} ({part['title']})": row for part in run["sections"] for row in part["rows"]}
        for run in runs
    )
    found = {name: worse(row, now.get(name)) for name, row in before.items()}
    for name, times in found.items():
        if times is not None:
            mark, unit = "WORSE" if times > 1 + WORSE else "", before[name]["unit"]
            values = " -> ".join(str(row and row["value"]) for row in (before[name], now.get(name)))
            print(f"{mark:5} {name}: {values} {unit}, {times:.2f} times as bad")
    return int(any(times is not None and times > 1 + WORSE for times in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
