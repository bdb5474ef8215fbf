"""Candidate lists for HR@K: one item that a user liked among many that the user never saw, drawn by seed."""

import dataclasses
from typing import Any

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.data.splits import split_number
from aif_jax.features import Schema


@dataclasses.dataclass(frozen=True)
class CandidateLists:
    """Lists to rank.

    Attributes:
        rows: int64 ``[R]``, the impression of each list's positive.
        items: int32 ``[R, C]``: the positive first; -1 where too few unseen items were found.
    """

    rows: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def history_lengths(self, dataset: Dataset) -> np.ndarray:
        """Return int64 ``[R]``: how many behaviours the user of each list has before its positive."""
        starts = dataset.events.offsets[dataset.impressions.user[self.rows]]
        return dataset.impressions.history_end[self.rows] - starts

    def batch(
        self, dataset: Dataset, schema: Schema, lists: np.ndarray, short_length: int, long_length: int
    ) -> dict[str, Any]:
        """Return a batch of some lists: user, history and context of the positive; no pair features."""
        rows = self.rows[lists]
        users, shape = dataset.impressions.user[rows], (len(lists), self.items.shape[1])
        ends = dataset.impressions.history_end[rows]
        items, types = dataset.history(users, ends, max(short_length, long_length))
        context = dataset.encode(schema, "context", rows)
        return {
            "user": dataset.encode(schema, "user", users),
            "short_item": items[:, :short_length],
            "short_type": types[:, :short_length],
            "long_item": items[:, :long_length],
            "long_type": types[:, :long_length],
            "item": self.items[lists],
            "context": {name: np.repeat(x[:, None], shape[1], axis=1) for name, x in context.items()},
            "pair": schema.missing("pair", shape),
            "train_only": schema.missing("train_only", shape),
        }


def candidate_lists(
    dataset: Dataset, split: str, head: str, *, lists: int = 1000, unseen: int = 199, seed: int = 0
) -> CandidateLists:
    """Draw candidate lists.

    The positives are impressions of the part with label 1. The unseen items are without repeats, half of
    them drawn by how often an item was shown in the training part, half uniformly, none of them in the
    user's events or impressions of any time.

    Args:
        dataset: what is drawn from.
        split: whose positives.
        head: whose label.
        lists: how many at most.
        unseen: items in each list beside the positive.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    rows = dataset.impressions
    known = np.asarray(rows.label_mask[head]) > 0
    positive = np.flatnonzero((rows.split == split_number(split)) & known & (rows.labels[head] > 0.5))
    chosen = np.sort(rng.choice(positive, min(lists, positive.size), replace=False))
    users = rows.user[chosen].astype(np.int64)

    pairs = np.unique(
        np.concatenate(
            [_pair(dataset, dataset.events.user, dataset.events.item), _pair(dataset, rows.user, rows.item)]
        )
    )
    shown = np.bincount(rows.item[rows.split == TRAIN], minlength=dataset.n_items)
    shares = np.cumsum(shown) / max(int(shown.sum()), 1)

    items = np.full((chosen.size, 1 + unseen), -1, np.int64)
    items[:, 0] = rows.item[chosen]
    popular = np.arange(1 + unseen) % 2 == 0
    wanted = np.ones(items.shape, bool)
    wanted[:, 0] = False
    for _ in range(50):
        if not wanted.any():
            break
        uniform = rng.integers(0, dataset.n_items, items.shape)
        by_share = np.minimum(
            np.searchsorted(shares, rng.random(items.shape), side="right"), dataset.n_items - 1
        )
        items = np.where(wanted, np.where(popular, by_share, uniform), items)
        wanted = _repeats(items) | _contains(pairs, _pair(dataset, users[:, None], items))
        wanted[:, 0] = False
    items[wanted] = -1
    return CandidateLists(rows=chosen, items=items.astype(np.int32))


def _pair(dataset: Dataset, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return users.astype(np.int64) * dataset.n_items + items


def _contains(sorted_values: np.ndarray, values: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(sorted_values, values), sorted_values.size - 1)
    return sorted_values[place] == values


def _repeats(items: np.ndarray) -> np.ndarray:
    """Return where an item stands that stands further left in its row as well."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    again = np.zeros(items.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = np.zeros(items.shape, bool)
    np.put_along_axis(result, order, again, axis=1)
    return result
