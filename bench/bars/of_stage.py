"""Bars of the real-time stage: beside its rivals, and over what the machine could do."""

from collections.abc import Mapping

from aif_jax.models.signature import edges_of
from bars.found import Measurement, Value
from bars.plan import Shared
from stage import bars, contenders, peaks, roofline
from stage.request import Case
from stage.run import SHORT_LIST, WARMUP, parts_in_turns
from stage.staged import stage_contender
from stage.timing import interleaved
from stage.xla_simtier import fastest, timed_ways

RIVALS = (contenders.SEQUENTIAL, contenders.ONNX, contenders.HAND_ROLLED)
TRIES = 3
"""How often the machine's limits are measured until nothing else was running meanwhile."""


def measurements(shared: Shared, *, build_peaks: bool) -> list[Measurement]:
    """Return the measurements of the stage."""
    ratios = [comparison.bar for comparison in bars.COMPARISONS]
    return [
        (ratios, lambda: _ratios(shared)),
        ([bars.ROOFLINE.bar], lambda: _roofline(shared, build_peaks)),
    ]


def _case(shared: Shared) -> Case:
    built = shared.service.built
    return Case(built, built.workload.candidates, built.workload.long_length)


def _ratios(shared: Shared) -> Mapping[str, Value]:
    plan, case = shared.plan, _case(shared)
    served = {"float32": case.built, "bfloat16": shared.bfloat16}
    shared.step("SimTier in pure XLA: choosing a way")
    config = case.built.model.config
    ways = timed_ways(
        SHORT_LIST, case.n, case.length, config.signature_bits, edges_of(config), plan.choosing_rounds
    )
    way = fastest(ways)[0]
    checked = contenders.contenders_of(case, served, way, plan.choosing_rounds, shared.step, only=RIVALS)
    shared.step("stage and rivals in turns")
    times = interleaved(checked.contenders, plan.stage_rounds, warmup=WARMUP)
    how = (
        f"{shared.sizes}; median of {plan.stage_rounds} rounds; rivals' SimTier in XLA: {way}; ONNX Runtime "
        f"takes {checked.block} candidates at a time; shorter than make bench-stage: fewer rounds, rivals "
        "that no bar is about and ways of SimTier that were far behind left out"
    )
    found = {}
    for comparison in bars.COMPARISONS:
        ratio = bars.ratio(times, comparison.rival, comparison.ours)
        taken = {name: times[name].median for name in (comparison.rival, comparison.ours)}
        found[comparison.bar] = Value(ratio["median"], (ratio["p25"], ratio["p75"]), how, {"ms": taken})
    return found


def _roofline(shared: Shared, build: bool) -> Mapping[str, Value]:
    plan, case = shared.plan, _case(shared)
    row = roofline.row_bytes(case.built)
    for attempt in range(TRIES):
        shared.step("the machine's limits")
        limits = peaks.measure(plan.workload.items, row, build=build and not attempt)
        if not plan.meaningful or not peaks.busy(limits):
            break
    else:
        raise RuntimeError(
            f"the machine was busy each of {TRIES} times that its limits were measured (its threads together "
            "did less arithmetic than as many cores should), so the floor would be too high and the bar too "
            "easy; run again when nothing else runs"
        )
    shared.step("the stage's parts in turns")
    stage = stage_contender(case, case.built)
    parts, alone = parts_in_turns(case, {"float32": case.built}, limits, stage, plan.stage_rounds)
    floor = sum(part["floor_ms"] for part in parts["float32"])
    over = [alone.quantile(share) / floor for share in (0.5, 0.25, 0.75)]
    how = f"{shared.sizes}; median of {plan.stage_rounds} rounds over the floor of the same run"
    also = {"ms": {"floor": floor, contenders.STAGE: alone.median}}
    return {bars.ROOFLINE.bar: Value(over[0], (over[1], over[2]), how, also)}
