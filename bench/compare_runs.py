"""Figures that became slower or worse since a saved run.

`python bench/compare_runs.py BASELINE [CURRENT]`: each is a `result.json`, `bars.json` or JSON of
pytest-benchmark (medians are compared). Names every figure that is worse by more than a tenth, or is gone,
and exits with 1 if there is any. Times of two machines say nothing about each other; ratios a little.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from results import read

WORSE = 0.10
ROOT = Path(__file__).resolve().parent.parent
LAST = {"measure_bars": ROOT / "bench/results/bars.json", "pytest bench": ROOT / "runs/bench/suites.json"}
"""By program, the file that its last run wrote; other programs write into a folder of their name."""


def compared(baseline: dict[str, Any], current: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return a line for each figure that became worse, and one for each other figure.

    Raises:
        ValueError: the runs are of two programs.
    """
    if baseline["program"] != current["program"]:
        raise ValueError(
            f"the runs are of {baseline['program']} and of {current['program']}; give two of one program"
        )
    before, now = _figures(baseline), _figures(current)
    worse, others = [], [f"{name}: new" for name in now if name not in before]
    for name, row in before.items():
        old, new = row["value"], now.get(name, {}).get("value")
        if old is None:
            others.append(f"{name}: had no figure")
        elif new is None:
            worse.append(f"{name}: {old:.4g} {row['unit']} before, no figure now")
        else:
            # How often as bad, whichever way is better.
            pair = (new, old) if row["better"] == "lower" else (old, new)
            times = pair[0] / pair[1] if pair[1] else float("inf")
            change = f"{times - 1:.0%} worse" if times > 1 else f"{1 - times:.0%} better"
            (worse if times > 1 + WORSE else others).append(
                f"{name}: {old:.4g} -> {new:.4g} {row['unit']}, {change}"
            )
    return worse, others


def _figures(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    # Sections name sizes, and other sizes are other figures.
    return {f"{row['name']} ({part['title']})": row for part in result["sections"] for row in part["rows"]}


def main(arguments: list[str] | None = None) -> int:
    """Compare two files; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("baseline", type=Path, help="the saved run")
    parser.add_argument("current", type=Path, nargs="?", help="the run that is judged; else the last one")
    given = parser.parse_args(arguments)
    try:
        baseline = read(given.baseline)
        program = baseline["program"]
        current = read(given.current or LAST.get(program, ROOT / "runs/bench" / program / "result.json"))
        worse, others = compared(baseline, current)
    except (OSError, ValueError) as error:
        print(f"compare_runs: {error}", file=sys.stderr)
        return 2
    machines = [f"{r['environment']['cpu']}, {r['environment']['cores']} cores" for r in (baseline, current)]
    if machines[0] != machines[1]:
        print(f"Two machines: {machines[0]}; now {machines[1]}. Differences may be theirs.\n")
    print(*others, sep="\n")
    if worse:
        print(f"\nWorse by more than {WORSE:.0%}:", *worse, sep="\n  ")
    else:
        print(f"\nNothing is worse by more than {WORSE:.0%}.")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
