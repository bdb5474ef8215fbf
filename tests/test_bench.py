"""Benchmarks: collected without the packages of other engines, and their tables fit a terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKED = """
import sys

sys.modules.update(dict.fromkeys(("onnx", "onnxruntime", "torch")))  # as if absent
import pytest

sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.thorough
def test_bench_without_other_engines_runs_and_its_table_fits_a_terminal(tmp_path: Path) -> None:
    arguments = ["bench/test_scheduler.py", "--quick", f"--benchmark-json={tmp_path / 'times.json'}"]
    # A worker of pytest-xdist measures nothing.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments, "--benchmark-max-time=0.01", "--color=no"],
        cwd=ROOT, env={**own, "COLUMNS": "120"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    table = [line for line in done.stdout.splitlines() if "thread pool" in line or line.startswith("Name")]
    assert len(table) >= 2
    assert max(map(len, done.stdout.splitlines())) <= 120
