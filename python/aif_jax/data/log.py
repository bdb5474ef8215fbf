"""Construction of a data set from one log, each row of which is an impression and then an event."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.data.content import collaborative_content
from aif_jax.data.dataset import Dataset, Events, Impressions
from aif_jax.data.splits import TRAIN
from aif_jax.features import Schema


def dataset_from_log(
    name: str,
    schema: Schema,
    *,
    users: Mapping[str, Any],
    items: Mapping[str, Any],
    user: np.ndarray,
    item: np.ndarray,
    behaviour: np.ndarray,
    time: np.ndarray,
    history_end: np.ndarray,
    labels: Mapping[str, np.ndarray],
    label_mask: Mapping[str, np.ndarray],
    split: np.ndarray,
    request: np.ndarray,
    content_width: int,
    context: Mapping[str, Any] | None = None,
    pair: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Dataset:
    """Build a data set from a log whose rows are grouped by user, oldest first.

    Content embeddings are derived from the pairs (user, item) of the rows in `TRAIN` alone.

    Args:
        name: short name.
        schema: features and behaviour types.
        users: raw columns with ``ids``.
        items: raw columns with ``ids``.
        user: int32 ``[E]`` ascending, row of the user.
        item: int32 ``[E]``, row of the item.
        behaviour: int32 ``[E]``, type of the event that the row became.
        time: int64 ``[E]``, never falling within a user.
        history_end: int64 ``[E]``, see `aif_jax.data.splits.ends_before`.
        labels: float32 ``[E]`` by head.
        label_mask: float32 ``[E]`` by head.
        split: int8 ``[E]``.
        request: int64 ``[E]``.
        content_width: width of the content embedding.
        context: raw columns ``[E]``.
        pair: raw columns ``[E]``.
        notes: see `Dataset`.
    """
    n_users, n_items = len(users["ids"]), len(items["ids"])
    counts = np.bincount(user, minlength=n_users)
    training = split == TRAIN
    return Dataset(
        name=name,
        schema=schema,
        users=users,
        items=items,
        events=Events(
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            item=item.astype(np.int32),
            type=behaviour.astype(np.int32),
            time=time.astype(np.int64),
            training=training,
        ),
        impressions=Impressions(
            user=user.astype(np.int32),
            item=item.astype(np.int32),
            history_end=history_end.astype(np.int64),
            labels={head: label.astype(np.float32) for head, label in labels.items()},
            label_mask={head: mask.astype(np.float32) for head, mask in label_mask.items()},
            split=split.astype(np.int8),
            request=request.astype(np.int64),
            context=context or {},
            pair=pair or {},
        ),
        content=collaborative_content(
            user[training], item[training], n_users=n_users, n_items=n_items, width=content_width
        ),
        notes=notes or {},
    )
