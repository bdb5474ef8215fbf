"""Bars of the engine: time beyond a request's parts, saturation, and publishes under load."""

from collections.abc import Mapping

import numpy as np

from bars.lines import Measurement, Value
from bars.plan import Shared
from load import offering, overlapping, publishing
from load.offering import Engined
from load.overlapping import Cell
from load.service import Truth
from results import quartiles, step

OVERLAP = {"overlap_sleeps": ("sleeps", "rank"), "overlap_coroutine": ("is a coroutine", "rank_async")}
"""By bar the kind of retrieval, and the call that is made for it."""

MIXED = {"overlap_sleeps": "rank_async", "overlap_coroutine": "rank"}
"""The other call, which is reported beside it."""

RESAMPLES = 500


def measurements(shared: Shared) -> list[Measurement]:
    return [
        (tuple(OVERLAP), lambda: _overlap(shared)),
        (("saturation",), lambda: _saturation(shared)),
        (("publish_p99",), lambda: _publish(shared)),
    ]


def _overlap(shared: Shared) -> Mapping[str, Value]:
    ms, rounds = shared.plan.retrieval_ms, shared.plan.overlap_rounds
    calls = [(bar, kind, call) for bar, (kind, own) in OVERLAP.items() for call in (own, MIXED[bar])]
    cells = {(bar, call): Cell(ms, kind, call, warm=False) for bar, kind, call in calls}
    service, truth = shared.service, shared.linear
    step("requests in turns with their parts")
    measured = overlapping.measure(service, truth, list(cells.values()), rounds)
    found = {}
    for bar, (kind, call) in OVERLAP.items():
        own, other = (measured.beyond(cells[bar, which]) for which in (call, MIXED[bar]))
        how = (
            f"{shared.sizes}; retrieval of {ms:g} ms {kind}, asked by {call}, user states cold, one request "
            f"at a time; p50 of {rounds} requests and their quartiles; asked by {MIXED[bar]} "
            f"{np.median(other):.3g}"
        )
        found[bar] = Value(*quartiles(own), how)
    return found


def _saturation(shared: Shared) -> Mapping[str, Value]:
    plan, service = shared.plan.load, shared.service
    exact, linear = Truth(service, "exact, as defined"), shared.linear
    ways: list[offering.Checked] = []
    try:
        step("sequential: choosing threads and SimTier")
        ways.append(offering.best_sequential(service, exact, plan))
        ways.append(offering.engine_as_it_comes(service, linear, plan))
        found = offering.saturate(ways, plan)
    finally:
        for checked in ways:
            checked.way.close()
    times = found[Engined.name][0] / found[ways[0].way.name][0]
    how = (
        f"{shared.sizes}; {plan.callers} callers that ask again at once, every user new to the engine, "
        f"retrieval sleeps {plan.retrieval_ms:g} ms; median of {plan.rounds} rounds of {plan.seconds / 2:g} "
        f"s; sequential: {ways[0].setting}; engine: {ways[1].setting}; make bench-load adds the load curves"
    )
    return {"saturation": Value(*quartiles(times), how)}


def _publish(shared: Shared) -> Mapping[str, Value]:
    plan = shared.plan.publish
    found = publishing.measure(shared.service, plan, shared.folder)
    faults = found["faults"]
    assert not faults, f"{len(faults)} requests failed or got a wrong answer, the first: {faults[0]}"
    times = publishing.times_by_phase(found)
    before, during = np.array(times["before"]), np.array(times["during"])
    ratio = float(np.quantile(during, 0.99) / np.quantile(before, 0.99))
    how = (
        f"{shared.sizes}; {plan.rate:g} requests a second for {plan.seconds:g} s, Poisson, by {plan.users} "
        f"users whose states are cached; {plan.publishes} publishes in the middle third, each with up to "
        f"{plan.warm} states computed ahead; "
        f"{len(during)} requests during a publish, {len(before)} before the first; quartiles of "
        f"{RESAMPLES} resamples of both"
    )
    return {"publish_p99": Value(ratio, resampled(during, before), how)}


def resampled(during: np.ndarray, before: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return quartiles of the ratio of p99 over draws with replacement from both."""
    rng = np.random.default_rng(seed)
    ratios = [
        np.quantile(rng.choice(during, len(during)), 0.99)
        / np.quantile(rng.choice(before, len(before)), 0.99)
        for _ in range(RESAMPLES)
    ]
    return quartiles(ratios)[1]
