"""One run of the comparison: build, choose, check, time; everything in one process."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aif_jax.models.signature import edges_of
from stage import bars, peaks, roofline
from stage.contenders import STAGE, Checked, contenders_of
from stage.environment import environment
from stage.hand_rolled import hand_rolled
from stage.request import Case
from stage.sizes import Plan
from stage.staged import Stage, in_every_precision, stage_contender
from stage.timing import Timing, interleaved
from stage.xla_simtier import WAYS, fastest, timed_ways
from workload import Built, build, precisions

Results = dict[str, Any]
Step = Callable[[str], None]

WARMUP = 3
"""Rounds before those that are timed."""


def run(plan: Plan, *, build_peaks: bool) -> Results:
    """Measure a plan.

    Args:
        plan: what to measure.
        build_peaks: build the program that measures the machine's limits; without it, and where it is not
            built, the floor is left out, and the results say so.

    Returns:
        What `json.dumps` takes: environment, cases, bars, parts, growth.

    Raises:
        AssertionError: a contender gives another answer than its definition.
    """
    results: Results = {"environment": environment(), "plan": _plan_of(plan)}
    steps = 5 + len(precisions()) + len(plan.cases) * (4 + plan.rounds + WARMUP) + 2 * len(plan.growth)
    columns = (TextColumn("{task.description:<52}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("", total=steps)

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what)

        _run(plan, results, Path(folder), step, build_peaks)
        progress.update(task, completed=steps, description="done")
    results["environment"]["load_1_min_at_end"] = environment()["load_1_min"]
    return results


def _run(plan: Plan, results: Results, folder: Path, step: Step, build_peaks: bool) -> None:
    step(f"building {plan.workload.items:,} items")
    built = build(plan.workload, folder)
    step("tables in every precision")
    served = in_every_precision(built, precisions(), folder)
    results["memory"] = [_memory(precision, made) for precision, made in served.items()]
    step("the machine's limits")
    row = roofline.row_bytes(built)
    try:
        limits = peaks.measure(plan.workload.items, row, build=build_peaks)
        results["peaks"] = [rates.to_json() for rates in limits]
        results["busy_while_measuring_limits"] = peaks.busy(limits)
    except FileNotFoundError as error:
        limits, results["floor_left_out"] = None, str(error)
    step("SimTier in pure XLA: choosing a way")
    n, length = plan.cases[0]
    config = built.model.config
    shape = (n, length, config.signature_bits, edges_of(config), plan.choosing_rounds)
    ways = timed_ways(list(WAYS), *shape)
    results["xla_simtier"] = {name: timing.to_json() for name, timing in ways.items()}
    way = fastest(ways)[0]
    results["cases"] = []
    for n, length in plan.cases:
        case = Case(built, n, length)
        entry, times, checked = _measured(case, served, way, plan, step)
        if not results["cases"]:
            floor, alone = None, None
            if limits is not None:
                results["parts"], alone = parts_in_turns(case, served, limits, checked.stage, plan.rounds)
                floor = sum(part["floor_ms"] for part in results["parts"]["float32"])
            results["bars"] = bars.verdicts(times, alone, floor)
        results["cases"].append(entry)
    results["growth"] = [
        _grown(change, plan, folder / f"growth-{number}", way, step)
        for number, change in enumerate(plan.growth)
    ]


def _measured(
    case: Case, served: Mapping[str, Any], way: str, plan: Plan, step: Step
) -> tuple[Results, dict[str, Timing], Checked]:
    where = f"N = {case.n:,}, L = {case.length:,}"
    # The way that is fastest at the first case need not be so at another.
    if (case.n, case.length) != plan.cases[0]:
        config = case.built.model.config
        times = timed_ways(
            SHORT_LIST, case.n, case.length, config.signature_bits, edges_of(config), plan.choosing_rounds
        )
        way = fastest(times)[0]
    checked = contenders_of(case, served, way, plan.choosing_rounds, lambda what: step(f"{where}: {what}"))
    times = interleaved(
        checked.contenders, plan.rounds, warmup=WARMUP, each_round=lambda: step(f"{where}: timing")
    )
    entry = {
        "n": case.n, "length": case.length, "xla_simtier": way, "onnx_block": checked.block,
        "stage_programs": checked.stage.kind, "answers": checked.answers,
        "times": {name: timing.to_json() for name, timing in times.items()},
        "ratios": {name: bars.ratio(times, name, STAGE) for name in times},
    }  # fmt: skip
    return entry, times, checked


SHORT_LIST = [name for name in WAYS if "behaviour" in name or "64 candidates" in name]
"""Ways that are tried again at every size; those at once store all scores and are far behind."""


def parts_in_turns(
    case: Case, served: Mapping[str, Any], limits: list[peaks.Peaks], stage: Stage, rounds: int
) -> tuple[Results, Timing]:
    """Return floor and measured time of each part by precision, and of the whole stage in turns with them."""
    programs = roofline.programs(case, stage)
    times = interleaved([*programs, stage], rounds, warmup=WARMUP)
    parts: Results = {
        precision: [
            part.to_json() | ({"measured": times[part.program].to_json()} if precision == "float32" else {})
            for part in roofline.parts_of(case, built, peaks.best(limits), precision)
        ]
        for precision, built in served.items()
    }
    return {**parts, "stage": times[STAGE].to_json()}, times[STAGE]


def _memory(precision: str, built: Built) -> Results:
    """Return the bytes of an item in the index: its values, what aligns them, and the table of keys."""
    held = built.tables.items.stats()
    parts = {name: held[f"{name}_bytes"] / held["rows"] for name in ("payload", "padding", "table", "total")}
    return {"precision": precision, "items": held["rows"], **parts}


def _grown(change: dict[str, int], plan: Plan, folder: Path, way: str, step: Step) -> Results:
    """Time stage and hand-rolled alternative at the first case's sizes under a changed model or catalogue."""
    named = ", ".join(f"{name} = {size}" for name, size in change.items())
    step(f"{named}: building")
    n, length = plan.cases[0]
    changed = {name: value for name, value in change.items() if name != "items"}
    workload = dataclasses.replace(
        plan.workload, items=change.get("items", plan.growth_items), long_length=length,
        config=plan.workload.config.replace(long_length=length, **changed),
    )  # fmt: skip
    built = build(workload, folder)
    case = Case(built, n, length)
    stage = stage_contender(case, built)
    step(f"{named}: timing")
    times = interleaved([stage, hand_rolled(case, WAYS[way], stage)], plan.rounds, warmup=WARMUP)
    return {**change, "times": {name: timing.to_json() for name, timing in times.items()}}


def _plan_of(plan: Plan) -> Results:
    described = dataclasses.asdict(plan)
    described["workload"]["config"] = plan.workload.config.to_json()
    return described
