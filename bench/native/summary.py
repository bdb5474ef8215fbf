"""Gathers of the embedding cache beside other stores, as `cargo bench -p aif-bench` measured them.

`python bench/native/summary.py [target/criterion]`: medians, and ratios to the embedding cache.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results import Result, Row, Section, write


def read(folder: Path) -> dict[str, dict[str, float]]:
    """Return the median time in microseconds of each store, by benchmark group."""
    groups: dict[str, dict[str, float]] = {}
    for path in folder.glob("*/*/new/estimates.json"):
        name = json.loads((path.parent / "benchmark.json").read_text())
        median_us = json.loads(path.read_text())["median"]["point_estimate"] / 1e3
        groups.setdefault(name["group_id"], {})[name["value_str"] or name["function_id"]] = median_us
    return groups


def main() -> None:
    groups = read(Path(sys.argv[1] if len(sys.argv) > 1 else "target/criterion"))
    gathers = {name: times for name, times in groups.items() if "aif" in times}
    if not gathers:
        sys.exit("no gathers found: run `cargo bench -p aif-bench` first, or give the folder of its results")
    rows = []
    # By the size of the rows: a name reads `4096 rows of 256 bytes ...`.
    for name, times in sorted(gathers.items(), key=lambda group: (int(group[0].split()[3]), group[0])):
        ratios = {store: us / times["aif"] for store, us in sorted(times.items()) if store != "aif"}
        rows.append(Row(name, times["aif"], "us", also=ratios))
    text = "Other columns: the time of that store, as a multiple of the embedding cache's."
    result = Result(
        program="native/summary", title="Embedding cache beside other stores",
        question="How long does a batch of rows take to gather?", plan={},
        answers="Every batch was compared with the rows that were written before anything was timed.",
        sections=[Section("A batch", text, rows, "embedding cache, median")],
    )  # fmt: skip
    write(result, Path("runs/native"))


if __name__ == "__main__":
    main()
