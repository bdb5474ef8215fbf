"""Every measurement from Python, one part after the other, and one report of it.

`python bench/run_all.py`: under half an hour on two cores; `--quick` is over in five, checks answers and
means nothing. Writes `suites.json` (pytest-benchmark), a folder a program and `report.html` into a folder of
its own. A part that fails is named in the report, the others run, and the exit code is 1.
"""

import subprocess
import sys
import time
from pathlib import Path

from render import html
from results import parser_of, read

BENCH = Path(__file__).resolve().parent
PROGRAMS = {
    "compare_stage": ("--rounds=12", "8 minutes"), "overlap": ("--rounds=150", "2 minutes"),
    "open_loop": ("", "5 minutes"), "publish": ("", "3 minutes"),
}  # fmt: skip
"""By name an option of a full run, and how long it takes on two cores."""


def parts(out: Path, *, quick: bool) -> dict[str, tuple[list[str], str]]:
    """Return by name the command of each part, and how long it takes."""
    suites = [sys.executable, "-m", "pytest", str(BENCH), f"--rootdir={BENCH.parent}", "--benchmark-only"]
    suites += ["-m", "not program", "-p", "no:cacheprovider", "--timeout=1200", "--benchmark-columns=median"]
    suites += [f"--benchmark-json={out / 'suites.json'}"]
    found = {"suites": (suites + ["--quick", "--benchmark-max-time=0.1"] * quick, "6 minutes")}
    for name, (option, takes) in PROGRAMS.items():
        command = [sys.executable, str(BENCH / f"{name}.py"), "--out", str(out / name)]
        found[name] = (command + ["--quick"] * quick + [option] * (bool(option) and not quick), takes)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run all parts and write the report; return the exit code."""
    parser = parser_of(__doc__, Path("runs/bench"))
    parser.add_argument("--bars", type=Path, default=BENCH / "results/bars.json", help="shown if it exists")
    parser.add_argument("--only", nargs="*", help="parts to run; none: only write the report again")
    given = parser.parse_args(arguments)
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    every, failed = parts(out, quick=given.quick), {}
    if unknown := set(given.only or ()) - set(every):
        parser.error(f"--only: {', '.join(sorted(unknown))}; expected some of {', '.join(every)}")
    for name, (command, takes) in every.items():
        if given.only is not None and name not in given.only:
            continue
        print(f"\n== {name}, about {takes}", flush=True)
        began = time.perf_counter()
        if code := subprocess.run(command, check=False).returncode:
            failed[name] = f"ended with {code}: {' '.join(command)}"
        print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)
    files = {"bars": given.bars, "suites": out / "suites.json"}
    files |= {name: out / name / "result.json" for name in PROGRAMS}
    found = [
        (read(file), file.parent if name in PROGRAMS else out)
        for name, file in files.items()
        if file.exists()
    ]
    report = out / "report.html"
    absent = [name for name, file in files.items() if not file.exists()]
    report.write_text(html(found, failed, absent), encoding="utf-8")
    for name, reason in failed.items():
        print(f"failed: {name} {reason}", file=sys.stderr)
    print(f"\nWritten: {report}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
