"""Where and with what something was made: what a row and a table carry."""

import datetime
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

from aif_jax.machine import cores, cpu_model

Where = dict[str, Any]
"""``date``, ``cpu``, ``cores``, and the versions of ``jax`` and ``aif_jax``."""


def where() -> Where:
    """Return the date and this machine."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": cores(),
        "jax": importlib.metadata.version("jax"),
        "aif_jax": importlib.metadata.version("aif_jax"),
    }


def in_words(made: Mapping[str, Any]) -> str:
    """Return one of these as words."""
    return f"{made['date']}, {_machine(made)}"


def by_machine(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return a line for each machine with its versions: the dates, and which rows were made there.

    Args:
        rows: the name of each, and where it was made.
    """
    groups: dict[str, tuple[set[str], list[str]]] = {}
    for name, made in rows:
        dates, names = groups.setdefault(_machine(made), (set(), []))
        dates.add(made["date"])
        names.append(name)
    return [
        f"{' to '.join(sorted({min(dates), max(dates)}))}, {machine}: "
        + ("all" if len(groups) == 1 else ", ".join(names))
        for machine, (dates, names) in groups.items()
    ]


def _machine(made: Mapping[str, Any]) -> str:
    return f"{made['cpu']} ({made['cores']} cores), jax {made['jax']}, aif_jax {made['aif_jax']}"
