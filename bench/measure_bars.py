"""All bars of the design side by side in one run: ratios that this machine measured just now.

`python bench/measure_bars.py`: under ten minutes on two cores; `--quick` is over in one, checks every answer
and means nothing. Prints a table and writes `bars.json`. Exits with 1 if a measurement failed; a bar that is
missed is said, and exits with 1 only with `--strict`.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from bars import of_cache, of_load, of_quality, of_stage, plan
from bars.found import exit_code, measured, page
from bars.lines import BARS
from load.progress import steps
from load.tables import where
from stage.environment import environment

STEPS = {"full": 36, "quick": 31}
RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the bars; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds; values mean nothing")
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the catalogue")
    parser.add_argument("--table", type=Path, help="table.json of studies/run.py, for the bars of quality")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--only", nargs="+", choices=BARS, help="measure these, and what comes with them")
    parser.add_argument("--out", type=Path, help="file of the results (default: bench/results/bars.json)")
    given = parser.parse_args(arguments)
    out = given.out or (Path("runs/bars-quick.json") if given.quick else RESULTS / "bars.json")
    sizes = plan.quick() if given.quick else plan.full(given.items)
    at, began = environment(), time.perf_counter()
    with steps(STEPS["quick" if given.quick else "full"]) as step, tempfile.TemporaryDirectory() as folder:
        shared = plan.Shared(sizes, Path(folder), step)
        every = [
            *of_cache.measurements(shared),
            *of_stage.measurements(shared, build_peaks=not given.quick),
            *of_load.measurements(shared),
            *of_quality.measurements(given.table),
        ]
        wanted = [one for one in every if given.only is None or set(one[0]) & set(given.only)]
        found = measured(BARS, wanted, lambda told: print(f"failed: {told}", file=sys.stderr))
    at["load_1_min_at_end"] = environment()["load_1_min"]
    for bar in found.values():
        bar["meaningful"], bar["where"], bar["date"] = sizes.meaningful, where(at), at["date"]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{where(at)}\n")
    if not sizes.meaningful:
        print("**A quick run: it checks answers, its values mean nothing.**\n")
    print(page(found))
    print(f"{time.perf_counter() - began:.0f} s; written: {out}")
    return exit_code(found, strict=given.strict)


if __name__ == "__main__":
    sys.exit(main())
