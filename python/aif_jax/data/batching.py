"""Padded batches of rows to score: random access to requests, and epochs of batches over them.

A batch is a dictionary of NumPy arrays; B requests, G rows in each, S and L behaviours:

    "user": {feature: [B, ...]}
    "short_item", "short_type" int32 [B, S]   (-1 pads, most recent first)
    "long_item", "long_type" int32 [B, L]   (the same)
    "long_gap" int32 [B, L]   (steps of the time from the behaviour before, 0 where unknown; if asked for)
    "item" int32 [B, G]   (-1 pads)
    "context", "pair", "train_only": {feature: [B, G, ...]}   (zeros pad: missing)
    "labels", "label_mask" float32 [B, G, n_heads]   (mask 0 where padded or unknown)
    "user_index" int32 [B]   (-1 for a padding request)
    "impression" int32 [B, G]   (row of the data set, -1 pads)

Of a source with a sequence step also U windows, each part of one user's events, which requests share:

    "sequence_item", "sequence_type" int32 [U, L]  (-1 pads, oldest first)
    "sequence_gap" int32 [U, L]  (as "long_gap"; if asked for)
    "sequence_row" int32 [B]   (window of a request, -1 for a padding request)
    "sequence_end" int32 [B]   (behaviours of the window that are before the request)

Items are rows of `Dataset.catalogue`. A request without the leading B, as `RequestSource` gives it, keeps its
own length L; `collate` pads it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from aif_jax.checks import typed
from aif_jax.data.dataset import Dataset
from aif_jax.data.splits import split_number
from aif_jax.errors import DataError
from aif_jax.features import Group, Schema, pad_to

Batch = dict[str, Any]
_ROW_GROUPS: tuple[Group, ...] = ("context", "pair", "train_only")
_NO_ROWS = np.zeros(0, np.int64)


class RequestSource:
    """Random access to the requests of one split: ``len(source)`` and ``source[i]``, as grain expects it.

    Every feature is encoded once, here; a request is then a gather.

    Attributes:
        requests: the rows of each request.
        lengths: int64 ``[R]``, behaviours in each request's history, at most the long length.
    """

    def __init__(
        self,
        dataset: Dataset,
        schema: Schema,
        split: str | int,
        *,
        group: int = 16,
        short_length: int,
        long_length: int,
        heads: Sequence[str] | None = None,
        sequence_step: int = 0,
        visit: int = 0,
        gaps: bool = False,
    ):
        """Group the rows and encode their features.

        Args:
            dataset: where the rows come from.
            schema: a fitted schema.
            split: ``train``, ``validation`` or ``test``.
            group: ``G``, rows in a request at most.
            short_length: ``S``.
            long_length: ``L``.
            heads: labels to give, in this order; by default all of the data set's.
            sequence_step: behaviours between the windows of a history longer than ``L``; 0 for batches
                without windows. With 1 a window holds the last ``L`` behaviours of each such history, as at
                serving; with more, requests share it, and it holds more than ``L - sequence_step`` of them.
            visit: see `Dataset.requests`.
            gaps: whether to give the time between behaviours.

        Raises:
            DataError: the data set has no label for a head, or no rows in this split.
            SchemaError: the schema is not fitted, or does not fit the data set.
        """
        heads = dataset.heads if heads is None else tuple(heads)
        if missing := [head for head in heads if head not in dataset.heads]:
            raise DataError(
                f"{dataset.name} has labels {dataset.heads}, not {missing}; name heads after them."
            )
        if min(short_length, long_length) < 1:
            raise DataError(f"lengths: got {short_length} and {long_length}, expected at least 1.")
        self.requests = dataset.requests(split, group, visit)
        if not len(self.requests):
            raise DataError(f"{dataset.name} has no rows in split {split!r}.")
        self.short_length, self.long_length = short_length, long_length
        self.sequence_step = sequence_step
        self._gaps = gaps
        self._dataset = dataset
        start = dataset.events.offsets[self.requests.user]
        self.lengths = np.minimum(self.requests.history_end - start, long_length)

        self._user = {name: _with_padding(x) for name, x in dataset.encode(schema, "user").items()}
        # Features of rows are encoded for this split alone; row -1 is the padding, all missing. What needs no
        # encoding is read where it is, since a copy of all rows is larger than all else.
        names = {feature.name for group in _ROW_GROUPS for feature in schema.features(group)}
        rows = np.flatnonzero(dataset.impressions.split == split_number(split)) if names else _NO_ROWS
        self._place = np.full(len(dataset.impressions) if names else 0, -1, np.int32)
        self._place[rows] = np.arange(len(rows))
        self._columns = {
            group: {name: _with_padding(x) for name, x in dataset.encode(schema, group, rows).items()}
            for group in _ROW_GROUPS
        }
        impressions = dataset.impressions
        self._labels = [(impressions.labels[head], impressions.label_mask[head]) for head in heads]
        self._item = impressions.item

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> Batch:
        """Return one request: a batch without the axis B, its long history not padded (at least 1 long)."""
        index = range(len(self))[index]
        batch = self.batch(np.array([index]), max(1, int(self.lengths[index])))
        return _map(batch, lambda array: array[0])

    def batch(self, indices: np.ndarray, long_length: int, windows: int = 0) -> Batch:
        """Gather requests into one batch.

        Args:
            indices: int ``[B]``, -1 for a padding request.
            long_length: ``L`` of the batch; longer histories lose their oldest behaviours.
            windows: ``U``, windows of the batch, at least as many as its requests have; 0 for none.
        """
        indices = np.asarray(indices)
        absent = indices < 0
        row = np.where(absent[:, None], -1, self.requests.rows[indices])
        real = row >= 0
        place = np.where(real, self._place[row], -1) if len(self._place) else row
        mask = np.stack([np.where(real, known[row], 0) for _, known in self._labels], axis=-1)
        # An unknown label must not reach a loss even multiplied by 0: it may be NaN.
        labels = [np.where(real & (known[row] > 0), label[row], 0) for label, known in self._labels]
        user = np.where(absent, -1, self.requests.user[indices]).astype(np.int32)
        ends = self.requests.history_end[indices]
        length = max(self.short_length, long_length)
        items, types = self._dataset.history(np.maximum(user, 0), ends, length)
        items[absent], types[absent] = -1, -1
        gaps: Batch = {}
        if self._gaps:
            gaps["long_gap"] = self._dataset.history_gaps(np.maximum(user, 0), ends, long_length)
            gaps["long_gap"][absent] = 0
        return {
            "user": {name: array[user] for name, array in self._user.items()},
            "short_item": items[:, : self.short_length].copy(),
            "short_type": types[:, : self.short_length].copy(),
            "long_item": items[:, :long_length].copy(),
            "long_type": types[:, :long_length].copy(),
            **gaps,
            "item": np.where(real, self._item[row], -1).astype(np.int32),
            **{
                group: {name: array[place] for name, array in columns.items()}
                for group, columns in self._columns.items()
            },
            "labels": np.stack(labels, axis=-1).astype(np.float32),
            "label_mask": mask.astype(np.float32),
            "user_index": user,
            "impression": row.astype(np.int32),
            **(self._sequences(indices, long_length, windows) if windows else {}),
        }

    def windows(self, indices: np.ndarray, length: int) -> np.ndarray:
        """Return the window of each request: its user, and the event that it starts with, int64 ``[B, 2]``.

        Args:
            indices: int ``[B]``, none of them padding.
            length: ``L``; a history that fits has the window from the user's first event on.
        """
        user, ends = self.requests.user[indices].astype(np.int64), self.requests.history_end[indices]
        first = self._dataset.events.offsets[user]
        beyond = np.maximum(ends - first - length, 0)
        return np.stack([user, first + -(-beyond // self.sequence_step) * self.sequence_step], axis=1)

    def _sequences(self, indices: np.ndarray, length: int, n_windows: int) -> Batch:
        real = np.flatnonzero(indices >= 0)
        windows, row = np.unique(self.windows(indices[real], length), axis=0, return_inverse=True)
        row, starts, ends = row.ravel(), windows[:, 1], self.requests.history_end[indices[real]]
        stop = np.zeros(len(windows), np.int64)
        np.maximum.at(stop, row, ends)  # no event after the last of the requests enters the batch
        place = starts[:, None] + np.arange(length)
        there = place < stop[:, None]
        events, place = self._dataset.events, np.where(there, place, 0)
        rows, until = np.full(len(indices), -1, np.int32), np.zeros(len(indices), np.int32)
        rows[real], until[real] = row, ends - starts[row]
        found: Batch = {"sequence_row": rows, "sequence_end": until}
        columns = {"item": events.item, "type": events.type}
        for name, column in (columns | {"gap": self._dataset.gaps} if self._gaps else columns).items():
            fill = 0 if name == "gap" else -1
            values = np.where(there, column[place] if len(column) else fill, fill).astype(np.int32)
            found[f"sequence_{name}"] = pad_to(values, n_windows, fill=fill)
        return found


@typed
def collate(requests: Sequence[Batch], long_bucket: int, *, batch_size: int | None = None) -> Batch:
    """Stack requests of a `RequestSource` into a batch.

    Args:
        requests: what ``source[i]`` gave.
        long_bucket: ``L`` of the batch; longer histories lose their oldest behaviours.
        batch_size: ``B``; missing requests are padding. By default as many as there are.

    Raises:
        DataError: no requests, or more than ``batch_size``.
    """
    size = len(requests) if batch_size is None else batch_size
    if not requests or len(requests) > size:
        raise DataError(f"got {len(requests)} requests for a batch of {size}.")
    batch: Batch = {}
    for key, first in requests[0].items():
        fill = -1 if key in _PADDED_BY_MINUS_ONE else 0
        if isinstance(first, dict):
            batch[key] = {name: pad_to(np.stack([r[key][name] for r in requests]), size) for name in first}
        else:
            arrays = [request[key] for request in requests]
            if key in ("long_item", "long_type", "long_gap"):
                arrays = [pad_to(array[:long_bucket], long_bucket, fill=fill) for array in arrays]
            batch[key] = pad_to(np.stack(arrays), size, fill=fill)
    return batch


class RequestBatcher:
    """Epochs of batches of a `RequestSource`, each batch of one shape per long bucket.

    Requests are put with others whose history falls into the same bucket, so short histories do not pay for
    long ones. The last batch of a bucket is filled up with padding requests.

    Attributes:
        source: the requests.
    """

    def __init__(
        self,
        source: RequestSource,
        *,
        batch_size: int,
        long_buckets: Sequence[int] = (),
        seed: int = 0,
        shuffle: bool = True,
    ):
        """Sort the requests into buckets.

        Args:
            source: the requests.
            batch_size: ``B``.
            long_buckets: sizes of ``L`` beside the source's long length, which is the largest.
            seed: seed of the order.
            shuffle: a new order of requests and batches every epoch; otherwise always the same.

        Raises:
            DataError: the batch size or a bucket is below 1, or a bucket beyond the source's long length.
        """
        self.long_buckets = tuple(sorted({*long_buckets, source.long_length}))
        if batch_size < 1 or self.long_buckets[0] < 1 or self.long_buckets[-1] > source.long_length:
            raise DataError(
                f"got batch_size {batch_size}, long_buckets {list(long_buckets)}; expected at least 1, and "
                f"buckets of at most {source.long_length}, the source's long_length."
            )
        self.source, self.batch_size, self.seed, self.shuffle = source, batch_size, seed, shuffle
        place = np.searchsorted(self.long_buckets, source.lengths)
        self._members = {size: np.flatnonzero(place == i) for i, size in enumerate(self.long_buckets)}

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.source.sequence_step:
            return len(self.plan(0))
        return sum(-(-len(members) // self.batch_size) for members in self._members.values())

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch; the order depends on the seed and the number alone.

        Args:
            number: which epoch, from 0.
            skip: batches to leave out at the start, for a run that resumes.
        """
        for chosen in self.plan(number)[skip:]:
            yield self.source.batch(*chosen)

    def plan(self, number: int) -> list[tuple[np.ndarray, int, int]]:
        """Return the arguments of `RequestSource.batch` for every batch of an epoch."""
        random = np.random.default_rng([self.seed, number])
        plan = []
        for bucket, members in self._members.items():
            if self.source.sequence_step:
                plan += self._by_window(members, bucket)
                continue
            order = random.permutation(members) if self.shuffle else members
            padded = pad_to(order, -(-len(order) // self.batch_size) * self.batch_size, fill=-1)
            plan += [(indices, bucket, 0) for indices in padded.reshape(-1, self.batch_size)]
        if self.shuffle:
            plan = [plan[i] for i in random.permutation(len(plan))]
        return plan

    def _by_window(self, members: np.ndarray, length: int) -> list[tuple[np.ndarray, int, int]]:
        """Return batches whose requests share windows: the same in every epoch, so that all are as long."""
        if not len(members):
            return []
        _, window = np.unique(self.source.windows(members, length), axis=0, return_inverse=True)
        count = int(window.max()) + 1
        # Windows are padded to one number, a quarter more than a batch has on average.
        most = max(1, min(self.batch_size, -(-self.batch_size * count * 5 // (4 * len(members)))))
        places = np.random.default_rng([self.seed, length]).permutation(count) if self.shuffle else None
        window = window.ravel() if places is None else places[window.ravel()]
        order = np.argsort(window, kind="stable")
        members, window = members[order], window[order]
        opens = np.r_[True, window[1:] != window[:-1]]
        plan, begin = [], 0
        while begin < len(members):
            stop = min(begin + self.batch_size, len(members))
            opened = 1 + np.cumsum(opens[begin + 1 : stop])
            stop = begin + 1 + int(np.searchsorted(opened, most, side="right"))
            plan.append((pad_to(members[begin:stop], self.batch_size, fill=-1), length, most))
            begin = stop
        return plan


_PADDED_BY_MINUS_ONE = frozenset(
    ("short_item", "short_type", "long_item", "long_type", "item", "user_index", "impression")
)


def _with_padding(array: np.ndarray, fill: int = 0) -> np.ndarray:
    """Add one row at the end, which index -1 finds."""
    return pad_to(array, len(array) + 1, fill=fill)


def _map(batch: Batch, function: Any) -> Batch:
    return {k: _map(v, function) if isinstance(v, dict) else function(v) for k, v in batch.items()}
