"""The data set in memory: users, items, behaviours in order of time, and rows to score.

Columns are raw; the schema encodes them. Users and items are referred to by row number; the column ``ids``
holds the ids of the source.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from aif_jax.checks import typed, whole
from aif_jax.data import building
from aif_jax.data.consistency import check_fields
from aif_jax.data.content import Content, fit_width, turned
from aif_jax.data.facts import known_items, known_users, summary_of, warnings_of
from aif_jax.data.reading import Names
from aif_jax.data.rows import Events, Impressions, Requests, take_columns
from aif_jax.data.sampling import Negatives
from aif_jax.data.splits import SPLITS, TRAIN, Split, by_time, split_number
from aif_jax.errors import DataError
from aif_jax.features import (
    Categorical,
    ContentSpace,
    EncodeReport,
    Group,
    Ragged,
    Schema,
    Vocabulary,
    item_keys,
)
from aif_jax.features.gaps import gap_steps
from aif_jax.inputs import read_content, read_ids, read_table
from aif_jax.lookup import find
from aif_jax.types import ItemRecords, UserId, UserRecord

SHOWN = "shown"
"""The label of `Dataset.with_shown_label`."""


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
        check_fields(
            self.name, self.schema, self.users, self.items, self.events, self.impressions, self.content
        )  # fmt: skip

    @classmethod
    @typed
    def from_events(
        cls,
        events: Any,
        *,
        user: str,
        item: str,
        time: str,
        type: str | None = None,
        labels: Mapping[str, Any] | None = None,
        negatives: Negatives | int = 4,
        users: Any = None,
        items: Any = None,
        unlisted: str = "refuse",
        context: Sequence[str] = (),
        split: Split | None = None,
        schema: Schema | None = None,
        category: str | None = None,
        min_item_count: int | None = None,
        repeats: str = "drop",
        time_unit: str | None = None,
        content: Any = None,
        content_width: int | None = None,
        name: str = "events",
    ) -> Self:
        """Build a data set from a log of what people did, without what they were shown.

        Each user, item and time whose type is in one of the labels is a row to score; its history is what the
        user did strictly before it. Negatives are sampled for each row, by one rule in training, validation
        and test. A request is the rows of one user at one time, and their negatives.

        Rows without a user, an item or a time, and repeated ones, are left out and counted.

        Args:
            events: a DataFrame of pandas or polars (lazy too), an Arrow table or data set, the path of a
                Parquet file (a folder, a glob, a list of them), or a mapping of arrays; in any order.
            user: column of user ids, integers or strings.
            item: column of item ids, non-negative integers or strings.
            time: column of times: datetimes, ISO 8601 text, or epochs in any unit.
            type: column of behaviour types; without one all are of one type, ``interaction``.
            labels: the types that make each head positive, by head: a type, a list of them, or ``"any"``.
                Types in no head are history only. By default one head ``interaction`` of all types.
            negatives: a rule, or a number of sampled items for each row.
            users: table of user features with a column of the name of ``user``.
            items: table of item features with a column of the name of ``item``.
            unlisted: for ids of the log that these tables lack: ``refuse``, ``keep`` (features missing) or
                ``drop`` (their rows).
            context: columns of the log that are features of the request; sampled rows have those of theirs.
            split: rule of the parts: `by_time` (the default), `by_user`, `last_n` or `by_column`.
            schema: of the features; by default inferred, see `Schema.infer`.
            category: for the inferred schema: the item feature by which histories are looked up.
            min_item_count: for the inferred schema: item ids that occur less often in training are unknown.
                By default 3, or 1 where none occurs so often.
            repeats: ``drop`` events of the same user, item, time and type as another, or ``keep`` them.
            time_unit: ``s``, ``ms``, ``us``, ``ns`` or ``step``, where the size of numbers does not tell.
            content: raw content embeddings of items, of any width, as their encoder gives them: ``(ids,
                vectors)``, a mapping from id to vector, or the name of a column of ``items``. Their mean and
                projection are fitted on the items of the training part, and kept. A `ContentSpace` that was
                fitted elsewhere stands before them, ``(space, ids, vectors)``, or alone. By default content
                is derived from the training part.
            content_width: columns that given embeddings are projected onto, or that are derived; 0 for no
                content. By default 64, and none derived from over two million events, because that takes
                minutes.
            name: short name, for reports.

        Raises:
            DataError: the table does not fit; the message says what was found, and how to mend it.
            SchemaError: a feature does not fit its column.

        >>> log = {
        ...     "who": ["ann", "bob", "ann", "bob", "ann", "ann"],
        ...     "what": [7, 7, 8, 9, 9, 8],
        ...     "when": ["2026-11-01", "2026-11-02", "2026-11-03", "2026-11-04", "2026-11-05", "2026-11-06"],
        ... }
        >>> split = by_time(validation=0.2, test=0.2)
        >>> data = Dataset.from_events(
        ...     log, user="who", item="what", time="when", negatives=1, split=split, content_width=2
        ... )
        >>> data.n_users, data.n_items, data.users["ids"].tolist(), data.heads
        (2, 3, ['ann', 'bob'], ('interaction',))
        """
        split = by_time() if split is None else split
        names = Names(
            user=user, item=item, time=time, type=type, context=tuple(context), split=_column(split)
        )  # fmt: skip
        setting = building.Setting(
            users=users, items=items, unlisted=unlisted, split=split, schema=schema,
            category=category, min_item_count=min_item_count, repeats=repeats, time_unit=time_unit,
            content=content, content_width=content_width, name=name,
        )  # fmt: skip
        if not isinstance(negatives, Negatives):
            whole("negatives", negatives, 1)
            negatives = Negatives(negatives)
        return cls(**building.from_events(events, names, setting, labels, negatives))

    @classmethod
    @typed
    def from_impressions(
        cls,
        impressions: Any,
        *,
        user: str,
        item: str,
        time: str,
        label: str | Sequence[str] | Mapping[str, str],
        events: Any = None,
        type: str | None = None,
        request: str | None = None,
        users: Any = None,
        items: Any = None,
        unlisted: str = "refuse",
        context: Sequence[str] = (),
        pair: Sequence[str] = (),
        train_only: Sequence[str] = (),
        split: Split | None = None,
        schema: Schema | None = None,
        category: str | None = None,
        min_item_count: int | None = None,
        repeats: str = "drop",
        time_unit: str | None = None,
        content: Any = None,
        content_width: int | None = None,
        name: str = "impressions",
    ) -> Self:
        """Build a data set from a log of what people were shown, with what came of it.

        A row's history is what the user did strictly before it: the ``events``, or without them the earlier
        impressions (those with a ``type``; without one those with a positive label, of its name).

        Rows without a user, an item or a time are left out and counted.

        Args:
            impressions: see `from_events`.
            user: see `from_events`.
            item: see `from_events`.
            time: see `from_events`.
            label: the column of 0 and 1 (or booleans; missing is unknown), several of them, the main one
                first, or columns by the name of the head.
            events: table of what users did, with columns of the same names ``user``, ``item`` and ``time``.
            type: column of behaviour types, in ``events`` if they are given.
            request: column that says what was shown together; by default the rows of one user at one time.
                Numbers may repeat among users. A request is in the part in which its last row is.
            users: see `from_events`.
            items: see `from_events`.
            unlisted: see `from_events`.
            context: columns that are features of the request, such as the hour or the page.
            pair: columns that are known for user and item when a request comes, such as a retrieval score.
            train_only: columns that explain a label and that serving does not have, such as the position.
            split: see `from_events`.
            schema: see `from_events`.
            category: see `from_events`.
            min_item_count: see `from_events`.
            repeats: ``drop``: of rows with the same user, item, time and request one is left, with the larger
                of their labels; or ``keep`` them.
            time_unit: see `from_events`.
            content: see `from_events`.
            content_width: see `from_events`.
            name: see `from_events`.

        Raises:
            DataError: the table does not fit; the message says what was found, and how to mend it.
            SchemaError: a feature does not fit its column.
        """
        labels = _label_columns(label)
        split = by_time() if split is None else split
        names = Names(
            user=user, item=item, time=time, type=type, request=request, split=_column(split), labels=labels,
            context=tuple(context), pair=tuple(pair), train_only=tuple(train_only),
        )  # fmt: skip
        setting = building.Setting(
            users=users, items=items, unlisted=unlisted, split=split, schema=schema,
            category=category, min_item_count=min_item_count, repeats=repeats, time_unit=time_unit,
            content=content, content_width=content_width, name=name,
        )  # fmt: skip
        return cls(**building.from_impressions(impressions, names, setting, events))

    @classmethod
    @typed
    def from_request_log(
        cls,
        log: str | Path | Sequence[str | Path],
        *,
        labels: Any,
        label: str | Sequence[str] | Mapping[str, str],
        request: str = "request_id",
        item: str = "item",
        unlabelled: str = "drop",
        items: Any = None,
        unlisted: str = "refuse",
        split: Split | None = None,
        schema: Schema | None = None,
        category: str | None = None,
        min_item_count: int | None = None,
        content: Any = None,
        content_width: int | None = None,
        name: str = "requests",
    ) -> Self:
        """Build a data set from what was served: features, histories and pair features as they were logged.

        A row is a candidate of a logged request with a label. Its history is the one that the request was
        served with, so that nothing is put together again later. Each request is a user of its own, with the
        features and behaviours of its record: behaviours of a person are held, and counted, once for each of
        the person's requests, and GAUC is of requests. Requests that the user prior stood in for are left
        out.

        A behaviour without a time among others with one gets the time of the one before it.

        Args:
            log: the folder of a `aif_jax.observe.RequestLog`, a file of it, or several of either.
            labels: table of what came of requests, see `from_events`.
            label: see `from_impressions`.
            request: column of ``labels``: the id of the request, ``Report.request_id``.
            item: column of item ids, in ``labels`` and ``items``.
            unlabelled: for items of the answer that ``labels`` lacks: ``drop``, or ``zero`` for a label 0 of
                every head, if ``labels`` holds nothing but what people did.
            items: see `from_events`.
            unlisted: see `from_events`.
            split: `by_time` of requests, the default.
            schema: see `from_events`; that of a bundle that served, for one. Features that no request has are
                missing in all, and `summary` says so.
            category: see `from_events`.
            min_item_count: see `from_events`.
            content: see `from_events`.
            content_width: see `from_events`.
            name: see `from_events`.

        Raises:
            DataError: the files are of no request log, or a table does not fit; the message says how to mend
                it.
            SchemaError: a feature does not fit its column.
        """
        setting = building.Setting(
            users=None, items=items, unlisted=unlisted, split=by_time() if split is None else split,
            schema=schema, category=category, min_item_count=min_item_count, repeats="keep", time_unit=None,
            content=content, content_width=content_width, name=name,
        )  # fmt: skip
        names = Names(user=request, item=item, time="time", labels=_label_columns(label))
        return cls(**building.from_requests(log, labels, names, setting, unlabelled=unlabelled))

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
        """Sizes, rates, shares of unknown items, lengths of histories, and warnings."""
        return summary_of(self.name, self.n_users, self.n_items, self.events, self.impressions, self.notes)

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about training or its measurement, one sentence each; `summary` ends with them."""
        found = warnings_of(self.n_items, self.n_users, self.events, self.impressions, self.notes)
        return tuple(found)

    def __repr__(self) -> str:
        indented = self.summary.replace("\n", "\n        ")
        return f"Dataset({indented})"

    def trained_items(self) -> np.ndarray:
        """Return which items occur in the training part, shown or in a history, bool ``[n_items]``."""
        return known_items(self.events, self.impressions, self.n_items)

    def fit_schema(self) -> Schema:
        """Return the schema fitted on the training part only: its rows, their users, the items it saw."""
        rows = np.flatnonzero(self.impressions.split == TRAIN)
        users = known_users(self.impressions, self.n_users)
        return self._with_item_ids().fit(
            user=take_columns(self._group("user"), np.flatnonzero(users)),
            item=take_columns(self._group("item"), np.flatnonzero(self.trained_items())),
            context=take_columns(self._group("context"), rows),
            pair=take_columns(self._group("pair"), rows),
            train_only=take_columns(self._group("train_only"), rows),
        )

    def training_counts(self) -> np.ndarray:
        """Return how often each item occurs in the training part, int64 ``[n_items]``.

        It is the larger of the behaviours with the item and its impressions, of which many are both; sampled
        rows do not count.
        """
        done = np.bincount(self.events.item[self.events.training], minlength=self.n_items)
        shown = np.bincount(self.impressions.item[self.impressions.real(TRAIN)], minlength=self.n_items)
        return np.maximum(done, shown)

    def _with_item_ids(self) -> Schema:
        """Return the schema with the vocabulary of the item's own id, whose bounds count training rows.

        The catalogue holds each id once, so counting there would leave out all or none.
        """
        schema, name = self.schema, self.schema.item_id
        if name is None:
            return schema
        feature = schema.feature("item", name)
        encoder = getattr(feature, "encoder", None)
        if not isinstance(encoder, Vocabulary) or encoder.fitted or encoder == Vocabulary():
            return schema
        counts = self.training_counts()
        kept = np.flatnonzero(counts >= encoder.min_count)
        if encoder.max_size is not None:
            kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[: encoder.max_size]])
        if not len(kept):
            raise DataError(
                f"{self.name}: no item occurs {encoder.min_count} times in the training part, the min_count "
                f"of {name!r}; the most frequent one occurs {counts.max(initial=0)} times. Lower it."
            )
        column = take_columns({"": self.items[name]}, kept)[""]
        known = Categorical(name=name).fit(column).encoder
        fitted = dataclasses.replace(known, min_count=encoder.min_count, max_size=encoder.max_size)
        features = tuple(
            dataclasses.replace(feature, encoder=fitted) if feature.name == name else feature
            for feature in schema.item
        )
        return dataclasses.replace(schema, item=features)

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

    @property
    def content_space(self) -> ContentSpace | None:
        """The space in which the content embeddings live, ``None`` without any: what `train` keeps."""
        return None if self.content is None else self.content.space

    def catalogue(
        self,
        schema: Schema,
        *,
        content_width: int | None = None,
        content_space: ContentSpace | None = None,
        fold: int | None = None,
        report: EncodeReport | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the encoded features and content embeddings of all items.

        Args:
            schema: a fitted schema.
            content_width: ``d_m`` of the model; by default the width that the data set was loaded with.
            content_space: of the model, which has a width of its own; by default that of the data set.
            fold: content as training reads it for users of a fold, see `Content`.
            report: counts are added to it.

        Returns:
            Encoded item features ``[n_items, ...]``, ``content`` float32 ``[n_items, d_m]`` (zeros without
            content) and ``has_content`` float32 ``[n_items, 1]``.

        Raises:
            ConfigError: the content embeddings have another width, or are no raw ones for the model's space.
            DataError: there are none, and no width is given.
        """
        encoded = self.encode(schema, "item", report=report)
        content_width = content_width if content_space is None else content_space.width
        if self.content is None:
            if content_width is None:
                raise DataError(
                    f"{self.name} has no content embeddings; give content_width, how wide zeros should be."
                )
            content = Content(
                np.zeros((self.n_items, content_width), np.float32), np.zeros(self.n_items, bool)
            )
        else:
            content = self.content if fold is None else self.content.folds[fold]
            if content_space is not None:
                content = content.read_in(content_space)
            elif content_width is not None:
                content = fit_width(content, content_width)
        return {**encoded, "content": content.vectors, "has_content": content.has[:, None].astype(np.float32)}

    def item_keys(self) -> np.ndarray:
        """Return the key of every item, uint64 ``[n_items]``."""
        return item_keys(self.items["ids"])

    def requests(self, split: str | int, group: int = 16, visit: int = 0) -> Requests:
        """Group the rows of one split into requests of at most ``group`` rows.

        Rows are put together if they share `Impressions.request`, in the order of their history, then of the
        file. They share the history of the first one, which is strictly before all of them.

        Args:
            split: ``train``, ``validation`` or ``test``.
            group: ``G``, rows in a request at most.
            visit: put requests of one user together too, if the histories of their first rows end within so
                many behaviours and an eighth of the history: with 1 only those of the same history; with 8 a
                row whose history has 64 behaviours may lack the last 7 of them. 0 for none.
        """
        if group < 1 or visit < 0:
            raise DataError(f"got group {group} and visit {visit}, expected at least 1, and at least 0.")
        rows, start = self._grouped(split, visit)
        sizes = np.diff(start, append=len(rows))
        parts = -(-sizes // group)
        # A request that is split begins anew every `group` rows.
        skipped = group * (np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts))
        first, left = np.repeat(start, parts) + skipped, np.repeat(sizes, parts) - skipped
        column = np.arange(group)
        table = np.full((len(first), group), -1, np.int64)
        np.copyto(
            table, rows[np.minimum(first[:, None] + column, len(rows) - 1)], where=column < left[:, None]
        )
        head = rows[first]
        users, ends = self.impressions.user[head], self.impressions.history_end[head]
        return Requests(rows=table, user=users, history_end=ends)

    def request_sizes(self, split: str | int, visit: int = 0) -> np.ndarray:
        """Return the rows of each request, before those of more than a group are split, int64 ``[R]``.

        Args:
            split: see `requests`.
            visit: see `requests`.
        """
        rows, start = self._grouped(split, visit)
        return np.diff(start, append=len(rows))

    def _grouped(self, split: str | int, visit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a split, those of a request together, and where each request starts."""
        impressions = self.impressions
        rows = np.flatnonzero(impressions.split == split_number(split))
        rows, start = self._together(rows, impressions.request[rows])
        if not visit:
            return rows, start
        head = rows[start]
        user, end = impressions.user[head], impressions.history_end[head]
        order = np.arange(len(start))
        if np.any((user[1:] < user[:-1]) | ((user[1:] == user[:-1]) & (end[1:] < end[:-1]))):
            order = np.lexsort((end, user))
            user, end = user[order], end[order]
        length = end - self.events.offsets[user]
        step = np.minimum(1 << np.log2(np.maximum(length // 8, 1)).astype(np.int64), visit)
        length -= length % step
        opens = np.ones(len(order), bool)
        opens[1:] = (user[1:] != user[:-1]) | (length[1:] != length[:-1])
        number = np.empty(len(order), np.int64)
        number[order] = np.cumsum(opens)
        return self._together(rows, np.repeat(number, np.diff(start, append=len(rows))))

    def _together(self, rows: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Put the rows ``[m]`` of each owner int64 ``[m]`` together, in order of their histories."""
        end = self.impressions.history_end[rows]
        if np.any((owner[1:] < owner[:-1]) | ((owner[1:] == owner[:-1]) & (end[1:] < end[:-1]))):
            order = np.lexsort((rows, end, owner))
            rows, owner = rows[order], owner[order]
        opens = np.ones(len(rows), bool)
        opens[1:] = owner[1:] != owner[:-1]
        return rows, np.flatnonzero(opens)

    def history(self, users: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the last behaviours before given points, most recent first.

        Args:
            users: int ``[B]``.
            ends: int64 ``[B]``, where each history ends, as in `Impressions.history_end`.
            length: ``L``.

        Returns:
            Items and types, int32 ``[B, L]``, -1 for padding at the end.
        """
        index, valid = self._places(users, ends, length)
        if not len(self.events):
            empty = np.full(index.shape, -1, np.int32)
            return empty, empty.copy()
        return (
            np.where(valid, self.events.item[index], -1).astype(np.int32),
            np.where(valid, self.events.type[index], -1).astype(np.int32),
        )

    def history_gaps(self, users: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
        """Return the gaps before the behaviours of `history`, int32 ``[B, L]``; 0 for padding."""
        index, valid = self._places(users, ends, length)
        return np.where(valid, self.gaps[index], 0).astype(np.int32) if len(self.events) else 0 * index

    @functools.cached_property
    def gaps(self) -> np.ndarray:
        """Step of the time since the user's event before each, int32 ``[E]``, see `aif_jax.features.gaps`."""
        steps = gap_steps(self.events.seconds()[::-1])[::-1].copy()
        starts = self.events.offsets[:-1]
        steps[starts[starts < len(steps)]] = 0
        return steps

    def _places(self, users: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        index = ends[:, None] - 1 - np.arange(length)
        valid = index >= self.events.offsets[users][:, None]
        return np.where(valid, index, 0), valid

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
            times=self.events.seconds(order) if self.events.unit != "step" else (),
        )

    def user_source(self) -> Callable[[UserId], UserRecord | None]:
        """Return a user source of the set: from a user's id to the record with the whole history.

        >>> from aif_jax.data import load
        >>> users = load("synthetic:small").user_source()
        >>> len(users("u0000007").items) > 0, users("nobody")
        (True, None)
        """
        rows = {_scalar([identity]): row for row, identity in enumerate(self.users["ids"])}
        return lambda user: self.user_record(rows[user]) if user in rows else None

    def item_records(self, content_width: int) -> ItemRecords:
        """Return the catalogue as `build_tables` takes it.

        Args:
            content_width: that of the model; see `fit_width`.

        Returns:
            The items; content is raw where a content space was fitted, as the tables take it then.

        Raises:
            ConfigError: the set's content embeddings have another width.
        """
        names = {feature.name for feature in self.schema.item}
        columns = {name: column for name, column in self.items.items() if name in names}
        content = None
        if self.content is not None:
            fitting = fit_width(self.content, content_width)
            content = fitting.vectors if fitting.raw is None else fitting.raw
        return ItemRecords(self.items["ids"], columns, content)

    def with_content_like(self, ids: Any, vectors: Any, space: ContentSpace) -> "Dataset":
        """Return the set with its derived content turned to lie as an earlier set's did.

        Every derivation has axes of its own, so a model of yesterday cannot read today's content; `train`
        from an earlier model (``init``) needs this. Cosines between items stay as they are.

        Args:
            ids: items of the earlier set, ``[n]``.
            vectors: their content embeddings, float ``[n, w]``; zeros for items without one.
            space: of these: the ``content_space`` of the earlier model or data set.

        Raises:
            DataError: this set has no content, of another width, or shares fewer items with content than the
                embeddings have columns.

        >>> from aif_jax.data import load
        >>> yesterday = load("synthetic:small", content_width=8)
        >>> content = yesterday.content
        >>> today = yesterday.with_content_like(yesterday.items["ids"], content.vectors, content.space)
        >>> bool(np.allclose(today.content.vectors, content.vectors, atol=1e-5))
        True
        """
        keys = read_ids(ids, error=DataError).keys
        earlier = read_content(vectors, len(keys), None, "vectors", error=DataError)
        widths = [
            0 if each is None else each.shape[1] for each in (self.content and self.content.vectors, earlier)
        ]
        if self.content is None or earlier is None or widths[0] != widths[1]:
            raise DataError(
                f"{self.name}: its content is {widths[0]} wide and the earlier one {widths[1]} (0: none); "
                "derive both with the same content_width."
            )
        order = np.argsort(keys, kind="stable")
        place, known = find(keys[order], self.item_keys())
        earlier = np.nan_to_num(earlier[order][place].astype(np.float64))
        both = np.flatnonzero(known & self.content.has & np.any(earlier != 0, axis=1))
        if len(both) < widths[0]:
            raise DataError(
                f"{self.name}: shares {len(both)} items with content with the earlier one, expected at least "
                f"{widths[0]}, the columns of the embeddings; train without init."
            )
        return dataclasses.replace(self, content=turned(self.content, both, earlier[both], space))

    def with_validation_in_training(self) -> "Dataset":
        """Return the set with the validation rows moved to training, for a refit before the test.

        Content embeddings stay as they are: frozen before training.
        """
        split = np.where(self.impressions.split == SPLITS["validation"], TRAIN, self.impressions.split)
        return dataclasses.replace(
            self, impressions=dataclasses.replace(self.impressions, split=split.astype(np.int8))
        )

    def with_shown_label(self) -> "Dataset":
        """Return the set with one more label, `SHOWN`, that is 1 for every impression that was not sampled.

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
        shown = ones if rows.sampled is None else 1 - rows.sampled.astype(np.float32)
        labels, mask = {**rows.labels, SHOWN: shown}, {**rows.label_mask, SHOWN: ones}
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

    def _group(self, group: Group) -> dict[str, Any]:
        source = {"user": self.users, "item": self.items}.get(group)
        columns = getattr(self.impressions, group) if source is None else source
        return {name: column for name, column in columns.items() if name != "ids"}


def _label_columns(label: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the column of each head."""
    given = {label: label} if isinstance(label, str) else label
    labels = dict(given) if isinstance(given, Mapping) else {column: column for column in given}
    if not labels:
        raise DataError("label: got no column, expected at least one of 0 and 1.")
    return labels


def _column(split: Split | None) -> str | None:
    return split.column if isinstance(split, Split) else None


def _scalar(column: Any) -> Any:
    if isinstance(column, Ragged):
        return list(np.asarray(column.values).tolist())
    value = column[0]
    return value.item() if isinstance(value, np.generic) else value
