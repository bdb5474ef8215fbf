"""The frozen rankers that may judge what a pre-ranker keeps, and what each says of candidates."""

import dataclasses
from typing import Any

import numpy as np

from aif_jax.errors import ConfigError
from aif_jax.evaluation.variants import VARIANTS, Variant
from aif_jax.training import CandidateLists, Evaluator

JUDGE_SEED = 10_007

RANKER = Variant(
    "ranker", "exact with a seed of its own: it judges what a pre-ranker keeps", {"architecture": "exact"}
)
"""It judges by its main head, whatever the score; what it judges is ordered by its score."""

JUDGES = {
    "impressions": RANKER,
    "shown": dataclasses.replace(VARIANTS["exact_shown"], name="ranker_shown"),
}
"""By what they learnt from. A ranker that knows impressions only has met nothing that would not be shown, and
what it says of an unseen item is a guess. The other learnt to tell that too, and judges by its score."""


def judge_of(name: str) -> Variant:
    """Return one of `JUDGES`.

    Raises:
        ConfigError: there is no such judge.
    """
    if name not in JUDGES:
        raise ConfigError(f"judge: got {name!r}, expected one of {', '.join(JUDGES)}.")
    return JUDGES[name]


def judged(judge: Variant, evaluator: Evaluator, model: Any, lists: CandidateLists) -> np.ndarray:
    """Return what a judge says of candidates, float32 ``[R, C]``: the larger the better.

    Logits: of its main head; or of ``s / (1 + s)`` where it judges by its score ``s``, a probability times a
    factor, which orders as the score does and gives gains in [0, 1].

    Args:
        judge: one of `JUDGES`.
        evaluator: of the part that is judged.
        model: trained as that judge.
        lists: of candidates; what there is not gets ``-inf``.
    """
    if judge is JUDGES["impressions"]:
        return evaluator.score_lists(model, lists, main_head=True)
    scores = evaluator.score_lists(model, lists)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isfinite(scores), np.log(scores), -np.inf).astype(np.float32)
