"""The real-time stage beside its alternatives, and over the floor that the machine allows.

`python bench/compare_stage.py`: ten minutes on two cores; `--quick` is over in one and only checks answers.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from bars.lines import BARS
from bars.of_stage import ROOFLINE
from results import Result, Row, Section, arguments, quartiles, row_of, sizes, step, write
from stage import contenders, roofline
from stage.contenders import STAGE, WHAT
from stage.request import Case
from stage.staged import Stage
from stage.timing import Times, fastest, interleaved
from stage.xla_simtier import timed_ways
from workload import PRECISIONS, SMALL, Built, W, build, in_precision

CASES = ((4096, 1024), (512, 1024), (2048, 1024), (8192, 1024), (4096, 256), (4096, 4096))
"""Candidates N and history L of the requests; the first is the one that bars are about."""


def main(given_arguments: list[str] | None = None) -> Path:
    parser = arguments(__doc__, "compare_stage", items=1_000_000)
    parser.add_argument("--rounds", type=int, default=40, help="timed rounds of each case")
    given = parser.parse_args(given_arguments)
    cases, rounds, choosing = (((256, 128),), 3, 1) if given.quick else (CASES, given.rounds, 9)
    longest = max(length for _, length in cases)
    config = W.config.replace(long_length=longest)
    full = dataclasses.replace(W, items=given.items, long_length=longest, config=config)
    whole = SMALL if given.quick else full
    result = Result(
        program="compare_stage", title="Real-time stage",
        question=f"How long does a request take from candidates to the best {whole.k}, here and elsewhere?",
        plan={**sizes(whole), "rounds": rounds, "cases": [list(case) for case in cases]},
        answers="Answers are checked against the unfolded definition (1e-4) before anything is timed. One "
        f"process, {rounds} rounds in which every contender runs once on the same request, in an order drawn "
        f"anew; {whole.items:,} items, candidates anew each round.",
        meaningful=not given.quick,
    )  # fmt: skip
    bars: dict[str, contenders.Ratio] = {}
    floor: list[Section] = []
    with tempfile.TemporaryDirectory() as folder:
        step(f"building {whole.items:,} items in every precision")
        built = build(whole, Path(folder))
        served = {precision: in_precision(built, precision, Path(folder)) for precision in PRECISIONS}
        for n, length in cases:
            case, where = Case(built, n, length), f"N = {n:,}, L = {length:,}"
            step(f"{where}: choosing a SimTier in pure XLA")
            way = fastest(timed_ways(built.model.config, n, length, choosing))
            checked = contenders.contenders_of(case, served, way, choosing)
            step(f"{where}: timing")
            times = interleaved(checked.contenders, rounds)
            if not bars:
                floor, over = _floor(case, served, checked.stage, rounds, not given.quick)
                bars = contenders.ratios_of_bars(times) | over
            result.sections.append(_section(where, times, checked.answers, checked.settings))
    result.sections.insert(0, Section("Bars", rows=[BARS[name].row(*found) for name, found in bars.items()]))
    result.sections += floor
    return write(result, given.out, given.record)


def _section(title: str, times: Times, answers: dict[str, str], settings: str) -> Section:
    rows = [
        row_of(
            name, times[name].tolist(), ratio=contenders.ratio(times, name, STAGE)[0],
            also={"answers": answers[name]}, note=WHAT.get(name, WHAT[STAGE]),
        )
        for name in sorted(times, key=lambda name: float(np.median(times[name])))
    ]  # fmt: skip
    return Section(title, f"{settings}.", rows, ratio="times the stage")


def _floor(
    case: Case, served: dict[str, Built], stage: Stage, rounds: int, build_peaks: bool
) -> tuple[list[Section], dict[str, contenders.Ratio]]:
    """Return the floor of each precision, and the bar on it."""
    row = roofline.row_bytes(case.built)
    try:
        limits = roofline.measured_peaks(case.built.workload.items, row, build=build_peaks)
    except FileNotFoundError as error:
        return [Section("Roofline", f"Left out: {error}")], {}
    step("the stage by itself")
    times = interleaved([stage], rounds)[STAGE]
    best, sections = roofline.best(limits), []
    for precision, built in served.items():
        rows, floor = roofline.parts_of(case, built, best, precision)
        rows.append(Row("the whole stage", floor))
        text = "Limits are the best rates of one thread and of two, in the same run."
        sections.append(Section(f"Roofline, {precision}", text, rows, value="floor"))
    if roofline.busy(limits):
        sections.insert(0, Section("The machine was busy", roofline.BUSY))
    return sections, {ROOFLINE: quartiles(times / roofline.parts_of(case, case.built, best)[1])}


if __name__ == "__main__":
    main()
