"""The impressions of a part of the data on which models are compared, and what is told of each."""

import dataclasses
from typing import Self

import numpy as np

from aif_jax.data import Dataset
from aif_jax.data.splits import split_number
from aif_jax.evaluation.cold_items import of_cold_items
from aif_jax.evaluation.user_pairs import UserPairs
from aif_jax.training.metrics import auc


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """The impressions of a part whose label is known.

    Attributes:
        known: bool ``[P]``, which of the part's impressions they are.
        users: integers, ``[I]``.
        labels: 0 or 1, ``[I]``.
        cold: bool ``[I]``, whether the item is cold, see `aif_jax.evaluation.cold_items`.
    """

    known: np.ndarray
    users: np.ndarray
    labels: np.ndarray
    cold: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, split: str, head: str) -> Self:
        """Take the impressions of a part.

        Args:
            dataset: as it was trained on.
            split: ``train``, ``validation`` or ``test``.
            head: whose label.
        """
        rows = dataset.impressions
        part = rows.split == split_number(split)
        known = (np.asarray(rows.label_mask[head]) > 0)[part]
        cold = of_cold_items(dataset, split)[known]
        return cls(known, rows.user[part][known], rows.labels[head][part][known], cold)

    def __len__(self) -> int:
        return len(self.users)

    def pairs(self, logits: np.ndarray) -> UserPairs:
        """Count the pairs of a model, given its logits of the part, ``[P]``."""
        return UserPairs.of(self.users, self.labels, logits[self.known])

    def cold_pairs(self, logits: np.ndarray) -> UserPairs:
        """Count the pairs within the impressions of cold items, given the logits of the part, ``[P]``."""
        cold = self.cold
        return UserPairs.of(self.users[cold], self.labels[cold], logits[self.known][cold])

    def cold_auc(self, logits: np.ndarray) -> float:
        """Return the AUC over all impressions of cold items; NaN where these have one class."""
        return auc(self.labels[self.cold], logits[self.known][self.cold])
