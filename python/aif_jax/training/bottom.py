"""What a trained ranker puts last for each user: negatives that it would never have let through."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.errors import ConfigError
from aif_jax.training.candidates import CandidateLists
from aif_jax.training.evaluate import Evaluator


def bottom_items(
    ranker: Any,
    dataset: Dataset,
    *,
    pool: int = 256,
    keep: int = 32,
    seed: int = 0,
    buckets: Sequence[int] = (),
) -> np.ndarray:
    """Return the items that a ranker puts last for each user, for `TrainConfig.negative_bottom`.

    For each user with training rows a pool is drawn uniformly, without repeats, from the items that the
    training part has seen, and scored in the context and with the history of the user's last training row.
    Nothing of a later part is read.

    Args:
        ranker: a trained model of the data's schema.
        dataset: holds the training part.
        pool: items drawn for each user; all, if the training part has seen fewer.
        keep: how many of the pool are kept, those with the lowest logit of the main head.
        seed: of the pools.
        buckets: as of `Evaluator`.

    Returns:
        int32 ``[n_users, keep]``, the last first; -1 for users without training rows, and where the pool is
        smaller.

    Raises:
        ConfigError: ``keep`` is under 1 or over ``pool``.
    """
    if not 1 <= keep <= pool:
        raise ConfigError(f"keep, pool: got {keep} and {pool}, expected 1 <= keep <= pool.")
    rows, known = dataset.impressions, np.flatnonzero(dataset.trained_items())
    train = np.flatnonzero(rows.split == TRAIN)
    order = train[np.lexsort((train, rows.history_end[train], rows.user[train]))]
    users, first = np.unique(rows.user[order][::-1], return_index=True)
    last = order[::-1][first]
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(known)[:pool] for _ in users]).astype(np.int32)
    evaluator = Evaluator(dataset, ranker, "train", buckets=buckets)
    scores = evaluator.score_lists(ranker, CandidateLists(last, drawn), main_head=True)
    lowest = np.argsort(scores, axis=1, kind="stable")[:, :keep]
    found = np.full((dataset.n_users, keep), -1, np.int32)
    found[users, : lowest.shape[1]] = np.take_along_axis(drawn, lowest, axis=1)
    return found
