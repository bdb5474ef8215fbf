"""Fuzzing of one target, or of each in a row, guided by coverage: ``make fuzz TARGET=score SECONDS=60``.

It needs Atheris, which exists for some releases of Python: ``pip install atheris``. A target begins with its
kept inputs (``tests/fuzz/seeds``) and what runs before it reached (``runs/fuzz``). An error that no target
expects is written there once for each line that raised it, and fuzzing goes on; so does it, in a new process,
after a hang (10 s), too much memory (2 GB) or a crash. ``--keep`` then adds the smallest inputs that reach
all that the corpus reaches to the kept ones, which ``tests/fuzz/test_seeds.py`` runs.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fuzz.seeds import add_seeds, read_seeds

WORK = Path(__file__).resolve().parents[2] / "runs" / "fuzz"
NAMES = (
    "strict_json", "schema", "model_config", "train_config", "description", "score", "update", "user",
    "manifest", "bundle", "snapshot", "change_log", "parquet", "saved_model", "run_identity", "retriever",
)  # fmt: skip
_KEPT_BYTES = 12_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="?", choices=NAMES, help="all of them, if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    found = 0
    for name in [given.target] if given.target else NAMES:
        runs = _fuzz(name, given.seconds)
        findings = sorted(path for path in (WORK / name / "findings").iterdir() if path.suffix != ".txt")
        found += len(findings)
        print(f"{name}: {given.seconds} s, {runs:,} inputs, {len(findings)} findings", flush=True)
        for path in findings:
            print(f"  {path}")
        if given.keep:
            _keep(name)
    return 1 if found else 0


def _fuzz(name: str, seconds: int) -> int:
    """Fuzz a target in processes of its own; return the number of inputs."""
    folder = WORK / name
    for part in ("corpus", "findings"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed in read_seeds(name):
        (folder / "corpus" / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    end, runs = time.monotonic() + seconds, 0
    while (left := round(end - time.monotonic())) > 0:
        options = [f"-max_total_time={left}", f"-artifact_prefix={folder}/findings/", "-print_final_stats=1"]
        runs += _child(name, [*options, "-max_len=4096", "-len_control=0", str(folder / "corpus")])
    return runs


def _keep(name: str) -> None:
    """Add the smallest inputs that reach all that the corpus reaches, until the kept ones have their size."""
    with tempfile.TemporaryDirectory() as chosen:
        _child(name, ["-merge=1", "-max_len=4096", chosen, str(WORK / name / "corpus")])
        inputs = sorted((path.read_bytes() for path in Path(chosen).iterdir()), key=len)
    add_seeds(name, inputs, max_bytes=_KEPT_BYTES)


def _child(name: str, options: list[str]) -> int:
    limits = ["-timeout=10", "-rss_limit_mb=2048", "-detect_leaks=0"]
    with (WORK / name / "log").open("w+") as log:
        subprocess.run(
            [sys.executable, "-m", "fuzz.run", "--child", name, *limits, *options],
            stderr=log,
            stdout=log,
            check=False,
        )
        log.seek(0)
        text = log.read()
    counts = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)\s", text, re.MULTILINE)
    if not counts:
        raise SystemExit(f"{name}: fuzzing did not begin:\n{text[-2000:]}")
    return int("".join(counts[-1]))


def _of_child(name: str, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["aif_jax"]):
        from fuzz.targets import TARGETS
    from fuzz.mutation import mutated

    findings, target = WORK / name / "findings", TARGETS[name]

    def tried(data: bytes) -> None:
        try:
            target(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            inner = [frame for frame in frames if "aif_jax" in frame.filename] or frames
            key = f"{type(error).__name__}-{Path(inner[-1].filename).stem}-{inner[-1].lineno}"
            if not (path := findings / key).exists():
                path.write_bytes(data)
                path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        return mutated(data, max_size, seed, atheris.Mutate)

    atheris.Setup([sys.argv[0], *options], tried, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _of_child(sys.argv[2], sys.argv[3:])
    sys.exit(main())
