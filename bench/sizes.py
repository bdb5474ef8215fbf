"""Sizes of the suites as data: the standard workload, and a small one that only checks answers."""

import dataclasses

from stage.contenders import COLD, HAND_ROLLED, ONNX, SEQUENTIAL
from workload import SMALL, W, Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the suites.

    Attributes:
        workload: of stage, engine and nearline.
        cache_share: share of the cache's rows.
        tasks: tasks of the scheduler at once.
        rivals: contenders beside the stage.
        rows: item rows that nearline computes or writes at once.
        train_users: users of the training data.
    """

    workload: Workload
    cache_share: float
    tasks: int
    rivals: tuple[str, ...]
    rows: int
    train_users: int


FULL = Sizes(
    workload=W,
    cache_share=1.0,
    tasks=200,
    rivals=(SEQUENTIAL, ONNX, HAND_ROLLED, COLD),
    rows=8192,
    train_users=2000,
)
QUICK = Sizes(workload=SMALL, cache_share=0.01, tasks=50, rivals=(HAND_ROLLED,), rows=256, train_users=60)
