"""Candidate lists: items that a user liked, or was shown at one time, among items new to them, by seed."""

import dataclasses
from typing import Any

import numpy as np

from aif_jax.checks import typed
from aif_jax.data import TRAIN, Dataset
from aif_jax.data.splits import split_number
from aif_jax.features import Schema
from aif_jax.training.user_items import UserItems


@dataclasses.dataclass(frozen=True)
class CandidateLists:
    """Lists to rank.

    Attributes:
        rows: int64 ``[R]``, the impression whose user, history and context each list has.
        items: int32 ``[R, C]``: shown items first, then unseen ones; -1 where there are fewer.
        positives: bool ``[R, C]``, which of them the user liked; ``None`` where that is not needed.
    """

    rows: np.ndarray
    items: np.ndarray
    positives: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def history_lengths(self, dataset: Dataset) -> np.ndarray:
        """Return int64 ``[R]``: how many behaviours the user of each list has before it."""
        starts = dataset.events.offsets[dataset.impressions.user[self.rows]]
        return dataset.impressions.history_end[self.rows] - starts

    def batch(
        self,
        dataset: Dataset,
        schema: Schema,
        lists: np.ndarray,
        short_length: int,
        long_length: int,
        *,
        gaps: bool = False,
    ) -> dict[str, Any]:
        """Return a batch of some lists: users, histories and contexts of their rows; no pair features."""
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
            **({"long_gap": dataset.history_gaps(users, ends, long_length)} if gaps else {}),
            "item": self.items[lists],
            "context": {name: np.repeat(x[:, None], shape[1], axis=1) for name, x in context.items()},
            "pair": schema.missing("pair", shape),
            "train_only": schema.missing("train_only", shape),
        }


@typed
def candidate_lists(
    dataset: Dataset,
    split: str,
    head: str,
    *,
    lists: int = 1000,
    unseen: int = 199,
    seed: int = 0,
    whole_requests: bool = False,
) -> CandidateLists:
    """Draw candidate lists.

    The positives are impressions of the part with label 1. The unseen items are without repeats, half of
    them drawn by how often an item was shown in the training part, half uniformly from the whole catalogue,
    items never shown included; none of them in the user's events or impressions of any time.

    Args:
        dataset: source of the lists.
        split: part with the positives.
        head: label that makes a row positive.
        lists: number of lists at most.
        unseen: items in each list beside the shown ones.
        seed: of the draw.
        whole_requests: each list holds all that a user was shown in one request with at least one positive,
            and the history and context of the request's first row, which is before all of them; instead of
            one positive with its own. Shown items may be in that history, unseen ones never.
    """
    rng = np.random.default_rng(seed)
    rows = dataset.impressions
    known = np.asarray(rows.label_mask[head]) > 0
    positive = (rows.split == split_number(split)) & known & (rows.labels[head] > 0.5)
    if whole_requests:
        chosen, shown_items, liked = _requests(dataset, positive, lists, rng)
    else:
        positives = np.flatnonzero(positive)
        chosen = np.sort(rng.choice(positives, min(lists, positives.size), replace=False))
        shown_items, liked = rows.item[chosen, None], np.ones((chosen.size, 1), bool)
    users, width = rows.user[chosen].astype(np.int64), shown_items.shape[1]

    met = UserItems.ever(dataset)
    shown = np.bincount(rows.item[rows.split == TRAIN], minlength=dataset.n_items)
    shares = np.cumsum(shown) / max(int(shown.sum()), 1)

    items = np.full((chosen.size, width + unseen), -1, np.int64)
    items[:, :width] = shown_items
    popular = np.arange(width + unseen) % 2 == 0
    wanted = np.ones(items.shape, bool)
    wanted[:, :width] = False
    for _ in range(50):
        if not wanted.any():
            break
        uniform = rng.integers(0, dataset.n_items, items.shape)
        by_share = np.minimum(
            np.searchsorted(shares, rng.random(items.shape), side="right"), dataset.n_items - 1
        )
        items = np.where(wanted, np.where(popular, by_share, uniform), items)
        wanted = _repeats(items) | met.hold(users[:, None], items)
        wanted[:, :width] = False
    items[wanted] = -1
    liked = np.pad(liked, ((0, 0), (0, unseen)))
    return CandidateLists(rows=chosen, items=items.astype(np.int32), positives=liked)


def _requests(
    dataset: Dataset, positive: np.ndarray, lists: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw requests that hold a positive; return the first row of each, its items, and which were liked."""
    rows, n_items = dataset.impressions, dataset.n_items
    with_one = np.unique(rows.request[positive])
    chosen = np.sort(rng.choice(with_one, min(lists, with_one.size), replace=False))
    mine = np.flatnonzero(np.isin(rows.request, chosen))
    place = np.searchsorted(chosen, rows.request[mine])
    order = np.lexsort((mine, rows.history_end[mine], place))
    first = mine[order[np.searchsorted(place[order], np.arange(chosen.size))]]
    # An item shown twice in a request is one candidate, liked if it was liked once.
    found, number = np.unique(place * n_items + rows.item[mine], return_inverse=True)
    liked = np.bincount(number, weights=positive[mine]) > 0
    owner = found // n_items
    column = np.arange(found.size) - np.searchsorted(owner, owner)
    shape = (chosen.size, int(column.max(initial=0)) + 1)
    items, positives = np.full(shape, -1, np.int64), np.zeros(shape, bool)
    items[owner, column], positives[owner, column] = found % n_items, liked
    return first, items, positives


def _repeats(items: np.ndarray) -> np.ndarray:
    """Return where an item repeats one further left in its row, bool of the shape of ``items``."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    again = np.zeros(items.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = np.zeros(items.shape, bool)
    np.put_along_axis(result, order, again, axis=1)
    return result
