"""Latency and goodput against offered load: sequential, overlapped by hand, and the engine.

`python bench/open_loop.py`: five minutes; `--quick` is over in one and only checks answers.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from bars.lines import BARS
from load import offering
from load.offering import UNLOADED_TIMES, Curve, Found, Plan
from load.service import make_service
from load.ways import Engined
from results import Result, Row, Section, arguments, quartiles, row_of, sizes, step, workload, write

SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.25, 1.6, 2.0)
SHED = 0.9
"""Share of its best goodput that a way should keep past saturation."""


def main(given_arguments: list[str] | None = None) -> Path:
    parser = arguments(__doc__, "open_loop")
    parser.add_argument("--seconds", type=float, default=5.0, help="of arrivals at each load")
    parser.add_argument("--retrieval-ms", type=float, default=10.0, help="how long retrieval sleeps")
    parser.add_argument("--compute-threads", type=int, help="of the engine, unless as it comes")
    given = parser.parse_args(given_arguments)
    plan = Plan(
        retrieval_ms=given.retrieval_ms, seconds=0.4 if given.quick else given.seconds,
        shares=(0.5, 2.0) if given.quick else SHARES, rounds=1 if given.quick else 5,
        threads=(2,) if given.quick else (1, 2, 3), compute_threads=given.compute_threads,
    )  # fmt: skip
    whole = workload(given)
    with tempfile.TemporaryDirectory() as folder:
        step("building")
        found = offering.measure(make_service(whole, Path(folder)), plan)
    result = Result(
        program="open_loop", title="Open-loop load",
        question="How many requests a second does each way serve, and how late, below and beyond saturation?",
        plan={**sizes(whole), **dataclasses.asdict(plan)},
        answers="The same model and weights for all; answers are checked against the definition (1e-4), "
        "with exact attention where the way is named sequential, with linear attention elsewhere. Every "
        "request is by a user who is new to the engine; retrieval is a coroutine that sleeps "
        f"{plan.retrieval_ms:g} ms. Arrivals are a Poisson process; latency counts from when a request was "
        f"due. An answer is in time within {UNLOADED_TIMES:g} times the way's own unloaded latency, which "
        "the engine is given as deadline.",
        meaningful=not given.quick,
        sections=[_saturation(found, plan), *map(_curve, found.curves)],
        notes=[
            f"The generator by itself, at {found.generator.offered:.0f} requests a second: "
            f"{found.generator.core_ms:.3f} core-ms a request, retrieval's sleep included; 99th percentile "
            f"of lateness {found.generator.late_ms:.1f} ms. It runs in the event loop that serves."
        ],
    )  # fmt: skip
    return write(result, given.out, given.record)


def _saturation(found: Found, plan: Plan) -> Section:
    ours = found.saturation[Engined.name][0]
    rows = [
        row_of(
            name, rates.tolist(), "/s", better="higher", ratio=float(np.median(ours / rates)),
            also={"core-ms each": float(np.median(core_ms))}, note=found.settings[name],
        )
        for name, (rates, core_ms) in found.saturation.items()
    ]  # fmt: skip
    rows.append(BARS["saturation"].row(*quartiles(ours / found.saturation["sequential"][0])))
    text = f"{plan.callers} callers that ask again at once, in turns; the bar compares the rounds."
    return Section("Saturation", text, rows, "answers (quartiles)", "engine, times as many")


def _curve(curve: Curve) -> Section:
    rows = [
        Row(
            f"{share:.0%} of saturation", load.quantile(0.5) if load.answered else None,
            also={
                "p99": load.quantile(0.99) if load.answered else None,
                "p99.9": load.quantile(0.999) if load.answered else None,
                "offered a second": load.offered, "answered": load.throughput, "in time": load.in_time,
                "of these in full": load.in_full,
                "answers by rung": ", ".join(f"{rung}: {n}" for rung, n in sorted(load.rungs.items())),
                "errors": ", ".join(f"{name}: {n}" for name, n in load.errors.items()),
            },
            note="; ".join(load.unexpected),
        )
        for share, load in curve.loads
    ]  # fmt: skip
    (in_time, kept), (in_full, full_kept) = (
        curve.most(lambda load: load.in_time), curve.most(lambda load: load.in_full),
    )  # fmt: skip
    text = (
        f"Unloaded {curve.unloaded_ms:.1f} ms, deadline {curve.deadline_ms:.1f} ms, within which p99 stays "
        f"up to {curve.within_deadline():.0f} answers a second. At best {in_time:.0f} a second in time and "
        f"{in_full:.0f} in full; past saturation {kept:.0%} and {full_kept:.0%} of that, "
        f"where {SHED:.0%} are wanted."
    )
    return Section(f"Load on {curve.way}", text, rows, value="p50")


if __name__ == "__main__":
    main()
