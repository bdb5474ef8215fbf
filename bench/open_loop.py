"""Latency and goodput against offered load: sequential, overlapped by hand, and the engine.

`python bench/open_loop.py`: five minutes; `--quick` is over in one and only checks answers.
Writes results, a picture and a page of tables into a folder of its own, and the page to `--record` too.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from load import offering
from load.offering import Plan
from load.open_loop_page import page
from load.open_loop_plot import draw
from load.plan import add_arguments, described, workload
from load.progress import steps
from load.service import make_service
from load.written import write
from stage.environment import environment

SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.25, 1.6, 2.0)


def main(arguments: list[str] | None = None) -> Path:
    """Measure; return the folder with the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, Path("runs/open_loop"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of arrivals at each load")
    parser.add_argument("--retrieval-ms", type=float, default=10.0, help="how long retrieval sleeps")
    parser.add_argument("--compute-threads", type=int, help="of the engine, unless as it comes")
    given = parser.parse_args(arguments)
    plan = Plan(
        retrieval_ms=given.retrieval_ms,
        seconds=0.4 if given.quick else given.seconds,
        shares=(0.5, 2.0) if given.quick else SHARES,
        rounds=1 if given.quick else 5,
        threads=(2,) if given.quick else (1, 2, 3),
        compute_threads=given.compute_threads,
    )
    results: dict[str, Any] = {
        "environment": environment(),
        "plan": {**described(given), **dataclasses.asdict(plan), "unloaded_times": offering.UNLOADED_TIMES},
    }
    total = 5 + 1 + plan.rounds + 3 * (1 + len(plan.shares))
    with steps(total) as step, tempfile.TemporaryDirectory() as folder:
        step("building")
        service = make_service(workload(given), Path(folder))
        results["open_loop"] = offering.measure(service, plan, step)
    return write(given, results, page, draw)


if __name__ == "__main__":
    main()
