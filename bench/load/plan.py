"""Sizes of the programs that load the engine: the workload W, and a small one that only checks answers."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from workload import SMALL, W, Workload


def add_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add the arguments that all of the programs share."""
    parser.add_argument("--quick", action="store_true", help="small sizes, few requests; times mean nothing")
    parser.add_argument("--items", type=int, default=W.items, help="items of the catalogue")
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
    parser.add_argument("--record", type=Path, help="where the page of tables is written besides")


def workload(given: argparse.Namespace) -> Workload:
    """Return the workload that the arguments ask for."""
    if not given.quick:
        return dataclasses.replace(W, items=given.items)
    return SMALL


def described(given: argparse.Namespace) -> dict[str, Any]:
    """Return what results say of the workload."""
    made = workload(given)
    return {
        "meaningful": not given.quick, "items": made.items, "candidates": made.candidates,
        "short_length": made.short_length, "long_length": made.long_length, "k": made.k,
        "config": made.config.to_json(),
    }  # fmt: skip
