"""Gathers of the embedding cache beside other stores, as `cargo bench -p aif-bench` measured them.

`python bench/native/summary.py [target/criterion]`: medians, and ratios to the embedding cache.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

groups: dict[str, dict[str, float]] = defaultdict(dict)
for path in Path(sys.argv[1] if len(sys.argv) > 1 else "target/criterion").glob("*/*/new/estimates.json"):
    name = json.loads((path.parent / "benchmark.json").read_text())
    median_us = json.loads(path.read_text())["median"]["point_estimate"] / 1e3
    groups[name["group_id"]][name["value_str"] or name["function_id"]] = median_us
gathers = {name: times for name, times in groups.items() if "aif" in times}
if not gathers:
    sys.exit("no gathers found: run `cargo bench -p aif-bench` first, or give the folder of its results")
# By the size of the rows: a name reads `4096 rows of 256 bytes ...`.
for name, times in sorted(gathers.items(), key=lambda group: (int(group[0].split()[3]), group[0])):
    ours = times.pop("aif")
    rivals = ", ".join(f"{store} {us / ours:.2f} times" for store, us in sorted(times.items()))
    print(f"{name}: embedding cache {ours:.1f} us; {rivals}")
