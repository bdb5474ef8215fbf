"""Arguments of a wrong type: the entries that a person calls refuse them, whichever argument it is."""

import contextlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import aif_jax
from aif_jax.checks import typed
from aif_jax.errors import AifError, ConfigError
from support.public_names import exported

INNER = {
    "Bundle",
    "ContentSpace.read",
    "ContentSpace.from_json",
    "ItemIndex.extra_of",
    "BehaviourTable.extra_of",
    "Run.is_at",
}
"""Public names that only the package itself calls."""

FURTHER = (
    "data.movielens_1m", "data.movielens_100k", "data.kuairand", "evaluation.evaluate_model",
    "evaluation.open_scorer", "fitting.model_within", "models.build_model", "nearline.Archive",
    "nearline.Follower", "nearline.Replica", "nearline.build_snapshot", "server.create_app",
    "training.choose", "training.floors", "training.preset", "training.train",
    "integrations.parquet.ParquetUpdates", "integrations.redis_stream.RedisStream",
    "integrations.usearch.TwoTowerRetriever",
)  # fmt: skip


class Unfit:
    """A value that no entry takes."""


def entries() -> dict[str, Callable[..., Any]]:
    """Return public functions, classes and class methods with an argument that must be given."""
    found: dict[str, Any] = {name: getattr(aif_jax, name) for name in exported("aif_jax")}
    for name in FURTHER:
        module, _, last = name.rpartition(".")
        found[name] = getattr(importlib.import_module(f"aif_jax.{module}"), last)
    for name, entry in list(found.items()):
        if inspect.isclass(entry):
            methods = [
                key for key, value in vars(entry).items() if isinstance(value, classmethod) and key[0] != "_"
            ]
            found |= {f"{name}.{key}": getattr(entry, key) for key in methods}
    native = "aif_jax._native"
    return {
        name: entry
        for name, entry in sorted(found.items())
        if callable(entry)
        and name not in INNER
        and native not in (entry.__module__, getattr(getattr(entry, "__self__", None), "__module__", ""))
        and not (inspect.isclass(entry) and issubclass(entry, BaseException))
        and given(entry) != ((), {})
    }


def given(entry: Callable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a wrong value for each argument that must be given."""
    needed = [
        one
        for one in inspect.signature(entry).parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    by_name = {one.name: Unfit() for one in needed if one.kind is one.KEYWORD_ONLY}
    return tuple(Unfit() for one in needed if one.kind is not one.KEYWORD_ONLY), by_name


@pytest.mark.parametrize("name", entries())
def test_public_entry_given_unfit_arguments_raises_no_error_of_others(name: str) -> None:
    entry = entries()[name]
    positional, by_name = given(entry)
    with contextlib.suppress(AifError):
        entry(*positional, **by_name)


@typed
def entry(
    path: str,
    size: int | None = None,
    share: float = 0.5,
    names: tuple[str, ...] = (),
    *,
    on: bool = True,
    make: Callable[[], int] | None = None,
    also: Any = None,
) -> tuple[Any, ...]:
    return path, size, share, names, on, make, also


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": 3}, "entry: path: got 3, expected a string"),
        ({"size": 2.5}, "entry: size: got 2.5, expected a whole number or null"),
        ({"size": True}, "entry: size: got True"),
        ({"size": 10**400}, "entry: size: got an integer of 1,329 bits"),
        ({"size": 2**63}, f"entry: size: got {2**63}"),
        ({"share": "half"}, "entry: share: got 'half', expected a finite number"),
        ({"share": float("nan")}, "entry: share: got nan"),
        ({"names": "abc"}, "entry: names: got 'abc', expected a list, each a string"),
        ({"on": 1}, "entry: on: got 1, expected true or false"),
        ({"make": 7}, "entry: make: got 7, expected a function or null"),
        ({"size": np.arange(3)}, "entry: size: got array"),
    ],
)  # fmt: skip
def test_typed_given_another_type_says_what_was_expected(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        entry(**{"path": "here", **arguments})


def test_typed_passes_fitting_arguments_and_makes_scalars_of_numpy_plain() -> None:
    found = entry("here", np.int64(7), share=np.float32(0.25), names=("a",), make=int, also=np.int64(1))  # type: ignore[arg-type]
    assert found == ("here", 7, 0.25, ("a",), True, int, 1)
    assert [type(value) for value in found[1:3]] == [int, float]
    assert isinstance(found[-1], np.int64)
