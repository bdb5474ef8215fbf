"""The data set in memory: users, items, behaviours in order of time, and rows to score.

Columns are raw; the schema encodes them. Users and items are referred to by row number; the column ``ids``
holds the ids of the source.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.data.content import Content, fit_width
from aif_jax.data.splits import SPLITS, TEST, TRAIN, split_number
from aif_jax.errors import DataError
from aif_jax.features import EncodeReport, Group, Ragged, Schema, item_keys
from aif_jax.inputs import read_table, take_rows
from aif_jax.types import UserRecord

SHOWN = "shown"
"""The label of `Dataset.with_shown_label`."""


@dataclasses.dataclass(frozen=True)
class Events:
    """Behaviours, grouped by user, oldest first within a user.

    Attributes:
        offsets: int64 ``[n_users + 1]``; user ``u`` did ``offsets[u]:offsets[u + 1]``.
        item: int32 ``[E]``, row of the item.
        type: int32 ``[E]``, position in ``schema.behaviour_types``.
        time: int64 ``[E]``, never falling within a user; the unit is the source's.
        training: bool ``[E]``, whether the event lies in the training part of its user's time.
    """

    offsets: np.ndarray
    item: np.ndarray
    type: np.ndarray
    time: np.ndarray
    training: np.ndarray

    def __len__(self) -> int:
        return len(self.item)

    @property
    def user(self) -> np.ndarray:
        """int32 ``[E]``, row of the user of each event."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))


@dataclasses.dataclass(frozen=True)
class Impressions:
    """Rows to score: an item shown to a user, and the outcome.

    Attributes:
        user: int32 ``[I]``, row of the user.
        item: int32 ``[I]``, row of the item.
        history_end: int64 ``[I]``; the row's history is ``events[offsets[user]:history_end]``, all strictly
            before the row.
        labels: float32 ``[I]`` by head.
        label_mask: float32 ``[I]`` by head: 1 where the label is known.
        split: int8 ``[I]``: `TRAIN`, `VALIDATION` or `TEST`.
        request: int64 ``[I]``; rows of one request belong to one user and one split, and may be scored
            together.
        context: raw columns ``[I]`` by feature.
        pair: raw columns ``[I]`` by feature.
        train_only: raw columns ``[I]`` by feature.
    """

    user: np.ndarray
    item: np.ndarray
    history_end: np.ndarray
    labels: Mapping[str, np.ndarray]
    label_mask: Mapping[str, np.ndarray]
    split: np.ndarray
    request: np.ndarray
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pair: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train_only: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field in ("context", "pair", "train_only"):
            object.__setattr__(self, field, read_table(getattr(self, field), field, error=DataError))

    def __len__(self) -> int:
        return len(self.user)


