"""Sizes and rounds of the bars, and one workload, built once, that all measurements share."""

import dataclasses
from functools import cached_property
from pathlib import Path

from cache_rows import SIZES, Size
from load import offering, publishing
from load.service import Service, Truth, make_service
from results import step
from workload import SMALL, Built, W, Workload, in_precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    meaningful: bool
    workload: Workload  # of stage and engine
    rows: Size  # of the cache
    stage_rounds: int  # in which the stage and its rivals take turns
    choosing_rounds: int  # in which the rivals' fastest forms are chosen
    overlap_rounds: int  # requests made in every way
    retrieval_ms: float
    load: offering.Plan
    publish: publishing.Plan
    cache_rounds: int  # in which cache and NumPy take turns
    writer_windows: int  # pairs of windows, without and with a writer


def plan_of(items: int, *, quick: bool) -> Plan:
    """Return the bars' own workload with as many rounds as ten minutes have room for.

    A quick plan has small sizes: answers are checked, values mean nothing.
    """
    rows = SIZES["item row in 6 columns"]
    if quick:
        return Plan(
            meaningful=False, workload=SMALL, rows=dataclasses.replace(rows, rows=20_000, batch=256),
            stage_rounds=3, choosing_rounds=1, overlap_rounds=4, retrieval_ms=2.0,
            load=offering.Plan(retrieval_ms=2.0, seconds=0.4, shares=(), rounds=2, threads=(2,)),
            publish=publishing.Plan(rate=60.0, seconds=3.0, warm=10, publishes=2),
            cache_rounds=5, writer_windows=2,
        )  # fmt: skip
    return Plan(
        meaningful=True, workload=dataclasses.replace(W, items=items),
        rows=dataclasses.replace(rows, rows=items),
        stage_rounds=25, choosing_rounds=3, overlap_rounds=250, retrieval_ms=10.0,
        load=offering.Plan(retrieval_ms=10.0, seconds=4.0, shares=(), rounds=7, threads=(1, 2, 3)),
        publish=publishing.Plan(rate=100.0, seconds=75.0, warm=100, publishes=10),
        cache_rounds=150, writer_windows=20,
    )  # fmt: skip


class Shared:
    """Workload, tables and right answers, each made when it is first asked for."""

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.folder = plan, folder

    @cached_property
    def service(self) -> Service:
        step(f"building {self.plan.workload.items:,} items")
        return make_service(self.plan.workload, self.folder)

    @cached_property
    def bfloat16(self) -> Built:
        step("tables in 16 bit")
        return in_precision(self.service.built, "bfloat16", self.folder)

    @cached_property
    def linear(self) -> Truth:
        step("the right answers")
        return Truth(self.service, "linear")

    @property
    def sizes(self) -> str:
        w = self.plan.workload
        return f"{w.items:,} items, N {w.candidates:,}, L {w.long_length:,}, top {w.k}"
