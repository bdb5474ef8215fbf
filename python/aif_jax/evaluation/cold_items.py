"""The part of the test that says how a model fares with items of which it has seen little."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.data.splits import split_number
from aif_jax.evaluation.paired import PairedBootstrap
from aif_jax.training.metrics import auc, gauc, user_aucs

AT_MOST = 10
"""Impressions in the training part up to which an item counts as cold."""


def of_cold_items(dataset: Dataset, split: str) -> np.ndarray:
    """Return which impressions of a part are of items with few impressions in the training part.

    Args:
        dataset: as it was trained on: where the validation part trained too, it counts.
        split: ``train``, ``validation`` or ``test``.

    Returns:
        bool, one for each impression of the part, in their order.
    """
    rows = dataset.impressions
    trained = np.bincount(rows.item[rows.split == TRAIN], minlength=dataset.n_items)
    return trained[rows.item[rows.split == split_number(split)]] <= AT_MOST


def cold_item_metrics(
    users: np.ndarray,
    labels: np.ndarray,
    logits: Mapping[str, Sequence[np.ndarray]],
    against: str,
) -> dict[str, Any] | None:
    """Measure models on impressions of cold items.

    Args:
        users: integers ``[I]``.
        labels: 0 or 1, ``[I]``.
        logits: by model, ``[I]`` a seed.
        against: the model that the others are held against.

    Returns:
        ``users``, how many have both classes, and ``models``: by name the ``auc`` and ``gauc`` of each seed,
        and the ``difference`` of GAUC, an `Estimate` as a dictionary (``None`` for ``against``). ``None`` if
        fewer than two users have both classes, where GAUC and its error say nothing.
    """
    both = user_aucs(users, labels, np.zeros(len(labels))).users.size
    if both < 2:
        return None
    paired = PairedBootstrap(users, labels, logits)
    models: dict[str, Any] = {}
    for name, runs in logits.items():
        apart = None if name == against else dataclasses.asdict(paired.difference(name, against))
        models[name] = {
            "auc": [auc(labels, run) for run in runs],
            "gauc": [gauc(users, labels, run) for run in runs],
            "difference": apart,
        }
    return {"users": int(both), "models": models}
