"""Overlap: the time of a request beyond max(retrieval, user side) + stage, one request at a time.

`python bench/overlap.py`: five minutes; `--quick` is over in half of one and only checks answers.
"""

import tempfile
from pathlib import Path

from bars.lines import BARS
from load import overlapping
from load.overlapping import FIELDS, Cell
from load.service import Truth, make_service
from results import Result, Row, Section, arguments, quantile, row_of, sizes, step, workload, write

WAYS = (
    ("sleeps", "rank"), ("sleeps", "begin and rank"), ("sleeps", "rank_async"),
    ("is a coroutine", "rank_async"), ("is a coroutine", "rank"),
)  # fmt: skip
"""Kinds of retrieval, and how requests are made."""


def cells(times_ms: tuple[float, ...], warm_ms: float) -> list[Cell]:
    """Return every way with each time of retrieval and cold user states, and with one and warm ones."""
    return [Cell(ms, *way, warm=False) for ms in times_ms for way in WAYS] + [
        Cell(warm_ms, *way, warm=True) for way in WAYS
    ]


def main(given_arguments: list[str] | None = None) -> Path:
    parser = arguments(__doc__, "overlap")
    parser.add_argument("--rounds", type=int, default=600, help="requests made in every way")
    given = parser.parse_args(given_arguments)
    rounds, times = (4, (2.0, 5.0)) if given.quick else (given.rounds, (5.0, 10.0, 20.0))
    asked, whole = cells(times, times[-1] if given.quick else 10.0), workload(given)
    result = Result(
        program="overlap", title="Overlap",
        question="How much longer than max(retrieval, user side) + stage does a request take?",
        plan={**sizes(whole), "rounds": rounds},
        answers="Every answer is checked against the definition (1e-4). One request at a time, every round "
        "in every way, in an order drawn anew. Retrieval and user side are the request's own, as they ran "
        "in it; the stage is measured by itself, called after a sleep as long as retrieval, in the same "
        "rounds.",
        meaningful=not given.quick,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        step("building")
        service = make_service(whole, Path(folder))
        step("the right answers")
        truth = Truth(service, "linear")
        step("requests in turns with their parts")
        found = overlapping.measure(service, truth, asked, rounds)
    beyond, medians = [], []
    stage_ms = {ms: quantile(taken, 0.5) for ms, taken in found.stage_ms.items()}
    for cell, samples in found.samples.items():
        middle = {name: quantile([getattr(s, name) for s in samples], 0.5) for name in FIELDS}
        user_side = 0.0 if cell.warm else quantile(found.user_side_ms, 0.5)
        parts = max(middle["retrieval"], user_side) + stage_ms[cell.ms]
        also = {
            "p50, its own stage": quantile([s.beyond() for s in samples], 0.5),
            "p50, parts alone": middle["total"] - parts,
        }  # fmt: skip
        beyond.append(row_of(cell.name, found.beyond(cell), tails=True, also=also))
        medians.append(Row(cell.name, middle.pop("total"), also=middle))
    bar, worst = BARS["overlap_sleeps"], max(beyond, key=lambda row: row.value or 0.0)
    assert worst.value is not None
    reading = (
        f"Bar at p50: {bar.needed} ms, reach for {bar.reach}; holds: {bar.outcome(worst.value)}, by the "
        f"worst, {worst.name}. Its own stage: as long as the stage took in that request. Parts alone: "
        "retrieval's own median, user side and stage called directly."
    )
    alone = [row_of("user side", found.user_side_ms)]
    alone += [row_of(f"stage after {ms:g} ms of sleep", taken) for ms, taken in found.stage_ms.items()]
    result.sections += [
        Section("Milliseconds beyond the parts", reading, beyond, "p50 (quartiles)"),
        Section("Where the time goes", "Medians in milliseconds.", medians, "total"),
        Section("Parts by themselves", rows=alone),
    ]
    return write(result, given.out, given.record)


if __name__ == "__main__":
    main()
