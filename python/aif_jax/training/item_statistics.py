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

SMOOTHING = 10.0
"""Rows at the overall rate that every item is given on top of its own."""


def folds_of(dataset: Dataset, config: ModelConfig | OwnConfig) -> int:
    """Return the number of groups of users, each of which training reads what other users did; 0 for none."""
    of_content = 0 if dataset.content is None else len(dataset.content.folds)
    return of_content or (FOLDS if config.item_statistics else 0)


def item_statistics(
    dataset: Dataset, schema: Schema, heads: tuple[str, ...], *, fold: int | None = None, folds: int = FOLDS
) -> np.ndarray:
    """Count the training part by encoded item id.

    Args:
        dataset: with a training part.
        schema: fitted, with an item id.
        heads: names of labels.
        fold: leave out users ``u`` of ``u % folds == fold``; ``None`` for none.
        folds: number of groups of users.

    Returns:
        float32 ``[ids, heads + types + 1]``, in the order of `aif_jax.models.item.statistics_labels`; zeros
        of what is missing, unknown or has no two classes.
    """
    assert schema.item_id is not None
    size = schema.id_size
    ids = dataset.encode(schema, "item")[schema.item_id]
    rows, events = dataset.impressions, dataset.events

    def kept(users: np.ndarray) -> np.ndarray:
        return np.ones(len(users), bool) if fold is None else users % folds != fold

    columns = []
    trained = (rows.split == TRAIN) & kept(rows.user)
    for head in heads:
        known = trained & (np.asarray(rows.label_mask[head]) > 0)
        columns.append(_odds(ids[rows.item[known]], rows.labels[head][known], size))
    done = events.training & kept(events.user)
    of_event = ids[events.item[done]]
    columns += [
        _odds(of_event, events.type[done] == kind, size) for kind in range(len(schema.behaviour_types))
    ]
    count = np.bincount(of_event, minlength=size)
    columns.append(np.log((count + 1) / (count[FIRST:].mean() + 1 if size > FIRST else 1)))
    found = np.stack(columns, axis=1).astype(np.float32)
    found[:FIRST] = 0.0
    return found


def _odds(ids: np.ndarray, positive: np.ndarray, size: int) -> np.ndarray:
    """Return the smoothed log odds of each id, less those of all."""
    total = np.bincount(ids, weights=positive, minlength=size)
    count = np.bincount(ids, minlength=size)
    rate = float(total.sum()) / max(len(ids), 1)
    if not 0.0 < rate < 1.0:
        return np.zeros(size)
    share = (total + SMOOTHING * rate) / (count + SMOOTHING)
    return np.log(share / (1 - share)) - np.log(rate / (1 - rate))
