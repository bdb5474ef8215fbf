"""Print what `cargo bench -p aif-bench` measured as Markdown: medians, and ratios to the embedding cache.

python bench/native/summary.py [target/criterion]
"""

import json
import sys
from pathlib import Path


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
    peers = sorted({store for times in gathers.values() for store in times} - {"aif", "array_by_position"})
    print("| a batch of | embedding cache, µs | array by position | " + " | ".join(peers) + " |")
    print("|---|---|---|" + "---|" * len(peers))
    for name, times in sorted(gathers.items(), key=lambda group: _order(group[0])):
        ratios = [f"{times[store] / times['aif']:.2f}" for store in ["array_by_position", *peers]]
        print(f"| {name} | {times['aif']:.0f} | " + " | ".join(ratios) + " |")


def _order(name: str) -> tuple[int, str]:
    """Order groups by the size of their rows: the name reads `4096 rows of 256 bytes ...`."""
    return int(name.split()[3]), name


if __name__ == "__main__":
    main()
