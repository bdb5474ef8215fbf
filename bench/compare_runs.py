"""What became slower or worse since a saved run.

`python bench/compare_runs.py BASELINE [CURRENT]`: both are JSON of pytest-benchmark (medians are compared) or
both a `bars.json` (values are). Names everything that is worse by more than a tenth, or has no figure any
more, and exits with 1 if there is any. Times of two machines say nothing about each other; ratios a little.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

WORSE = 0.10
ROOT = Path(__file__).resolve().parent.parent
LAST = {"benchmarks": ROOT / "runs/bench/suites.json", "bars": ROOT / "bench/results/bars.json"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a run; ``value`` is ``None`` where it has none."""

    value: float | None
    unit: str
    better: Literal["higher", "lower"]


@dataclasses.dataclass(frozen=True)
class Run:
    """Figures by name, which file they come from, and where they were measured."""

    file: Path
    kind: Literal["benchmarks", "bars"]
    machine: str
    figures: dict[str, Figure]


def read(file: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: the file is neither JSON of pytest-benchmark nor of bars.
    """
    try:
        held: Any = json.loads(file.read_text(encoding="utf-8"))
        if "benchmarks" in held:
            cpu, node = held["machine_info"]["cpu"], held["machine_info"]["machine"]
            # Groups name sizes, and other sizes are another benchmark.
            figures = {
                f"{one['fullname'].removeprefix('bench/')} ({one['group']})": Figure(
                    one["stats"]["median"], "s", "lower"
                )
                for one in held["benchmarks"]
            }
            machine = f"{cpu.get('brand_raw', node)}, {cpu.get('count', '?')} cores"
            return Run(file, "benchmarks", machine, figures)
        figures = {name: Figure(bar["value"], bar["unit"], bar["better"]) for name, bar in held.items()}
        (machine,) = {bar["where"].split(";")[0] for bar in held.values()}
        return Run(file, "bars", machine, figures)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} is neither what pytest-benchmark writes (--benchmark-json) nor a bars.json: "
            f"{type(error).__name__}: {error}"
        ) from error


def compared(baseline: Run, current: Run) -> tuple[list[str], list[str]]:
    """Return a line for each regression, and one for each other figure.

    Raises:
        ValueError: the runs are of two kinds.
    """
    if baseline.kind != current.kind:
        raise ValueError(
            f"{baseline.file} holds {baseline.kind}, {current.file} holds {current.kind}; "
            "compare two of a kind"
        )
    worse, others = [], []
    for name, before in baseline.figures.items():
        now = current.figures.get(name)
        if before.value is None:
            others.append(f"{name}: had no figure")
        elif now is None or now.value is None:
            worse.append(f"{name}: {before.value:.4g} {before.unit} before, no figure now")
        else:
            # How often as bad, whichever way is better.
            pair = (now.value, before.value) if before.better == "lower" else (before.value, now.value)
            times = pair[0] / pair[1] if pair[1] else float("inf")
            change = f"{times - 1:.0%} worse" if times > 1 else f"{1 - times:.0%} better"
            line = f"{name}: {before.value:.4g} -> {now.value:.4g} {now.unit}, {change}"
            (worse if times > 1 + WORSE else others).append(line)
    others += [f"{name}: new" for name in current.figures if name not in baseline.figures]
    return worse, others


def main(arguments: list[str] | None = None) -> int:
    """Compare two files; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("baseline", type=Path, help="the saved run")
    parser.add_argument(
        "current", type=Path, nargs="?",
        help="the run that is judged; else the last of its kind that `make bench` or `make bars` wrote",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        baseline = read(given.baseline)
        current = read(given.current or LAST[baseline.kind])
        worse, others = compared(baseline, current)
    except (OSError, ValueError) as error:
        print(f"compare_runs: {error}", file=sys.stderr)
        return 2
    if baseline.machine != current.machine:
        print(f"Two machines: {baseline.machine}; now {current.machine}. Differences may be theirs.\n")
    print(*others, sep="\n")
    if worse:
        print(f"\nWorse by more than {WORSE:.0%}:", *worse, sep="\n  ")
    else:
        print(f"\nNothing is worse by more than {WORSE:.0%}.")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
