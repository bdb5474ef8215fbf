"""Retention: the share of what a ranker would have wanted that a pre-ranker keeps, its proper measure."""

from typing import Any

import numpy as np

SURVIVORS = ((10, 100), (20, 200), (50, 200))
"""Pairs (K, M): share of the ranker's best K that are among the pre-ranker's best M."""

POSITIVES = (50, 100, 200)
"""M: share of a list's positives that are among the pre-ranker's best M."""

NDCG_K, NDCG_M = 10, 100


def retention(ranker: np.ndarray, scores: np.ndarray, positives: np.ndarray) -> dict[str, Any]:
    """Compare a pre-ranker with a ranker on the same candidate lists.

    Ties are broken by place, which says nothing: unseen candidates stand in random order, and positives are
    put behind those that score the same.

    Args:
        ranker: its logits, ``[R, C]``, ``-inf`` where there is no candidate.
        scores: those of the pre-ranker, ``[R, C]``.
        positives: bool ``[R, C]``, at least one in every list.

    Returns:
        ``survivors`` by ``K@M``; ``positives`` by M, each list alike; ``ndcg``, NDCG@10 of the ranker's order
        of the pre-ranker's best 100, gains being the ranker's probabilities, against its order of all.
    """
    lists, columns = ranker.shape
    by_ranker, by_scores = _order(ranker, positives), _order(scores, positives)
    place = np.empty_like(by_scores)
    np.put_along_axis(place, by_scores, np.arange(columns)[None, :].repeat(lists, 0), axis=1)
    survivors = {
        f"{k}@{m}": float(np.mean(np.take_along_axis(place, by_ranker[:, :k], axis=1) < m))
        for k, m in SURVIVORS
    }
    gains = np.where(np.isfinite(ranker), 1.0 / (1.0 + np.exp(-np.clip(ranker, -50.0, 50.0))), 0.0)
    best = _order(np.where(place < NDCG_M, ranker, -np.inf), positives)[:, :NDCG_K]
    mine = np.take_along_axis(np.where(place < NDCG_M, gains, 0.0), best, axis=1)
    ideal = np.take_along_axis(gains, by_ranker[:, :NDCG_K], axis=1)
    discount = 1.0 / np.log2(np.arange(NDCG_K) + 2.0)
    kept = {m: np.sum(positives & (place < m), axis=1) / positives.sum(axis=1) for m in POSITIVES}
    return {
        "survivors": survivors,
        "positives": {str(m): float(np.mean(shares)) for m, shares in kept.items()},
        "ndcg": float(np.mean((mine @ discount) / (ideal @ discount))),
    }


def _order(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return the columns from best to worst; positives lose against equals."""
    return np.lexsort((positives, -scores), axis=1)
