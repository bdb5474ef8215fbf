"""Faults under load: what becomes of every request when its parts raise, hang, lie, panic or are given up.

`python bench/faults.py`: more than six minutes on two cores; `--quick` is over in two. It fails if an answer
is wrong, a request is lost, or anything is left over. Writes results and a page of tables into a folder of
its own, and the page to `--record` too.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from load import exit_in_flight, fault_run
from load.fault_page import page
from load.plan import add_arguments, described, workload
from load.progress import steps
from load.scenarios import scenarios
from load.service import Truth, make_service
from load.written import write
from stage.environment import environment

THREADS = 4


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run all scenarios; return the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, Path("runs/faults"))
    parser.add_argument("--requests", type=int, default=2000, help="of each scenario, more or less")
    parser.add_argument("--exits", type=int, default=3, help="processes that exit with requests under way")
    given = parser.parse_args(arguments)
    requests, exits = (160, 1) if given.quick else (given.requests, given.exits)
    results: dict[str, Any] = {
        "environment": environment(), "plan": {**described(given), "threads": THREADS}, "accounts": [],
    }  # fmt: skip
    with steps(2 + 13 + len(exit_in_flight.WAYS)) as step, tempfile.TemporaryDirectory() as folder:
        step("building")
        service = make_service(workload(given), Path(folder))
        step("the right answers")
        truth = Truth(service, "linear")
        for number, scenario in enumerate(scenarios(service)):
            step(scenario.name)
            account = fault_run.run(service, truth, scenario, requests, threads=THREADS, first=number << 25)
            results["accounts"].append(fault_run.to_json(account))
        results["exits"] = []
        for way in exit_in_flight.WAYS:
            step(f"exit: {way}")
            ends = [exit_in_flight.leave(way) for _ in range(exits)]
            results["exits"].append(
                {
                    "way": way, "processes": exits, "clean": all(end.clean for end in ends),
                    "seconds": max(end.seconds for end in ends),
                    "told": "; ".join(end.told for end in ends if not end.clean),
                }
            )  # fmt: skip
    write(given, results, page)
    results["good"] = all(account["good"] for account in results["accounts"]) and all(
        way["clean"] for way in results["exits"]
    )
    return results


if __name__ == "__main__":
    sys.exit(not main()["good"])
