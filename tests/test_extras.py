"""Extras: the table is that of pyproject.toml, and whoever needs an absent one is told its name."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aif_jax.data import Dataset
from aif_jax.errors import MissingExtraError
from aif_jax.evaluation import Evaluation, picture
from aif_jax.extras import EXTRAS, needs, versions

ROOT = Path(__file__).resolve().parent.parent

WITHOUT = """
import importlib, sys

blocked = set(sys.argv[1].split(","))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in blocked or name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import aif_jax, aif_jax.cli.app, aif_jax.doctor, aif_jax.integrations.redis, aif_jax.integrations.usearch
for module in sys.argv[2:]:
    package, _, name = module.partition(":")
    try:
        found = importlib.import_module(package)
        if name:
            getattr(found, name)
    except ImportError as error:
        print(module, type(error).__name__, error, sep="|")
    else:
        print(module, "imported", "", sep="|")
"""


def without(modules: set[str], *imported: str) -> dict[str, tuple[str, str]]:
    """Import modules in a process that lacks others; return the error's class and text of each."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, ",".join(sorted(modules)), *imported],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split("|") for line in done.stdout.splitlines()]
    return {module: (kind, text) for module, kind, text in lines}


def test_extras_table_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        name: {re.split(r"[<>=\[]", line)[0] for line in lines} - {"aif_jax"}
        for name, lines in project["optional-dependencies"].items()
        if name not in ("dev", "bench")  # of a checkout
    }
    assert {name: set(extra.modules.values()) for name, extra in EXTRAS.items()} == declared


def test_extras_page_lists_each() -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)) == set(EXTRAS)


def test_package_without_any_extra_imports_and_names_them() -> None:
    expected = {
        "aif_jax.training": ("grain", "train"),
        "aif_jax.evaluation": ("grain", "train"),
        "aif_jax:fit": ("grain", "train"),
        "aif_jax.integrations.parquet": ("pyarrow", "train"),
        "aif_jax.server": ("starlette", "server"),
        "aif_jax.observe.prometheus": ("prometheus_client", "metrics"),
        "aif_jax.observe.followers": ("prometheus_client", "metrics"),
        "aif_jax.observe.opentelemetry": ("opentelemetry.trace", "tracing"),
    }
    modules = {module for extra in EXTRAS.values() for module in extra.modules}
    of_flax = {"optax", "orbax"}  # flax, of the core install, brings and imports them
    found = without({module.split(".")[0] for module in modules} - of_flax, *expected)
    for module, (absent, extra) in expected.items():
        assert found[module][0] == "MissingExtraError", found[module]
        needed_by = "aif_jax.training" if module in ("aif_jax.evaluation", "aif_jax:fit") else module
        words = f"{needed_by} needs {absent}, not installed here; run: pip install 'aif_jax[{extra}]'"
        assert found[module][1] == words


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        (
            "matplotlib",
            "demo",
            lambda: picture(Evaluation(model={}, against={}, data={}, settings={}, made={}, heads={})),
        ),
        ("pyarrow", "train", lambda: Dataset.from_events({}, user="u", item="i", time="t")),
    ],
)
def test_function_without_its_extra_names_it(module, extra, call, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=rf"needs {module}, .*'aif_jax\[{extra}\]'"):
        call()


def test_needs_modules_of_several_extras_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("optax", "starlette"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"optax, starlette, .*'aif_jax\[server,train\]'") as found:
        needs("optax", "starlette", "grain", what="aif serve")
    assert isinstance(found.value, ImportError)  # so that `try: import aif_jax.training` works as usual


def test_versions_absent_package_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)
    found = versions("train")
    assert found["optax"] is None
    assert found["grain"]
