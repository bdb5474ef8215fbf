"""The real-time stage against what people would use instead, and against what the machine can do.

`python bench/compare_stage.py`: ten minutes on two cores; `--quick` is over in one and only checks answers.
Writes results, pictures and a page of tables into a folder of its own, and the page to `--record` too.
"""

import argparse
import json
from pathlib import Path

from stage import plots, record, sizes
from stage.run import run


def main(arguments: list[str] | None = None) -> Path:
    """Run the comparison; return the folder with the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds; times mean nothing")
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the catalogue")
    parser.add_argument("--rounds", type=int, default=40, help="timed rounds of each case")
    parser.add_argument("--out", type=Path, default=Path("runs/stage"), help="folder of the results")
    parser.add_argument("--record", type=Path, help="where the page of tables is written besides")
    given = parser.parse_args(arguments)
    plan = sizes.quick() if given.quick else sizes.full(given.items, given.rounds)
    results = run(plan, build_peaks=not given.quick)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    written = plots.draw(results, given.out)
    page = record.page(results)
    for path in (given.out / "page.md", given.record):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page)
            written.append(path)
    print(page)
    print("Written:", *written, sep="\n  ")
    return given.out


if __name__ == "__main__":
    main()
