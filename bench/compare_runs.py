"""Figures of a saved run beside those of another one, of any program of bench/.

`python bench/compare_runs.py BASELINE CURRENT`, of two `result.json` or `bars.json`. Exits with 1 if a
figure is worse by more than a tenth, or is gone. Times of two machines cannot be compared. Suites:
`pytest bench --benchmark-compare`.
"""

import argparse
import sys
from pathlib import Path

from results import read

WORSE = 0.10


def main(baseline: str, current: str) -> int:
    runs = [read(Path(file)) for file in (baseline, current)]
    for where in dict.fromkeys(f"{run['program']}, {run['environment']['cpu']}" for run in runs):
        print(where)
    # Sections name sizes, and other sizes are other figures.
    before, now = (
        {f"{row['name']} ({part['title']})": row for part in run["sections"] for row in part["rows"]}
        for run in runs
    )
    code = 0
    for name, row in before.items():
        old, new = row["value"], now.get(name, {}).get("value")
        if old is not None:
            # How often as bad, whichever way is better; a figure that is gone is as bad as can be.
            bad, good = (new, old) if row["better"] == "lower" else (old, new)
            times = bad / good if bad and good else float("inf") if new is None else 1.0
            code |= times > 1 + WORSE
            mark = "WORSE" if times > 1 + WORSE else ""
            print(f"{mark:5} {name}: {old} -> {new} {row['unit']}, {times:.2f} times as bad")
    return int(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("baseline", help="the saved run")
    parser.add_argument("current", help="the run that is judged")
    sys.exit(main(**vars(parser.parse_args())))
