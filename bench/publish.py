"""Ten publishes under steady load; every answer is checked against its own version.

`python bench/publish.py`: two minutes; `--quick` is over sooner and only checks answers. Two bundles of one
architecture with weights of their own take turns. Arrivals are a Poisson process, by users whose states are
cached, or with `--users 0` every one by a user who is new to the engine; latency counts from when a request
was due.
"""

import tempfile
from pathlib import Path
from typing import Any

from bars.lines import BARS
from load.publishing import Plan, measure, times_by_phase
from load.service import REQUESTS, make_service
from results import Result, Section, arguments, quantile, row_of, sizes, step, workload, write


def main(given_arguments: list[str] | None = None) -> Path:
    parser = arguments(__doc__, "publish")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=90.0, help="of arrivals; publishes in their middle")
    parser.add_argument("--warm", type=int, default=100, help="users whose states are computed ahead")
    parser.add_argument(
        "--users", type=int, default=Plan.users, help=f"in turns, a multiple of {REQUESTS}; 0: all new"
    )  # fmt: skip
    given = parser.parse_args(given_arguments)
    if given.users % REQUESTS:
        parser.error(f"--users: got {given.users}, expected a multiple of {REQUESTS}")
    seconds = 6.0 if given.quick else given.seconds
    plan, whole = Plan(rate=given.rate, seconds=seconds, warm=given.warm, users=given.users), workload(given)
    with tempfile.TemporaryDirectory() as folder:
        step("building")
        service = make_service(whole, Path(folder))
        found = measure(service, plan, Path(folder))
    result = Result(
        program="publish", title="Publishes under load", question="What do requests notice of a publish?",
        plan={**sizes(whole), "rate": given.rate, "seconds": seconds, "publishes": found["published"]},
        answers=f"{len(found['done'])} answers were compared, bit by bit, with those of an engine that "
        f"serves their version only: {len(found['faults'])} failed or mixed the two.",
        sections=[_section(found, plan)], meaningful=not given.quick,
    )  # fmt: skip
    out = write(result, given.out, given.record)
    assert not found["faults"], found["faults"][:3]
    return out


def _section(found: dict[str, Any], plan: Plan) -> Section:
    times = {name: ms for name, ms in times_by_phase(found).items() if ms}
    rows = [row_of(name, ms, tails=True) for name, ms in times.items()]
    ratio = quantile(times["during"], 0.99) / quantile(times["before"], 0.99)
    rows.append(BARS["publish_p99"].row(ratio, None))
    took = [swap["end_s"] - swap["start_s"] for swap in found["swaps"]]
    by = f"{plan.users} users in turns, whose states are cached" if plan.users else "new users only"
    text = (
        f"{plan.rate:g} requests a second for {plan.seconds:g} s, Poisson, by {by}; retrieval is a "
        f"coroutine that sleeps 10 ms. {found['published']} publishes in the middle third, of two bundles "
        f"with tables of their own in turns, each with 4 golden requests and up to {plan.warm} states "
        f"computed ahead; one took {min(took):.2f} to {max(took):.2f} s. Programs were compiled before: the "
        "bundles share an architecture."
    )
    return Section("Milliseconds from when a request was due", text, rows, "p50 (quartiles)")


if __name__ == "__main__":
    main()
