"""The part of the test that says how a model fares with items of which it has seen little."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.data.splits import split_number
from aif_jax.evaluation.paired import PairedBootstrap
from aif_jax.evaluation.user_pairs import UserPairs

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
    pairs: Mapping[str, Sequence[UserPairs]], aucs: Mapping[str, Sequence[float]], against: str
) -> dict[str, Any] | None:
    """Compare models on impressions of cold items.

    Args:
        pairs: by model, of each user within these impressions, one a seed.
        aucs: by model, AUC over all of these impressions, one a seed.
        against: the model that the others are held against.

    Returns:
        ``users``, how many have both classes, and ``models``: by name the ``auc`` and ``gauc`` of each seed,
        and the ``difference`` of GAUC, an `Estimate` as a dictionary (``None`` for ``against``). ``None`` if
        fewer than two users have both classes, where GAUC and its error say nothing.
    """
    users = pairs[against][0]
    if len(users) < 2:
        return None
    paired = PairedBootstrap(
        users.impressions, {name: [run.aucs for run in runs] for name, runs in pairs.items()}
    )
    models: dict[str, Any] = {}
    for name, runs in pairs.items():
        apart = None if name == against else dataclasses.asdict(paired.difference(name, against))
        models[name] = {
            "auc": list(aucs[name]), "gauc": [run.gauc for run in runs], "difference": apart,
        }  # fmt: skip
    return {"users": len(users), "models": models}
