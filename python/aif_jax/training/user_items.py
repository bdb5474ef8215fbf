"""Pairs of users and the items that they have met, to draw others."""

from typing import Self

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.lookup import find


class UserItems:
    """A set of pairs of a user and an item.

    Args:
        n_items: number of items.
        users: rows of users, ``[P]``.
        items: rows of items, ``[P]``.
    """

    def __init__(self, n_items: int, users: np.ndarray, items: np.ndarray) -> None:
        self._n_items = n_items
        self._keys = np.unique(self._key(users, items))

    @classmethod
    def ever(cls, dataset: Dataset) -> Self:
        """Return the pairs of all events and impressions, of any part."""
        rows, events = dataset.impressions, dataset.events
        users, items = (rows.user, events.user), (rows.item, events.item)
        return cls(dataset.n_items, np.concatenate(users), np.concatenate(items))

    @classmethod
    def in_training(cls, dataset: Dataset) -> Self:
        """Return the pairs of events and impressions of the training part."""
        rows, events = dataset.impressions, dataset.events
        shown, past = rows.split == TRAIN, events.training
        users, items = (rows.user[shown], events.user[past]), (rows.item[shown], events.item[past])
        return cls(dataset.n_items, np.concatenate(users), np.concatenate(items))

    def hold(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return whether each pair is among these, bool of the shape that both broadcast to."""
        return find(self._keys, self._key(users, items))[1]

    def _key(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        return users.astype(np.int64) * self._n_items + items
