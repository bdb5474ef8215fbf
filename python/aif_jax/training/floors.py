"""Scores without learning: what a model must beat before anything else is said about it."""

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.errors import DataError
from aif_jax.features.encoders import FIRST
from aif_jax.training.evaluate import HeadMetrics, Metrics, head_metrics

SMOOTHING = 10.0
"""Impressions at the overall rate that every item, and every user, is given on top of its own."""


def floor_scores(dataset: Dataset, head: str, *, smoothing: float = SMOOTHING) -> dict[str, np.ndarray]:
    """Score every impression from counts over the training part alone.

    - ``item mean``: ``(sum_i y + k p) / (n_i + k)``, with ``p`` the overall rate and ``k`` the smoothing.
    - ``item mean + user bias``: plus ``sum_u (y - item mean) / (n_u + k)``, cut to [1e-4, 1 - 1e-4]. Within
      a user it orders as the item mean does, but for what is cut, so its GAUC is nearly the same; its AUC is
      not.
    - ``item mean + taste``: plus the mean of ``sum_uc (y - item mean) / (n_uc + k)`` over the item's
      categories ``c``, counted over the user's training rows with items of that category, cut likewise; not
      there where items have no category. What it adds in GAUC is what these rows tell without a model; of
      users without training rows they tell nothing.

    Only scores of impressions outside the training part say anything: a training row's label is in its own
    score.

    Args:
        dataset: with a training part.
        head: name of the label.
        smoothing: ``k``, at least 0.

    Returns:
        Probabilities, float64 ``[impressions]`` by name.

    Raises:
        DataError: the labels of the training part are all of one class, or none is known: then every count
            gives the same score, and its log odds are infinite.
    """
    rows = dataset.impressions
    labels = np.asarray(rows.labels[head], np.float64)
    known = (rows.split == TRAIN) & (np.asarray(rows.label_mask[head]) > 0)
    items, users, y = rows.item[known], rows.user[known], labels[known]
    rate = float(y.mean()) if y.size else float("nan")
    if not 0.0 < rate < 1.0:
        given = (
            f"all {y.size:,} known training labels of head {head!r} are {rate:g}"
            if y.size
            else f"no training label of head {head!r} is known"
        )
        raise DataError(
            f"{dataset.name}: {given}, expected some of 0 and some of 1: counts cannot score without both. "
            "Give data that holds both, or leave the head out (heads=...)."
        )

    def shrunk(index: np.ndarray, values: np.ndarray, size: int, prior: float) -> np.ndarray:
        total = np.bincount(index, weights=values, minlength=size) + smoothing * prior
        return total / np.maximum(np.bincount(index, minlength=size) + smoothing, 1e-12)

    item_mean = shrunk(items, y, dataset.n_items, rate)
    user_bias = shrunk(users, y - item_mean[items], dataset.n_users, 0.0)
    item_score = item_mean[rows.item]
    added = {"user bias": user_bias[rows.user]}
    if dataset.schema.category is not None:
        residual = y - item_mean[items]
        added["taste"] = _taste(dataset, users, items, residual, smoothing)
    return {"item mean": item_score} | {
        f"item mean + {name}": np.clip(item_score + values, 1e-4, 1.0 - 1e-4)
        for name, values in added.items()
    }


def _taste(
    dataset: Dataset, users: np.ndarray, items: np.ndarray, residual: np.ndarray, smoothing: float
) -> np.ndarray:
    """Return for every impression the shrunk residual of its user in its item's categories, their mean."""
    schema = dataset.fit_schema()
    category = schema.category_ids(dataset.encode(schema, "item"))
    size = int(category.max(initial=0)) + 1

    def pairs(of_users: np.ndarray, of_items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = category[of_items]
        return of_users.astype(np.int64)[:, None] * size + codes, codes >= FIRST

    seen, named = pairs(users, items)
    keys, index = np.unique(seen[named], return_inverse=True)
    total = np.bincount(index, weights=np.broadcast_to(residual[:, None], named.shape)[named])
    mean = total / (np.bincount(index) + max(smoothing, 1e-12))
    rows = dataset.impressions
    wanted, named = pairs(rows.user, rows.item)
    place = np.minimum(np.searchsorted(keys, wanted), max(keys.size - 1, 0))
    found = (
        np.where(named & (keys[place] == wanted), mean[place], 0.0) if keys.size else np.zeros(named.shape)
    )
    return found.sum(axis=1) / np.maximum(named.sum(axis=1), 1)


def floors(
    dataset: Dataset, split: str = "test", *, heads: tuple[str, ...] | None = None
) -> dict[str, Metrics]:
    """Metrics of the scores of `floor_scores` on one part of the data.

    Args:
        dataset: with a training part.
        split: which part is scored.
        heads: names of labels; ``None`` means all of the dataset's.

    Raises:
        DataError: see `floor_scores`.
    """
    heads = dataset.heads if heads is None else heads
    found: dict[str, dict[str, HeadMetrics]] = {}
    for head in heads:
        for name, score in floor_scores(dataset, head).items():
            logits = np.log(score) - np.log1p(-score)
            found.setdefault(name, {})[head] = head_metrics(dataset, split, head, logits)
    return {name: Metrics(split=split, heads=by_head) for name, by_head in found.items()}
