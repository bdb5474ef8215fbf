"""Statistics of items over the training part, which a model reads by item id.

For each head ``log odds((s + k p) / (n + k)) - log odds(p)``, where ``s`` of an item's ``n`` training rows
are positive, ``p`` of all are, and ``k`` is `SMOOTHING`; the same for each type among the behaviours with the
item; and ``log((n + 1) / (mean + 1))`` of its behaviours. So 0 is an item of which nothing is known.

Training reads them from other users, in folds, because a row's own label is in those of all. What a count
tells, an embedding of the id would have to learn: with few rows an item it learns the rows instead.
"""

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.data import TRAIN, Dataset
from aif_jax.data.content import FOLDS
from aif_jax.features import Schema
from aif_jax.features.encoders import FIRST
from aif_jax.models.own_model import OwnConfig

_CHUNK = 1 << 22

SMOOTHING = 10.0
"""Rows at the overall rate that every item is given on top of its own."""


def folds_of(dataset: Dataset, config: ModelConfig | OwnConfig) -> int:
    """Return the number of groups of users, each of which training reads what other users did; 0 for none."""
    of_content = 0 if dataset.content is None else len(dataset.content.folds)
    return of_content or (FOLDS if config.item_statistics else 0)


def item_statistics(
    dataset: Dataset, schema: Schema, heads: tuple[str, ...], *, folds: int = 0
) -> np.ndarray:
    """Count the training part by encoded item id.

    Args:
        dataset: with a training part.
        schema: fitted, with an item id.
        heads: names of labels.
        folds: number of groups of users ``u``, by ``u % folds``, each of which gets the counts of all others;
            0 for the counts of all users.

    Returns:
        float32 ``[ids, heads + types + 1]``, in the order of `aif_jax.models.item.statistics_labels`; zeros
        of what is missing, unknown or has no two classes. With folds ``[folds, ids, ...]``.
    """
    assert schema.item_id is not None
    size, groups = schema.id_size, max(folds, 1)
    ids = dataset.encode(schema, "item")[schema.item_id]
    rows, events = dataset.impressions, dataset.events
    trained, event_user = rows.split == TRAIN, events.user

    def counted(
        user: np.ndarray, item: np.ndarray, chosen: np.ndarray, weight: np.ndarray | None = None
    ) -> np.ndarray:
        """Return how many chosen rows each id has, or the sum of their weights, ``[groups, size]``."""
        found = np.zeros(groups * size)
        for start in range(0, len(chosen), _CHUNK):
            part = start + np.flatnonzero(chosen[start : start + _CHUNK])
            keys = user[part] % groups * np.int64(size) + ids[item[part]]
            each = None if weight is None else weight[part]
            found += np.bincount(keys, each, minlength=groups * size)
        found = found.reshape(groups, size)
        return found.sum(axis=0) - found if folds else found

    columns: list[np.ndarray] = []
    for head in heads:
        known = trained & (np.asarray(rows.label_mask[head]) > 0)
        total = counted(rows.user, rows.item, known)
        columns.append(_odds(counted(rows.user, rows.item, known, rows.labels[head]), total))
    done = counted(event_user, events.item, events.training)
    for kind in range(len(schema.behaviour_types)):
        of_kind = events.training & (events.type == kind)
        columns.append(_odds(counted(event_user, events.item, of_kind), done))
    mean = done[:, FIRST:].mean(axis=1, keepdims=True) if size > FIRST else 0.0
    columns.append(np.log((done + 1) / (mean + 1)))
    found = np.stack(columns, axis=-1).astype(np.float32)
    found[:, :FIRST] = 0.0
    return found if folds else found[0]


def _odds(positive: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the smoothed log odds of each id ``[groups, ids]``, less those of all; 0 without two classes."""
    rate = positive.sum(axis=1, keepdims=True) / np.maximum(total.sum(axis=1, keepdims=True), 1)
    both = (rate > 0) & (rate < 1)
    rate = np.where(both, rate, 0.5)
    share = (positive + SMOOTHING * rate) / (total + SMOOTHING)
    return np.where(both, np.log(share / (1 - share)) - np.log(rate / (1 - rate)), 0.0)
