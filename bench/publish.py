"""What requests notice of ten publishes under steady load; every answer is checked against its own version.

`python bench/publish.py`: two minutes; `--quick` is over sooner and only checks answers. Two bundles of one
architecture with weights of their own take turns. Arrivals are a Poisson process, by users whose states are
cached, or with `--users 0` every one by a user who is new to the engine; latency counts from when a request
was due. Writes results, a page and a picture into a folder of its own, and the page to `--record` too.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from load.plan import add_arguments, described, workload
from load.progress import steps
from load.publish_page import draw, page
from load.publishing import Plan, measure
from load.service import REQUESTS, make_service
from load.written import write
from stage.environment import environment


def main(arguments: list[str] | None = None) -> Path:
    """Measure; return the folder with the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, Path("runs/publish"))
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="of arrivals; publishes in their middle third"
    )
    parser.add_argument("--warm", type=int, default=100, help="users whose states are computed ahead")
    parser.add_argument(
        "--users",
        type=int,
        default=Plan.users,
        help=f"who ask in turns, a multiple of {REQUESTS}; 0: all new",
    )
    given = parser.parse_args(arguments)
    if given.users % REQUESTS:
        parser.error(f"--users: got {given.users}, expected a multiple of {REQUESTS}")
    results: dict[str, Any] = {"environment": environment(), "plan": described(given)}
    seconds = 6.0 if given.quick else given.seconds
    plan = Plan(rate=given.rate, seconds=seconds, warm=given.warm, users=given.users)
    with steps(4) as step, tempfile.TemporaryDirectory() as folder:
        step("building")
        service = make_service(workload(given), Path(folder))
        results["publish"] = measure(service, plan, step, Path(folder))
    out = write(given, results, page, draw)
    assert not results["publish"]["faults"], results["publish"]["faults"][:3]
    return out


if __name__ == "__main__":
    main()
