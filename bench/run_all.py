"""Everything that is measured from Python, one part after the other, and one report of it.

`python bench/run_all.py`: under forty minutes on two cores; `--quick` is over in ten, checks answers and
means nothing. Writes `suites.json` (pytest-benchmark), a folder a program and `report.html` into a folder of
its own. A part that fails is named in the report, the others go on, and the exit code is 1.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from report.page import Results, page
from stage.environment import environment

BENCH = Path(__file__).resolve().parent


def parts(out: Path, *, quick: bool) -> dict[str, tuple[list[str], str]]:
    """Return by name what is run, and how long it takes on two cores."""
    python = sys.executable
    suites = [python, "-m", "pytest", str(BENCH), "-m", "not program", f"--rootdir={BENCH.parent}"]
    suites += ["--benchmark-only", f"--benchmark-json={out / 'suites.json'}", "--benchmark-columns=median"]
    suites += ["-p", "no:cacheprovider", "--timeout=1200"]
    programs = {
        "stage": ("compare_stage.py", ["--rounds", "12"], "9 minutes"),
        "overlap": ("overlap.py", ["--rounds", "150"], "2 minutes"),
        "open_loop": ("open_loop.py", [], "5 minutes"),
        "publish": ("publish.py", [], "3 minutes"),
        "item_index": ("item_index.py", [], "5 minutes"),
        "faults": ("faults.py", [], "3 minutes"),
        "scheduler": ("compare_scheduler.py", [], "4 minutes"),
    }
    found = {"suites": ([*suites, "--quick", "--benchmark-max-time=0.1"] if quick else suites, "6 minutes")}
    for name, (program, options, takes) in programs.items():
        folder = out / name
        where = ["--record", str(folder / "page.md")] if name == "scheduler" else ["--out", str(folder)]
        command = [python, str(BENCH / program), *where, *(["--quick"] if quick else options)]
        found[name] = (command, takes)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run all parts and write the report; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds; times mean nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of everything")
    parser.add_argument("--bars", type=Path, default=BENCH / "results/bars.json", help="shown if it exists")
    parser.add_argument("--only", nargs="*", help="parts to run; none: only write the report again")
    given = parser.parse_args(arguments)
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    every = parts(out, quick=given.quick)
    if unknown := set(given.only or ()) - set(every):
        parser.error(f"--only: {', '.join(sorted(unknown))}; expected some of {', '.join(every)}")
    wanted = every if given.only is None else {name: every[name] for name in given.only}
    at, failed = environment(), {}
    for number, (name, (command, takes)) in enumerate(wanted.items(), 1):
        print(f"\n== {number}/{len(wanted)} {name}, about {takes}", flush=True)
        began = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)
        if code:
            failed[name] = f"ended with {code}: {' '.join(command)}"
    file = out / "report.html"
    file.write_text(page(Results(out, given.bars), at, failed), encoding="utf-8")
    for name, reason in failed.items():
        print(f"failed: {name} {reason}", file=sys.stderr)
    print(f"\nWritten: {file}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
