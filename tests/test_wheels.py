"""Platforms of the wheels, and licenses of what they bundle."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_wheels_workflow_builds_every_platform_of_the_project() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    platforms = re.findall(r"platform: (\w+), runner", workflow)
    pythons = {name.split("-", 1)[0] for name in settings["build"]}
    assert pythons == {"cp311", "cp314t"}
    assert sorted(settings["build"]) == sorted(f"{python}-{each}" for python in pythons for each in platforms)


def test_wheels_oldest_python_is_that_of_the_stable_abi() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    features = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["dependencies"]
    assert (project["requires-python"], features["pyo3"]["features"]) == (">=3.11", ["abi3-py311"])


def test_wheels_third_party_page_names_every_crate() -> None:
    tree = subprocess.run(
        ["cargo", "tree", "-p", "aif-py", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    crates = {line.split()[0] for line in tree.stdout.splitlines() if line} - {"aif-core", "aif-py"}
    page = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ([a-z0-9_-]+) \| .*[A-Z]", page, re.MULTILINE)) == crates
