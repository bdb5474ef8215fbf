"""Public names: those that a package's `__init__` exports or makes; the documents use no others."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from aif_jax.errors import AifError
from support.public_names import BY_MODULE, PACKAGES, exported

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("package", PACKAGES)
def test_package_exports_exist_under_their_names(package: str) -> None:
    module = importlib.import_module(package)
    for name in exported(package):
        assert getattr(module, name, None) is not None, name


def test_serving_package_exports_types_of_its_methods() -> None:
    wanted = (
        "BatchedUsers Coverage Engine EngineConfig Failure Filters GoldenRequest InMemoryUsers ItemRows",
        "MissingItems Observer Pending Publication PublishChecks Ranking Report Served Shadow Shapes Span",
        "Task Threads UserStateCache",
    )
    assert exported("aif_jax.serving") == set(" ".join(wanted).split())


@pytest.mark.parametrize("package", ["data", "evaluation", "fitting", "nearline", "observe", "training", ""])
def test_functions_given_something_of_another_kind_name_it(package: str) -> None:
    name = f"aif_jax.{package}".rstrip(".")
    module = importlib.import_module(name)
    wrong = object()
    for function in (getattr(module, each) for each in sorted(exported(name))):
        if not inspect.isfunction(function) or function.__name__ == "decoded":  # for each entry of a stream
            continue
        needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
        named = {one.name: wrong for one in needed if one.kind is one.KEYWORD_ONLY}
        if positional := [wrong for one in needed if one.kind is one.POSITIONAL_OR_KEYWORD]:
            with pytest.raises(AifError, match="object object at"):
                function(*positional, **named)


def imports_of(text: str) -> list[tuple[str, str]]:
    found = re.findall(r"^\s*from (aif_jax[a-z_.]*) import ([A-Za-z_, ]+)", text, re.MULTILINE)
    return [(module, name.strip()) for module, names in found for name in names.split(",")]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_documents_import_public_names_only(page: Path) -> None:
    for module, name in imports_of(page.read_text(encoding="utf-8")):
        if module.startswith(BY_MODULE):
            assert importlib.util.find_spec(module) is not None, module
        else:
            assert module in PACKAGES, f"{page.name} imports from {module}, which is not public"
            assert name in exported(module), f"{page.name} imports {name}, which {module} does not export"