@dataclasses.dataclass(frozen=True)
class Requests:
    """Rows that are scored together, padded to one width.

    Attributes:
        rows: int64 ``[R, group]``, rows of `Impressions` in order of time, -1 for padding at the end.
        user: int32 ``[R]``.
        history_end: int64 ``[R]``, that of the first row: all rows of a request share one history.
    """

    rows: np.ndarray
    user: np.ndarray
    history_end: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One data set, ready for training and evaluation.

    Attributes:
        name: short name, for reports.
        schema: features and behaviour types; not fitted (see `fit_schema`).
        users: raw user columns ``[n_users]`` by feature, and ``ids``; a mapping, frame or Arrow table, read
            by position.
        items: raw item columns ``[n_items]`` by feature, and ``ids``; the same.
        events: behaviours of users.
        impressions: rows to score.
        content: content embeddings, or ``None``.
        notes: further facts for a reader (terms, rows left out, the truth behind made-up data).
    """

    name: str
    schema: Schema
    users: Mapping[str, Any]
    items: Mapping[str, Any]
    events: Events
    impressions: Impressions
    content: Content | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field in ("users", "items"):
            object.__setattr__(self, field, read_table(getattr(self, field), field, error=DataError))
        _check(self)

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.users["ids"])

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.items["ids"])

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the labels, the main one first."""
        return tuple(self.impressions.labels)

    @functools.cached_property
    def summary(self) -> str:
        """Sizes, the rows of each split, how often each label is positive, and how long histories are."""
        rows, lengths = self.impressions, np.diff(self.events.offsets)
        by_split = ", ".join(
            f"{np.count_nonzero(rows.split == number):,} {name}" for name, number in SPLITS.items()
        )
        positive = ", ".join(
            f"{head} {_share(label, rows.label_mask[head])}" for head, label in rows.labels.items()
        )
        summary = (
            f"{self.name}: {self.n_users:,} users, {self.n_items:,} items, {len(self.events):,} behaviours, "
            f"{len(rows):,} impressions\nimpressions: {by_split}; positive: {positive}"
        )
        if len(lengths):
            summary += (
                f"\nbehaviours of a user: {np.median(lengths):,.0f} in the median, {lengths.max():,} at most"
            )
        return summary

    def __repr__(self) -> str:
        indented = self.summary.replace("\n", "\n        ")
        return f"Dataset({indented})"

    def trained_items(self) -> np.ndarray:
        """Return which items occur in the training part, shown or in a history, bool ``[n_items]``."""
        seen = np.zeros(self.n_items, bool)
        seen[self.impressions.item[self.impressions.split == TRAIN]] = True
        seen[self.events.item[self.events.training]] = True
        return seen

    def fit_schema(self) -> Schema:
        """Return the schema fitted on the training part only: its rows, their users, the items it saw."""
        rows = np.flatnonzero(self.impressions.split == TRAIN)
        users = np.unique(self.impressions.user[rows])
        return self.schema.fit(
            user=take_columns(self._group("user"), users),
            item=take_columns(self._group("item"), np.flatnonzero(self.trained_items())),
            context=take_columns(self._group("context"), rows),
            pair=take_columns(self._group("pair"), rows),
            train_only=take_columns(self._group("train_only"), rows),
        )

    def encode(
        self,
        schema: Schema,
        group: Group,
        rows: np.ndarray | None = None,
        *,
        report: EncodeReport | None = None,
    ) -> dict[str, np.ndarray]:
        """Encode users, items, or columns of impressions.

        Args:
            schema: a fitted schema; may name fewer features than there are columns.
            group: which features.
            rows: rows of users, items or impressions, ``[m]``; all of them if ``None``.
            report: counts are added to it.

        Returns:
            Encoded features ``[m, ...]``.
        """
        names = {feature.name for feature in schema.features(group)}
        columns = {name: column for name, column in self._group(group).items() if name in names}
        total = {"user": self.n_users, "item": self.n_items}.get(group, len(self.impressions))
        if rows is not None:
            columns, total = take_columns(columns, rows), len(rows)
        return schema.encode(group, columns, total, report=report)

    def catalogue(
        self, schema: Schema, *, content_width: int | None = None, report: EncodeReport | None = None
    ) -> dict[str, np.ndarray]:
        """Return the encoded features and content embeddings of all items.

        Args:
            schema: a fitted schema.
            content_width: ``d_m`` of the model; by default the width that the data set was loaded with.
            report: counts are added to it.

        Returns:
            Encoded item features ``[n_items, ...]``, ``content`` float32 ``[n_items, d_m]`` (zeros without
            content) and ``has_content`` float32 ``[n_items, 1]``.

        Raises:
            DataError: the content embeddings are narrower than asked, or absent and no width is given.
        """
        encoded = self.encode(schema, "item", report=report)
        if self.content is None:
            if content_width is None:
                raise DataError(
                    f"{self.name} has no content embeddings; give content_width, how wide zeros should be."
                )
            content = Content(
                np.zeros((self.n_items, content_width), np.float32), np.zeros(self.n_items, bool)
            )
        else:
            content = self.content if content_width is None else fit_width(self.content, content_width)
        return {**encoded, "content": content.vectors, "has_content": content.has[:, None].astype(np.float32)}

    def item_keys(self) -> np.ndarray:
        """Return the key of every item, uint64 ``[n_items]``."""
        return item_keys(self.items["ids"])

    def requests(self, split: str | int, group: int = 16) -> Requests:
        """Group the rows of one split into requests of at most ``group`` rows.

        Rows are put together if they share `Impressions.request`, in the order of their history, then of the
        file. They share the history of the first one, which is strictly before all of them.

        Args:
            split: ``train``, ``validation`` or ``test``.
            group: ``G``, rows in a request at most.
        """
        if group < 1:
            raise DataError(f"group: got {group}, expected at least 1.")
        impressions = self.impressions
        rows = np.flatnonzero(impressions.split == split_number(split))
        rows = rows[np.lexsort((rows, impressions.history_end[rows], impressions.request[rows]))]
        request = impressions.request[rows]
        first = np.r_[True, request[1:] != request[:-1]] if len(rows) else np.zeros(0, bool)
        start = np.flatnonzero(first)
        position = np.arange(len(rows)) - np.repeat(start, np.diff(np.r_[start, len(rows)]))
        opens = position % group == 0
        chunk = np.cumsum(opens) - 1
        table = np.full((int(opens.sum()), group), -1, np.int64)
        table[chunk, position % group] = rows
        head = table[:, 0] if len(table) else np.zeros(0, np.int64)
        return Requests(rows=table, user=impressions.user[head], history_end=impressions.history_end[head])

    def history(self, users: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the last behaviours before given points, most recent first.

        Args:
            users: int ``[B]``.
            ends: int64 ``[B]``, where each history ends, as in `Impressions.history_end`.
            length: ``L``.

        Returns:
            Items and types, int32 ``[B, L]``, -1 for padding at the end.
        """
        index = ends[:, None] - 1 - np.arange(length)
        valid = index >= self.events.offsets[users][:, None]
        index = np.where(valid, index, 0)
        if not len(self.events):
            empty = np.full(index.shape, -1, np.int32)
            return empty, empty.copy()
        return (
            np.where(valid, self.events.item[index], -1).astype(np.int32),
            np.where(valid, self.events.type[index], -1).astype(np.int32),
        )

    def user_record(
        self, user: int, *, history_end: int | None = None, length: int | None = None
    ) -> UserRecord:
        """Return a user as a user source would.

        Args:
            user: row of the user.
            history_end: where the history ends; by default after the user's last event.
            length: behaviours at most; by default all.
        """
        start, last = int(self.events.offsets[user]), int(self.events.offsets[user + 1])
        end = last if history_end is None else history_end
        if length is not None:
            start = max(start, end - length)
        order = np.arange(end - 1, start - 1, -1)
        row = take_columns(self._group("user"), np.array([user]))
        return UserRecord(
            features={name: _scalar(column) for name, column in row.items()},
            items=np.asarray(self.items["ids"])[self.events.item[order]],
            types=self.events.type[order],
        )

    def with_validation_in_training(self) -> "Dataset":
        """Return the set with the validation rows moved to training, for a refit before the test.

        Content embeddings stay as they are: frozen before training.
        """
        split = np.where(self.impressions.split == SPLITS["validation"], TRAIN, self.impressions.split)
        return dataclasses.replace(
            self, impressions=dataclasses.replace(self.impressions, split=split.astype(np.int8))
        )

    def with_shown_label(self) -> "Dataset":
        """Return the set with one more label, `SHOWN`, that is 1 for every impression.

        If a head of that name alone learns from sampled items (``TrainConfig.negatives`` and
        ``negative_heads``), it separates shown items from others, and the other heads learn from impressions
        alone. The exponential of its logit is then the odds that an item is shown to a user rather than
        sampled, up to a factor that all items share.

        Raises:
            DataError: it has a label of that name.
        """
        rows = self.impressions
        if SHOWN in rows.labels:
            raise DataError(f"{self.name} has a label {SHOWN!r} already; rename it, or use it as it is.")
        ones = np.ones(len(rows), np.float32)
        labels, mask = {**rows.labels, SHOWN: ones}, {**rows.label_mask, SHOWN: ones}
        return dataclasses.replace(
            self, impressions=dataclasses.replace(rows, labels=labels, label_mask=mask)
        )

    def with_frozen_histories(self, split: str) -> "Dataset":
        """Return the set with the histories of a part's rows cut at the user's first row of the part.

        The AUC of a user compares rows of one user, with the number of positives fixed. If labels of earlier
        rows of the part are inputs of later ones, that alone biases the order: after a positive row fewer
        positives are left. With few rows a user, this costs more GAUC than the history gains; so reports give
        the figure with frozen histories too.

        Args:
            split: ``train``, ``validation`` or ``test``.
        """
        rows = self.impressions
        part = rows.split == SPLITS[split]
        first = np.full(self.n_users, np.iinfo(np.int64).max)
        np.minimum.at(first, rows.user[part], rows.history_end[part])
        ends = np.where(part, first[rows.user], rows.history_end)
        return dataclasses.replace(self, impressions=dataclasses.replace(rows, history_end=ends))

    def without_test(self) -> "Dataset":
        """Return the set without its test part: neither its rows nor any event from a user's first one on.

        Settings chosen on such a set cannot depend on the test part.
        """
        rows, events, offsets = self.impressions, self.events, self.events.offsets
        kept = np.flatnonzero(rows.split != TEST)
        test = np.flatnonzero(rows.split == TEST)
        ends = offsets[1:].copy()
        np.minimum.at(ends, rows.user[test], rows.history_end[test])
        seen = np.arange(len(events)) < ends[events.user]
        left = np.r_[0, np.cumsum(ends - offsets[:-1])]
        return dataclasses.replace(
            self,
            events=Events(
                offsets=left,
                item=events.item[seen],
                type=events.type[seen],
                time=events.time[seen],
                training=events.training[seen],
            ),
            impressions=Impressions(
                user=rows.user[kept],
                item=rows.item[kept],
                history_end=rows.history_end[kept] + (left - offsets)[rows.user[kept]],
                labels=take_columns(rows.labels, kept),
                label_mask=take_columns(rows.label_mask, kept),
                split=rows.split[kept],
                request=rows.request[kept],
                context=take_columns(rows.context, kept),
                pair=take_columns(rows.pair, kept),
                train_only=take_columns(rows.train_only, kept),
            ),
        )

    def _group(self, group: Group) -> dict[str, Any]:
        source = {"user": self.users, "item": self.items}.get(group)
        columns = getattr(self.impressions, group) if source is None else source
        return {name: column for name, column in columns.items() if name != "ids"}


def take_columns(columns: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Return the chosen rows of raw columns; lists and `Ragged` columns too."""
    return {name: take_rows(column, rows) for name, column in columns.items()}


def _share(label: np.ndarray, mask: np.ndarray) -> str:
    known = float(np.sum(mask, dtype=np.float64))
    return f"{float(np.sum(label * mask, dtype=np.float64)) / known:.1%}" if known else "unknown"


def _scalar(column: Any) -> Any:
    if isinstance(column, Ragged):
        return list(np.asarray(column.values).tolist())
    value = column[0]
    return value.item() if isinstance(value, np.generic) else value


def _check(dataset: Dataset) -> None:
    """Refuse a data set whose parts do not fit together, or whose histories reach past their row."""

    def fail(what: str) -> None:
        raise DataError(f"{dataset.name}: {what}.")

    events, impressions = dataset.events, dataset.impressions
    for label, columns in (("users", dataset.users), ("items", dataset.items)):
        if "ids" not in columns:
            fail(f"{label} have no column 'ids'")
        n = len(columns["ids"])
        if wrong := {name: len(column) for name, column in columns.items() if len(column) != n}:
            fail(f"columns {wrong} of {label} do not have {n} rows, as their ids")
    lengths = {name: len(getattr(events, name)) for name in ("item", "type", "time", "training")}
    if events.offsets.shape != (dataset.n_users + 1,) or set(lengths.values()) != {int(events.offsets[-1])}:
        fail(
            f"event columns {lengths} do not fit offsets of shape {events.offsets.shape} "
            f"ending at {events.offsets[-1]}"
        )
    if len(events) and not (events.item.min() >= 0 and events.item.max() < dataset.n_items):
        fail(f"an event names an item outside the {dataset.n_items} items")
    types = len(dataset.schema.behaviour_types)
    if len(events) and not (events.type.min() >= 0 and events.type.max() < types):
        fail(f"an event has a type outside the {types} behaviour types")
    same_user = np.diff(events.user) == 0
    if np.any(np.diff(events.time)[same_user] < 0):
        fail("events of a user are not in order of time")
    rows = len(impressions)
    columns = {
        **{name: getattr(impressions, name) for name in ("user", "item", "history_end", "split", "request")},
        **impressions.labels,
        **{f"mask of {name}": mask for name, mask in impressions.label_mask.items()},
        **impressions.context, **impressions.pair, **impressions.train_only,
    }  # fmt: skip
    if wrong := {name: len(column) for name, column in columns.items() if len(column) != rows}:
        fail(f"impression columns {wrong} do not have {rows} rows")
    if not impressions.labels or set(impressions.labels) != set(impressions.label_mask):
        fail(
            f"labels {sorted(impressions.labels)} and masks {sorted(impressions.label_mask)} differ, "
            "or there are none"
        )
    if rows:
        if not (impressions.user.min() >= 0 and impressions.user.max() < dataset.n_users):
            fail(f"an impression names a user outside the {dataset.n_users} users")
        if not (impressions.item.min() >= 0 and impressions.item.max() < dataset.n_items):
            fail(f"an impression names an item outside the {dataset.n_items} items")
        start, end = events.offsets[impressions.user], events.offsets[impressions.user + 1]
        if np.any((impressions.history_end < start) | (impressions.history_end > end)):
            fail("a history ends outside its user's events")
        first = np.unique(impressions.request, return_index=True)[1]
        by_request = np.searchsorted(impressions.request[first], impressions.request)
        for name in ("user", "split"):
            column = getattr(impressions, name)
            if np.any(column != column[first][by_request]):
                fail(f"a request mixes rows of different {name}s")
    if dataset.content is not None:
        vectors, has = dataset.content.vectors, dataset.content.has
        if vectors.shape[0] != dataset.n_items or has.shape != (dataset.n_items,):
            fail(f"content has {vectors.shape[0]} rows and {has.size} flags for {dataset.n_items} items")
        # Serving reads neither a mask nor a length: it takes them from the vectors.
        skewed = np.flatnonzero(~(np.abs(np.linalg.norm(vectors, axis=1) - has) < 1e-3))
        if len(skewed):
            fail(
                f"content of {len(skewed)} items, the first in row {skewed[0]}, is neither of unit length nor"
                " (without content) zero; centred_unit_rows of aif_jax.data.content makes it so"
            )
