"""What a request takes beyond max(retrieval, user side) + stage, one request at a time.

`python bench/overlap.py`: five minutes; `--quick` is over in half of one and only checks answers.
Writes results and a page of tables into a folder of its own, and the page to `--record` too.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from load import core_cost, overlapping
from load.overlap_page import page
from load.overlapping import Cell
from load.plan import add_arguments, described, workload
from load.progress import steps
from load.service import Truth, make_service
from load.written import write
from stage.environment import environment

WAYS = (
    ("sleeps", "rank"), ("sleeps", "begin and rank"), ("sleeps", "rank_async"),
    ("is a coroutine", "rank_async"), ("is a coroutine", "rank"),
)  # fmt: skip
"""Kinds of retrieval, and how requests are made."""


def cells(times_ms: tuple[float, ...], warm_ms: float) -> list[Cell]:
    """Return every way with each time of retrieval and cold user states, and with one and warm ones."""
    return [Cell(ms, *way, warm=False) for ms in times_ms for way in WAYS] + [
        Cell(warm_ms, *way, warm=True) for way in WAYS
    ]


def main(arguments: list[str] | None = None) -> Path:
    """Measure; return the folder with the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, Path("runs/overlap"))
    parser.add_argument("--rounds", type=int, default=600, help="requests made in every way")
    given = parser.parse_args(arguments)
    rounds, times = (4, (2.0, 5.0)) if given.quick else (given.rounds, (5.0, 10.0, 20.0))
    cost_rounds = 2 if given.quick else 30
    asked = cells(times, times[-1] if given.quick else 10.0)
    results: dict[str, Any] = {"environment": environment(), "plan": described(given)}
    with (
        steps(2 + rounds + 2 + len(times) * (cost_rounds + 1)) as step,
        tempfile.TemporaryDirectory() as folder,
    ):
        step("building")
        service = make_service(workload(given), Path(folder))
        step("the right answers")
        truth = Truth(service, "linear")
        results["overlap"] = overlapping.measure(
            service, truth, asked, rounds, lambda: step("requests in turns with their parts")
        )
        results["core_cost"] = [
            core_cost.measure(service, truth, ms, cost_rounds, lambda: step("retrieval that computes"))
            for ms in times
        ]
    return write(given, results, page)


if __name__ == "__main__":
    main()
