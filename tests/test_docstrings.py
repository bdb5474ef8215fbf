"""Examples in docstrings: each prints what it says, and every public name has one."""

import doctest
import importlib
from pathlib import Path

import pytest

import aif_jax

WITHOUT_EXAMPLE = {
    "BehaviourTable", "Bundle", "EmbeddingCache", "Engine", "EngineConfig", "Filters", "ItemIndex",
    "PublishChecks", "Ranking", "Report", "RowLayout", "Scheduler", "Tables", "build_tables", "export_bundle",
}  # fmt: skip
"""Public names that need a bundle, or are native, and are shown at work in the documents instead."""

PACKAGE = Path(aif_jax.__file__).parent


def modules_with_examples() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_print_what_they_say(name: str) -> None:
    results = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert results.attempted > 0, "the examples stand where doctest does not look"
    assert results.failed == 0, "see the output"


def test_every_public_name_has_an_example() -> None:
    documented = {name: getattr(aif_jax, name).__doc__ or "" for name in aif_jax.__all__}
    lacking = {name for name, text in documented.items() if ">>>" not in text}
    assert lacking <= WITHOUT_EXAMPLE
