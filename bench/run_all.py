"""Every measurement from Python, one part after the other, and one report of it.

`python bench/run_all.py`: under half an hour on two cores; `--quick` is over in five minutes, checks answers
and means nothing. Writes `suites.json` (pytest-benchmark), a folder a program and `report.md`. A part that
fails is named in the report, the others run, and the exit code is 1.
"""

import subprocess
import sys
from pathlib import Path

from aif_jax.files import make_directory, write_atomic
from render import markdown
from results import parser_of, read

BENCH = Path(__file__).resolve().parent
PROGRAMS = {"compare_stage": ["--rounds=12"], "overlap": ["--rounds=150"], "open_loop": [], "publish": []}
"""By name the options of a full run."""


def parts(out: Path, *, quick: bool) -> dict[str, list[str]]:
    """Return by name the command of each part."""
    suites = [sys.executable, "-m", "pytest", str(BENCH), f"--rootdir={BENCH.parent}", "--benchmark-only"]
    suites += ["-m", "not program", "-p", "no:cacheprovider", "--timeout=1200", "--benchmark-columns=median"]
    suites += [f"--benchmark-json={out / 'suites.json'}"]
    found = {"suites": suites + ["--quick", "--benchmark-max-time=0.1"] * quick}
    for name, options in PROGRAMS.items():
        command = [sys.executable, str(BENCH / f"{name}.py"), "--out", str(out / name)]
        found[name] = command + (["--quick"] if quick else options)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(__doc__, Path("runs/bench"))
    parser.add_argument("--bars", type=Path, default=BENCH / "results/bars.json", help="shown if it exists")
    given = parser.parse_args(arguments)
    out: Path = given.out.resolve()
    make_directory(out)
    failed = {}
    for name, command in parts(out, quick=given.quick).items():
        print(f"\n== {name}", flush=True)
        if code := subprocess.run(command, check=False).returncode:
            failed[name] = f"ended with {code}: {' '.join(command)}"
    files = {"bars": given.bars, **{name: out / name / "result.json" for name in PROGRAMS}}
    pages = [f"Failed: {name} {reason}\n" for name, reason in failed.items()]
    pages += [f"Not in this run: {name}.\n" for name, file in files.items() if not file.exists()]
    print("\n", *pages, f"Written: {out / 'report.md'}")
    pages += [markdown(read(file)) for file in files.values() if file.exists()]
    write_atomic(out / "report.md", "\n".join(pages))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
