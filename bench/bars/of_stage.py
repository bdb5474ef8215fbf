"""Bars of the real-time stage: beside its rivals, and over the limits of the machine."""

from collections.abc import Mapping

from bars.lines import Measurement, Value
from bars.plan import Shared
from results import quartiles, step
from stage import contenders, roofline
from stage.request import Case
from stage.staged import stage_contender
from stage.timing import fastest, interleaved
from stage.xla_simtier import timed_ways

ROOFLINE = "stage_roofline"
TRIES = 3
"""How often the machine's limits are measured until nothing else was running meanwhile."""


def measurements(shared: Shared, *, build_peaks: bool) -> list[Measurement]:
    return [
        (tuple(contenders.COMPARISONS), lambda: _ratios(shared)),
        ((ROOFLINE,), lambda: _roofline(shared, build_peaks)),
    ]


def _case(shared: Shared) -> Case:
    built = shared.service.built
    return Case(built, built.workload.candidates, built.workload.long_length)


def _ratios(shared: Shared) -> Mapping[str, Value]:
    plan, case = shared.plan, _case(shared)
    served = {"float32": case.built, "bfloat16": shared.bfloat16}
    step("SimTier in pure XLA: choosing a way")
    way = fastest(timed_ways(case.built.model.config, case.n, case.length, plan.choosing_rounds))
    checked = contenders.contenders_of(case, served, way, plan.choosing_rounds)
    step("stage and rivals in turns")
    times = interleaved(checked.contenders, plan.stage_rounds)
    how = (
        f"{shared.sizes}; median of {plan.stage_rounds} rounds; {checked.settings}; shorter than make "
        "bench-stage: fewer rounds"
    )
    return {bar: Value(*found, how) for bar, found in contenders.ratios_of_bars(times).items()}


def _roofline(shared: Shared, build: bool) -> Mapping[str, Value]:
    plan, case = shared.plan, _case(shared)
    row = roofline.row_bytes(case.built)
    for attempt in range(TRIES):
        step("the machine's limits")
        limits = roofline.measured_peaks(plan.workload.items, row, build=build and not attempt)
        if not plan.meaningful or not roofline.busy(limits):
            break
    else:
        raise RuntimeError(f"{TRIES} times: {roofline.BUSY}")
    step("the stage by itself")
    stage = stage_contender(case, case.built)
    times = interleaved([stage], plan.stage_rounds)[stage.name]
    floor = roofline.parts_of(case, case.built, roofline.best(limits))[1]
    how = f"{shared.sizes}; median of {plan.stage_rounds} rounds over the floor of the same run"
    return {ROOFLINE: Value(*quartiles(times / floor), how)}
