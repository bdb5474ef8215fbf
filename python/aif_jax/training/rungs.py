"""What each rung of the deadline ladder costs: one model on a data set with less and less known."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from aif_jax.data import Dataset
from aif_jax.models import fold
from aif_jax.models.baselines import Model
from aif_jax.training.as_served import AsServed, Rankings, user_requests
from aif_jax.training.candidates import candidate_lists
from aif_jax.training.evaluate import Evaluator, HeadMetrics, head_metrics
from aif_jax.training.metrics import (
    GaucDifference,
    gauc_difference,
    hit_rate_at_k,
    rank_correlation,
    top_k_overlap,
)

RUNGS = (0, 1, 2, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungQuality:
    """One model on one rung.

    Attributes:
        rung: which, see `aif_jax.serving.ladder`.
        heads: metrics of each head over the test part, the main one first.
        gauc_difference: GAUC of the main head minus that on rung 0, with a paired bootstrap over users.
        hit_rate: HR@K of the main head by K, over `hit_lists` candidate lists.
        hit_lists: how many there were.
        candidates: int ``[U]``, how many each user's request had.
        correlation: ``[U]``, Spearman's of the scores of each request with those on rung 0.
        overlap: ``[U]``, share of the best ``k`` on rung 0 among the best ``k``.
    """

    rung: int
    heads: Mapping[str, HeadMetrics]
    gauc_difference: GaucDifference
    hit_rate: Mapping[int, float]
    hit_lists: int
    candidates: np.ndarray
    correlation: np.ndarray
    overlap: np.ndarray


def compare_rungs(
    model: Model,
    dataset: Dataset,
    *,
    users: int = 500,
    candidates: int = 4096,
    k: int = 500,
    lists: int = 1000,
    seed: int = 0,
) -> dict[int, RungQuality]:
    """Measure a model on every rung against itself on rung 0, computed by its folded programs in float32.

    Args:
        model: trained, of any architecture that folds.
        dataset: of the schema that the model was trained with; its test part is used.
        users: requests for rankings, each the first of the test part of another user.
        candidates: items of each request at most: all that are not in the user's history then, or so many
            drawn from them. Their pair features are missing.
        k: how many results a request would keep.
        lists: candidate lists for HR@K, see `candidate_lists`.
        seed: of the draws.

    Raises:
        ConfigError: the architecture does not fold.
        DataError: the data set has no test part.
        TrainingError: a logit is not finite.
    """
    head, rows = model.config.heads[0], dataset.impressions
    requests = user_requests(dataset, users, candidates, seed)
    hits = candidate_lists(dataset, "test", head, lists=lists, seed=seed)
    evaluator, folded = Evaluator(dataset, model, "test"), fold(model)
    measured: dict[int, RungQuality] = {}
    full: tuple[np.ndarray, Rankings] | None = None
    for rung in RUNGS:
        served = AsServed(folded, dataset, rung=rung)
        logits, rankings = evaluator.collect(served.logits), served.rankings(requests)
        full = full or (logits, rankings)
        known = np.isfinite(logits[:, 0]) & (np.asarray(rows.label_mask[head]) > 0)
        pairs = list(zip(rankings, full[1], strict=True))
        listed = np.full(hits.items.shape, -np.inf)
        for place, (_, found) in enumerate(served.rankings(hits)):
            listed[place, hits.items[place] >= 0] = found
        measured[rung] = RungQuality(
            rung=rung,
            heads={
                name: head_metrics(dataset, "test", name, logits[:, place])
                for place, name in enumerate(model.config.heads)
            },
            gauc_difference=gauc_difference(
                rows.user[known], rows.labels[head][known], logits[known, 0], full[0][known, 0]
            ),
            hit_rate={at: hit_rate_at_k(listed, at) for at in (10, 50)},
            hit_lists=len(hits),
            candidates=np.array([len(score) for score, _ in rankings]),
            correlation=np.array([rank_correlation(mine[0], theirs[0]) for mine, theirs in pairs]),
            overlap=np.array([top_k_overlap(mine[0], theirs[0], k) for mine, theirs in pairs]),
        )
    return measured
