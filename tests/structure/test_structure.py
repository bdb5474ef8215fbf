"""The structure that people read: no circles of imports, and a short road through one request."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from circles import circles

from support.processes import shared_compilations

HERE = Path(__file__).parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / script), *arguments]
    environment = os.environ | shared_compilations()
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}}, [["a", "b", "c"], ["d", "e"]]),
    ],
)
def test_circles_are_modules_that_lead_to_each_other(
    imports: dict[str, set[str]], expected: list[list[str]]
) -> None:
    assert circles(imports) == expected


def test_the_package_has_no_circles_of_imports() -> None:
    done = run("circles.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "0 circles, the largest of 0 modules\n"


@pytest.mark.thorough
def test_a_plain_request_runs_few_functions_in_few_files_as_the_design_says() -> None:
    done = run("count_calls.py", "--max-functions", "65", "--max-files", "16", "--show")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    *calls, last = done.stdout.splitlines()
    assert json.loads(last)["functions_of_ours"] > 10
    order = list(dict.fromkeys(line.split()[1] for line in calls))
    design = (HERE.parents[1] / "DESIGN.md").read_text(encoding="utf-8")
    section = design.partition("## How a request runs")[2].partition("\n## ")[0]
    assert re.findall(r"^\d+\. `([a-z_/]+\.py)`", section, re.MULTILINE) == order
