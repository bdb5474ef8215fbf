"""Extras: parts of the package that need more than the core install, and the packages that each brings."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import NamedTuple

from aif_jax.errors import MissingExtraError


class Extra(NamedTuple):
    """One extra.

    Attributes:
        purpose: what it is for.
        modules: the distribution that brings each module that is imported.
    """

    purpose: str
    modules: Mapping[str, str]


EXTRAS = {
    "train": Extra(
        "training, evaluation, tables of files",
        {
            "optax": "optax",
            "orbax.checkpoint": "orbax-checkpoint",
            "grain": "grain",
            "pyarrow": "pyarrow",
        },
    ),
    "usearch": Extra("retrieval by an ANN index", {"usearch": "usearch"}),
    "demo": Extra("`aif demo` and pictures; brings train and usearch", {"matplotlib": "matplotlib"}),
    "server": Extra("the HTTP application, `aif serve`", {"starlette": "starlette", "uvicorn": "uvicorn"}),
    "metrics": Extra("Prometheus", {"prometheus_client": "prometheus-client"}),
    "tracing": Extra("OpenTelemetry", {"opentelemetry.trace": "opentelemetry-api"}),
    "redis": Extra("users and item updates in Redis", {"redis": "redis"}),
    "ray": Extra("item rows from a pool of Ray actors", {"ray.data": "ray"}),
}
"""The extras of the package by name, as ``pip install 'aif_jax[NAME]'`` takes them."""


def installed(module: str) -> bool:
    """Return whether a module can be found, without importing more than the packages that hold it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a package that holds it is absent
        return False


def needs(*modules: str, what: str = "this") -> None:
    """Refuse to go on without the modules of an extra.

    Args:
        modules: as they are imported; each in `EXTRAS`.
        what: needs them, for the message.

    Raises:
        MissingExtraError: some are not installed; the message names them and the extras that bring them.
    """
    if absent := [module for module in modules if not installed(module)]:
        names = sorted({name for name, extra in EXTRAS.items() for m in absent if m in extra.modules})
        raise MissingExtraError(
            f"{what} needs {', '.join(absent)}, not installed here; "
            f"run: pip install 'aif_jax[{','.join(names)}]'"
        )


def versions(extra: str) -> dict[str, str | None]:
    """Return the version of each distribution of an extra; ``None`` for one that is not installed."""
    found: dict[str, str | None] = {}
    for module, distribution in EXTRAS[extra].modules.items():
        try:
            found[distribution] = importlib.metadata.version(distribution) if installed(module) else None
        except importlib.metadata.PackageNotFoundError:
            found[distribution] = "of unknown version"
    return found
