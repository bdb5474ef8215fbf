"""How well a pre-ranker keeps what a ranker would have wanted: its proper measure."""

import dataclasses
from typing import Any

import numpy as np

SURVIVORS = ((10, 100), (20, 200), (50, 200))
"""Pairs (K, M): how many of the ranker's best K are among the pre-ranker's best M."""

POSITIVES = (50, 100, 200)
"""M for which it is told which share of the positives is among the pre-ranker's best M."""

NDCG_K, NDCG_M = 10, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Shares over candidate lists, each of positives, maybe more that was shown, and items never seen.

    Attributes:
        survivors: by ``K@M``: share of the ranker's best K that are among the pre-ranker's best M.
        positives: by M: share of a list's positives that are among the pre-ranker's best M; each list counts
            alike.
        ndcg: NDCG@10 of the ranker's order of the pre-ranker's best 100, gains being the ranker's
            probabilities, against the ranker's order of all.
        lists: how many there were.
        candidates: in the mean list; random choice keeps M out of as many.
        positive: how many of those are positives.
    """

    survivors: dict[str, float]
    positives: dict[str, float]
    ndcg: float
    lists: int
    candidates: float
    positive: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return dataclasses.asdict(self)


def retention(ranker: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> Retention:
    """Compare a pre-ranker with a ranker on the same candidate lists.

    Ties are broken by place, which says nothing: unseen candidates stand in random order, and positives are
    put behind those that score the same.

    Args:
        ranker: its logits, ``[R, C]``, ``-inf`` where there is no candidate.
        scores: those of the pre-ranker, ``[R, C]``.
        chosen: bool ``[R, C]``, the positives, at least one in every list.
    """
    lists, columns = ranker.shape
    by_ranker, by_scores = _order(ranker, chosen), _order(scores, chosen)
    place = np.empty_like(by_scores)
    np.put_along_axis(place, by_scores, np.arange(columns)[None, :].repeat(lists, 0), axis=1)
    survivors = {}
    for k, m in SURVIVORS:
        best = by_ranker[:, :k]
        survivors[f"{k}@{m}"] = float(np.mean(np.take_along_axis(place, best, axis=1) < m))
    gains = 1.0 / (1.0 + np.exp(-np.clip(ranker, -50.0, 50.0)))
    gains = np.where(np.isfinite(ranker), gains, 0.0)
    kept = np.where(place < NDCG_M, ranker, -np.inf)
    mine = np.take_along_axis(np.where(place < NDCG_M, gains, 0.0), _order(kept, chosen)[:, :NDCG_K], axis=1)
    ideal = np.take_along_axis(gains, by_ranker[:, :NDCG_K], axis=1)
    discount = 1.0 / np.log2(np.arange(NDCG_K) + 2.0)
    return Retention(
        survivors=survivors,
        positives={
            str(m): float(np.mean(np.sum(chosen & (place < m), axis=1) / chosen.sum(axis=1)))
            for m in POSITIVES
        },
        ndcg=float(np.mean((mine @ discount) / (ideal @ discount))),
        lists=lists,
        candidates=float(np.isfinite(ranker).sum(axis=1).mean()),
        positive=float(chosen.sum(axis=1).mean()),
    )


def _order(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the columns from best to worst; positives lose against equals."""
    return np.lexsort((chosen, -scores), axis=1)
