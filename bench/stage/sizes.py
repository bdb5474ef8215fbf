"""What is measured, as data: the workload W, variations of it, and a small one for a test."""

import dataclasses

from workload import W, Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run of the comparison.

    Attributes:
        meaningful: whether its times say anything.
        workload: model, catalogue and user; its ``long_length`` is the longest history of any case.
        cases: candidates ``N`` and history ``L`` of the requests; the first is the one that bars are about.
        growth: changes of the model's config, or of ``items``, under which stage and hand-rolled alternative
            are timed again; the first names what the others vary.
        growth_items: items of the catalogue there, unless changed.
        rounds: rounds of each case.
        choosing_rounds: rounds in which the fastest way of the rivals is chosen.
    """

    meaningful: bool
    workload: Workload
    cases: tuple[tuple[int, int], ...]
    growth: tuple[dict[str, int], ...]
    growth_items: int
    rounds: int
    choosing_rounds: int


def full(items: int, rounds: int) -> Plan:
    """Return the whole comparison over a catalogue of ``items``."""
    return Plan(
        meaningful=True,
        workload=_workload(items, candidates=4096, long_length=4096, k=500),
        cases=((4096, 1024), (512, 1024), (2048, 1024), (8192, 1024), (4096, 256), (4096, 4096)),
        growth=(
            {"signature_bits": 256, "hidden": 128, "items": 50_000},
            *({"signature_bits": bits} for bits in (64, 128, 512)),
            *({"hidden": width} for width in (32, 64, 256)),
            *({"items": count} for count in (10_000, 250_000)),
        ),
        growth_items=50_000,
        rounds=rounds,
        choosing_rounds=9,
    )


def quick() -> Plan:
    """Return a comparison that is over in a minute and checks every answer; its times mean nothing."""
    return Plan(
        meaningful=False,
        workload=_workload(5_000, candidates=512, long_length=256, k=100),
        cases=((512, 128),),
        growth=(),
        growth_items=0,
        rounds=3,
        choosing_rounds=1,
    )


def _workload(items: int, *, candidates: int, long_length: int, k: int) -> Workload:
    return dataclasses.replace(
        W, items=items, candidates=candidates, long_length=long_length, k=k,
        config=W.config.replace(long_length=long_length),
    )  # fmt: skip
