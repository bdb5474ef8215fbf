"""How well a pre-ranker keeps what a ranker would have wanted: its proper measure."""

import dataclasses
from typing import Any

import numpy as np

SURVIVORS = ((10, 100), (20, 200), (50, 200))
"""Pairs (K, M): how many of the ranker's best K are among the pre-ranker's best M."""

POSITIVES = (50, 100, 200)
"""M for which it is told whether the positive is among the pre-ranker's best M."""

NDCG_K, NDCG_M = 10, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Shares over candidate lists, each of one positive and many items that the user never saw.

    Attributes:
        survivors: by ``K@M``: share of the ranker's best K that are among the pre-ranker's best M.
        positives: by M: share of lists whose positive is among the pre-ranker's best M.
        ndcg: NDCG@10 of the ranker's order of the pre-ranker's best 100, gains being the ranker's
            probabilities, against the ranker's order of all.
        lists: how many there were.
        candidates: in each of them; random choice keeps M out of as many.
    """

    survivors: dict[str, float]
    positives: dict[str, float]
    ndcg: float
    lists: int
    candidates: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return dataclasses.asdict(self)


def retention(ranker: np.ndarray, scores: np.ndarray) -> Retention:
    """Compare a pre-ranker with a ranker on the same candidate lists.

    Ties are broken by place, which says nothing: the candidates beside the positive stand in random order,
    and the positive, which stands first, is put behind those that score the same.

    Args:
        ranker: its logits, ``[R, C]``, the positive first, ``-inf`` where there is no candidate.
        scores: those of the pre-ranker, ``[R, C]``.
    """
    lists, candidates = ranker.shape
    by_ranker, by_scores = _order(ranker), _order(scores)
    place = np.empty_like(by_scores)
    np.put_along_axis(place, by_scores, np.arange(candidates)[None, :].repeat(lists, 0), axis=1)
    survivors = {}
    for k, m in SURVIVORS:
        best = by_ranker[:, :k]
        survivors[f"{k}@{m}"] = float(np.mean(np.take_along_axis(place, best, axis=1) < m))
    gains = 1.0 / (1.0 + np.exp(-np.clip(ranker, -50.0, 50.0)))
    gains = np.where(np.isfinite(ranker), gains, 0.0)
    kept = np.where(place < NDCG_M, ranker, -np.inf)
    mine = np.take_along_axis(np.where(place < NDCG_M, gains, 0.0), _order(kept)[:, :NDCG_K], axis=1)
    ideal = np.take_along_axis(gains, by_ranker[:, :NDCG_K], axis=1)
    discount = 1.0 / np.log2(np.arange(NDCG_K) + 2.0)
    return Retention(
        survivors=survivors,
        positives={str(m): float(np.mean(place[:, 0] < m)) for m in POSITIVES},
        ndcg=float(np.mean((mine @ discount) / (ideal @ discount))),
        lists=lists,
        candidates=candidates,
    )


def _order(scores: np.ndarray) -> np.ndarray:
    """Return the places of the columns from best to worst; the first column loses against equals."""
    rolled = np.roll(scores, -1, axis=1)
    return (np.argsort(-rolled, axis=1, kind="stable") + 1) % scores.shape[1]
