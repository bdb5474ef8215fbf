"""Floors: scores without learning, which a model must beat before anything else counts."""

import numpy as np

from aif_jax.checks import typed
from aif_jax.data import TRAIN, Dataset
from aif_jax.errors import DataError
from aif_jax.features.encoders import FIRST
from aif_jax.lookup import find
from aif_jax.training.evaluate import HeadMetrics, Metrics, head_metrics
from aif_jax.training.item_statistics import SMOOTHING

RECENT = 20
"""Behaviours before an impression whose categories `floor_scores` compares with the item's."""

_CHUNK = 1 << 15


class LabelCounts:
    """Counts of one label over the training part, and the floors that they give.

    Args:
        dataset: with a training part.
        head: name of the label.
        smoothing: ``k`` of `floor_scores`, at least 0.

    Raises:
        DataError: see `floor_scores`.

    Attributes:
        rate: share of positives among the known training labels, in (0, 1).
        shown: int64 ``[n_items]``, training impressions of each item, whether the label is known or not.
    """

    def __init__(self, dataset: Dataset, head: str, *, smoothing: float = SMOOTHING) -> None:
        rows = dataset.impressions
        labels = np.asarray(rows.labels[head], np.float64)
        known = (rows.split == TRAIN) & (np.asarray(rows.label_mask[head]) > 0)
        items, users, y = rows.item[known], rows.user[known], labels[known]
        self.rate = float(y.mean()) if y.size else float("nan")
        if not 0.0 < self.rate < 1.0:
            given = (
                f"all {y.size:,} known training labels of head {head!r} are {self.rate:g}"
                if y.size
                else f"no training label of head {head!r} is known"
            )
            raise DataError(
                f"{dataset.name}: {given}, expected some of 0 and some of 1: counts cannot score without "
                "both. Give data that holds both, or leave the head out (heads=...)."
            )
        self._dataset = dataset
        self.shown = np.bincount(rows.item[rows.split == TRAIN], minlength=dataset.n_items)
        self._smoothing = max(smoothing, 1e-12)
        self._item_mean = self._shrunk(items, y, dataset.n_items, self.rate)
        residual = y - self._item_mean[items]
        self._user_bias = self._shrunk(users, residual, dataset.n_users, 0.0)
        self._category = None
        if dataset.schema.category is not None:
            schema = dataset.fit_schema()
            self._category = schema.category_ids(dataset.encode(schema, "item"))
            keys, named = self._pairs(users, items)
            self._seen, index = np.unique(keys[named], return_inverse=True)
            total = np.broadcast_to(residual[:, None], named.shape)[named]
            self._taste = self._shrunk(index, total, self._seen.size, 0.0)
            done = self._category[dataset.events.item[dataset.events.training]]
            counts = np.bincount(done[done >= FIRST], minlength=int(self._category.max(initial=0)) + 1)
            rare = 1.0 - counts / max(len(done), 1)
            self._usual = 1.0 - np.where(self._category >= FIRST, rare[self._category], 1.0).prod(axis=1)

    def scores(self, users: np.ndarray, items: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
        """Return the floors of pairs of a user and an item, probabilities by name.

        Args:
            users: rows of users, ``[I]``.
            items: rows of items, ``[I]``.
            ends: where the history of each pair ends, ``[I]``, see `Impressions.history_end`.

        Returns:
            float64 ``[I]`` each, by the names of `floor_scores`.
        """
        mean = self._item_mean[items]
        added = {"item mean + user bias": self._user_bias[users]}
        if self._category is not None:
            added["item mean + taste"] = self._taste_of(users, items)
        found = {"item mean": mean} | {name: _clipped(mean + values) for name, values in added.items()}
        if self._category is not None:
            odds = mean / (1.0 - mean) * self._recent(users, items, ends)
            found["item mean + recent categories"] = _clipped(odds / (1.0 + odds))
        return found

    def _recent(self, users: np.ndarray, items: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return how much oftener than usual the last behaviours have a category of the item, smoothed."""
        assert self._category is not None
        lift = np.ones(len(items))
        for start in range(0, len(items), _CHUNK):
            part = slice(start, start + _CHUNK)
            past, _ = self._dataset.history(users[part], ends[part], RECENT)
            mine, theirs = self._category[items[part]], self._category[past]
            same = (theirs[:, :, :, None] == mine[:, None, None, :]) & (mine >= FIRST)[:, None, None, :]
            alike = (same.any(axis=(2, 3)) & (past >= 0)).sum(axis=1)
            usual = np.maximum(self._usual[items[part]], 1e-6)
            k = self._smoothing
            lift[part] = (alike + k * usual) / ((past >= 0).sum(axis=1) + k) / usual
        return np.where((self._category[items] >= FIRST).any(axis=1), lift, 1.0)

    def _shrunk(self, index: np.ndarray, values: np.ndarray, size: int, prior: float) -> np.ndarray:
        total = np.bincount(index, weights=values, minlength=size) + self._smoothing * prior
        return total / (np.bincount(index, minlength=size) + self._smoothing)

    def _taste_of(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the shrunk residual of each user in the categories of the item, their mean."""
        wanted, named = self._pairs(users, items)
        if not self._seen.size:
            return np.zeros(len(wanted))
        place, seen = find(self._seen, wanted)
        found = np.where(named & seen, self._taste[place], 0.0)
        return found.sum(axis=1) / np.maximum(named.sum(axis=1), 1)

    def _pairs(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a number for each pair of a user and a category of the item, and which categories exist."""
        assert self._category is not None
        size = int(self._category.max(initial=0)) + 1
        codes = self._category[items]
        return users.astype(np.int64)[:, None] * size + codes, codes >= FIRST


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 1e-4, 1.0 - 1e-4)


@typed
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
    - ``item mean + recent categories``: its odds times ``(a + k b) / (n + k) / b``, where ``a`` of the user's
      last ``n`` behaviours before the impression (`RECENT` at most) have a category of the item, and ``b`` is
      the share of training behaviours that have one; not there where items have no category. What a model
      adds to it is more than the user's last interests.

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
    return LabelCounts(dataset, head, smoothing=smoothing).scores(rows.user, rows.item, rows.history_end)


@typed
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
