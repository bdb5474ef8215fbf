"""All bars of the design side by side in one run: ratios that this machine measured just now.

`python bench/measure_bars.py`: under ten minutes on two cores; `--quick` is over in one, checks every answer
and means nothing. Prints a table and writes `bars.json`. Exits with 1 if a measurement failed; a bar that is
missed is shown, and exits with 1 only with `--strict`.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from aif_jax.files import make_directory, write_atomic
from bars import of_cache, of_load, of_quality, of_stage, plan
from bars.lines import BARS, exit_code, measured
from render import markdown
from results import Result, Section, environment, parser_of, sizes

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(__doc__, RESULTS / "bars.json")
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the catalogue")
    parser.add_argument("--table", type=Path, help="table.json of studies/run.py, for the bars of quality")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--only", nargs="+", choices=BARS, help="measure these, and what comes with them")
    given = parser.parse_args(arguments)
    quick_out = given.quick and given.out == parser.get_default("out")
    out = Path("runs/bars-quick.json") if quick_out else given.out
    size = plan.plan_of(given.items, quick=given.quick)
    began = time.perf_counter()
    result = Result(
        program="measure_bars", title="Bars of the design",
        question="Does what the design promises hold on this machine?", plan=sizes(size.workload),
        answers="Each is a ratio or a time of this run; every answer was checked before it was timed.",
        meaningful=size.meaningful, command="python bench/measure_bars.py",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        shared = plan.Shared(size, Path(folder))
        every = [
            *of_cache.measurements(shared),
            *of_stage.measurements(shared, build_peaks=not given.quick),
            *of_load.measurements(shared),
            *of_quality.measurements(given.table),
        ]
        wanted = [one for one in every if given.only is None or set(one[0]) & set(given.only)]
        found = measured(BARS, wanted, lambda line: print(f"failed: {line}", file=sys.stderr))
    result.sections.append(Section("Bars", rows=list(found.values()), value="measured (quartiles)"))
    result.environment["load_1_min_at_end"] = environment()["load_1_min"]
    held = json.loads(json.dumps(result.to_json(), allow_nan=False))
    make_directory(out.parent)
    write_atomic(out, json.dumps(held, indent=1) + "\n", begins=b"{")
    print(f"\n{markdown(held)}\n{time.perf_counter() - began:.0f} s; written: {out}")
    return exit_code(found, strict=given.strict)


if __name__ == "__main__":
    sys.exit(main())
