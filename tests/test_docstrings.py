"""Examples in docstrings: each prints what it says, and every public name has one."""

import asyncio
import dataclasses
import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import aif_jax
from aif_jax.bundle import Bundle
from aif_jax.nearline import Tables
from aif_jax.serving import Engine, InMemoryUsers, Pending, Shadow
from support.served import ENGINE_CONFIG, World, tables_of

WITHOUT_EXAMPLE = {
    "BehaviourTable", "Bundle", "EmbeddingCache", "ItemIndex", "Ranking", "Report", "RowLayout", "Scheduler",
    "Tables", "export", "export_bundle",
}  # fmt: skip
"""Public names that others return, that are native, or that the documents show at work instead."""


SERVED = {
    "aif_jax.serving.engine", "aif_jax.serving.request", "aif_jax.serving.shadow", "aif_jax.nearline.tables",
}  # fmt: skip
"""Modules whose examples need a model: they find an engine and its parts by the names of `served_names`."""


PACKAGE = Path(aif_jax.__file__).parent


def modules_with_examples() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", [name for name in modules_with_examples() if name not in SERVED])
def test_docstring_examples_print_what_they_say(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert results.attempted > 0, "the examples stand where doctest does not look"
    assert results.failed == 0, "see the output"


@pytest.mark.parametrize("name", sorted(SERVED))
def test_docstring_examples_of_serving_print_what_they_say(
    name: str, bundle: Bundle, tables: Tables, other_bundle: Bundle, world: World
) -> None:
    ids, pair = world.candidates(20)
    users = InMemoryUsers({"ann": world.record(5), "bob": world.record(6)})
    config = dataclasses.replace(ENGINE_CONFIG, k=10)
    arguments: dict[str, Any] = {"users": users, "config": config, "retrieve": lambda request: ids}
    with Engine(bundle, tables, **arguments) as engine:
        names = {
            "aif": aif_jax, "asyncio": asyncio, "bids": pair["bid"], "bundle": bundle, "candidates": ids,
            "engine": engine, "new_bundle": other_bundle, "new_tables": tables_of(other_bundle, world)[1],
            "tables": tables, "users": users,
        }  # fmt: skip
        results = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=FLAGS)
    assert results.attempted > 0, "the examples stand where doctest does not look"
    assert results.failed == 0, "see the output"


@pytest.mark.parametrize("kind", [Engine, Pending, Shadow])
def test_docstrings_public_methods_of_serving_have_examples(kind: type) -> None:
    methods = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
    internal = {
        Engine: set[str](), Shadow: {"offer"},
        Pending: {"begin", "close", "expire", "retrieve_and_rank", "retrieve_and_rank_async"},
    }[kind]  # fmt: skip
    public = {name for name in methods if name[0] != "_" and name not in internal}
    assert {name for name in public if ">>>" not in (methods[name].__doc__ or "")} == set()


def test_docstrings_public_names_have_examples() -> None:
    documented = {name: getattr(aif_jax, name).__doc__ or "" for name in aif_jax.__all__}
    lacking = {name for name, text in documented.items() if ">>>" not in text}
    assert lacking <= WITHOUT_EXAMPLE
