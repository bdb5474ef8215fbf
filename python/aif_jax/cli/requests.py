"""Requests from the test part of a data set: users with their histories until then, and contexts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.data import Dataset
from aif_jax.data.rows import take_columns
from aif_jax.errors import DataError
from aif_jax.features import Ragged
from aif_jax.types import Request, UserId, UserRecord


@dataclasses.dataclass(frozen=True)
class DrawnRequests:
    """The first test request of each of some users.

    Attributes:
        requests: user id and raw context of each.
        records: record of each user just before that request.
    """

    requests: tuple[Request, ...]
    records: Mapping[UserId, UserRecord]

    def users(self, user: UserId) -> UserRecord | None:
        """Look a user up: the engine's user source."""
        return self.records.get(user)


def draw_requests(dataset: Dataset, count: int, *, long_length: int, k: int, seed: int = 0) -> DrawnRequests:
    """Draw requests from the test part, one a user.

    Args:
        dataset: source of the requests.
        count: number of requests; fewer if the test part has fewer users.
        long_length: behaviours of a history at most.
        k: number of results of each.
        seed: of the draw.
    """
    test = dataset.requests("test", group=1)
    _, first = np.unique(test.user, return_index=True)
    chosen = np.random.default_rng(seed).permutation(first)[:count]
    if not len(chosen):
        raise DataError(
            f"{dataset.name} has no test rows to draw requests from; give a set with a test part."
        )
    requests, records = [], {}
    for index in chosen:
        row, user = int(test.rows[index, 0]), int(test.user[index])
        identity = plain(dataset.users["ids"][user])
        context = {name: plain(column[row]) for name, column in dataset.impressions.context.items()}
        requests.append(Request(user=identity, context=context, k=k))
        records[identity] = dataset.user_record(
            user, history_end=int(test.history_end[index]), length=long_length
        )
    return DrawnRequests(tuple(requests), records)


def user_row(dataset: Dataset, user: str) -> int:
    """Return the row of a user whose id was typed as text.

    Raises:
        DataError: the set has no such user.
    """
    ids = np.asarray(dataset.users["ids"])
    found = np.flatnonzero(ids.astype(str) == user)
    if not len(found):
        raise DataError(
            f"{dataset.name} has no user {user!r}; its {len(ids):,} users are "
            f"{', '.join(map(str, ids[:5]))}, ..."
        )
    return int(found[0])


def item_values(dataset: Dataset, row: int, names: list[str]) -> list[Any]:
    """Return an item's raw features as plain values, lists for multi-valued ones."""
    chosen = take_columns({name: dataset.items[name] for name in names}, np.array([row]))
    return [
        np.asarray(column.values).tolist() if isinstance(column, Ragged) else plain(column[0])
        for column in chosen.values()
    ]


def plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python value that a request would carry."""
    return value.item() if isinstance(value, np.generic) else value
