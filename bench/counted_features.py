"""Features by counting, for a learner that is not the model: of items, of histories, of how they match.

No label of a row is in its own features: rates of items are those of the training rows of other users, and
histories end where the models see them end.
"""

import dataclasses

import numpy as np

from aif_jax.data import TRAIN, Dataset
from aif_jax.features import Schema
from aif_jax.features.encoders import FIRST

POSITIVE = frozenset({"long_view", "like", "liked", "click"})
"""Behaviour types that speak for an item."""
SMOOTHING = 20.0
FOLDS = 5
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Known:
    """A data set as the features need it; codes below `FIRST` are missing or unknown values."""

    dataset: Dataset
    schema: Schema
    item: Columns
    categories: np.ndarray
    positive: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> "Known":
        schema = dataset.fit_schema()
        encoded = dataset.encode(schema, "item")
        kinds = np.array([name in POSITIVE for name in schema.behaviour_types])
        if not kinds.any() or kinds.all():
            raise SystemExit(f"{dataset.name}: none or all of {schema.behaviour_types} speak for an item.")
        return cls(dataset, schema, encoded, schema.category_ids(encoded), kinds[dataset.events.type])


def plain(columns: Columns) -> Columns:
    """Return one number a row of each encoded column, NaN where it is not known."""
    found = {}
    for name, column in columns.items():
        if column.dtype == np.int32:
            codes = column if column.ndim == 1 else column[:, 0]
            found[name] = np.where(codes >= FIRST, codes, np.nan)
        else:
            found[name] = np.where(column[:, 1] > 0, column[:, 0], np.nan)
    return found


def item_features(known: Known, head: str, rows: np.ndarray) -> Columns:
    """Return columns of the rows' items, and rates of their values among training rows of other users."""
    impressions = known.dataset.impressions
    item, label = impressions.item, np.asarray(impressions.labels[head], np.float64)
    counted = (impressions.split == TRAIN) & (np.asarray(impressions.label_mask[head]) > 0)
    fold, mean = impressions.user % FOLDS, float(label[counted].mean())
    found = {name: column[item[rows]] for name, column in plain(known.item).items()}
    for name, column in known.item.items():
        if column.dtype != np.int32 or column.ndim > 1:
            continue
        codes, size = column[item], int(column.max()) + 1
        each = np.stack(
            [
                [np.bincount(codes[part], weights, size) for weights in (None, label[part])]
                for part in (np.flatnonzero(counted & (fold == f)) for f in range(FOLDS))
            ]
        )
        # A training row sees the counts of the other folds, others all: no label is in its own row.
        left_out = np.where(
            (impressions.split[rows] == TRAIN)[:, None], each[fold[rows], :, codes[rows]], 0.0
        )
        counts, positives = (each.sum(axis=0)[:, codes[rows]].T - left_out).T
        found[f"rate of {name}"] = (positives + SMOOTHING * mean) / (counts + SMOOTHING)
        found[f"count of {name}"] = counts
    return found


def history_features(known: Known, rows: np.ndarray, ends: np.ndarray) -> tuple[Columns, Columns]:
    """Return rates of the histories, and how each history matches the row's item.

    Args:
        known: the data.
        rows: rows of impressions, ``[m]``.
        ends: where their histories end, ``[m]``.
    """
    events, impressions = known.dataset.events, known.dataset.impressions
    same = {name: c for name, c in known.item.items() if c.dtype == np.int32 and c.ndim == 1}
    near = {name: c[:, 0] for name, c in known.item.items() if c.dtype != np.int32}
    content = None if known.dataset.content is None else known.dataset.content.vectors
    names = [f"{what} of {name}" for name in (*same, "category") for what in ("matches", "rate")]
    names += [f"rate near {name}" for name in near]
    names += ["nearest positive", "mean positive", "nearest other", "mean other", "rate of the like"]
    rates = {name: np.full(len(rows), np.nan) for name in ("length", "rate", "rate of the last 10")}
    matches = {name: np.full(len(rows), np.nan) for name in names}

    def matched(place: int, name: str, equal: np.ndarray, surprise: np.ndarray) -> None:
        number = int(equal.sum())
        matches[f"matches of {name}"][place] = number
        if number:
            matches[f"rate of {name}"][place] = surprise[equal].sum() / (number + 2.0)

    for place, (row, end) in enumerate(zip(rows.tolist(), ends.tolist(), strict=True)):
        start = int(events.offsets[impressions.user[row]])
        rates["length"][place] = end - start
        if end == start:
            continue
        seen, liked, item = events.item[start:end], known.positive[start:end], int(impressions.item[row])
        rate = liked.mean()
        rates["rate"][place], rates["rate of the last 10"][place] = rate, liked[-10:].mean()
        surprise = liked - rate
        for name, codes in same.items():
            known_value = codes[item] >= FIRST
            equal = np.equal(codes[seen], codes[item]) if known_value else np.zeros(end - start, bool)
            matched(place, name, equal, surprise)
        own = known.categories[item][known.categories[item] >= FIRST]
        matched(place, "category", np.asarray(np.isin(known.categories[seen], own).any(axis=1)), surprise)
        for name, values in near.items():
            weight = np.exp(-np.square((values[seen] - values[item]) / 0.3))
            matches[f"rate near {name}"][place] = weight @ surprise / (weight.sum() + 1.0)
        if content is not None:
            likeness = content[seen] @ content[item]
            for name, part in (("positive", likeness[liked]), ("other", likeness[~liked])):
                if part.size:
                    matches[f"nearest {name}"][place] = part.max()
                    matches[f"mean {name}"][place] = part.mean()
            weight = np.exp(4.0 * likeness)
            matches["rate of the like"][place] = weight @ surprise / weight.sum()
    return rates, matches


def features(known: Known, head: str, rows: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return all features of the rows, and where each group of them ends.

    Returns:
        float32 ``[m, n]``; and the number of columns up to the end of each group: what is known of the item,
        of user and context, rates of the history, how it matches the item.
    """
    dataset, schema = known.dataset, known.schema
    about = plain(dataset.encode(schema, "user", dataset.impressions.user[rows]))
    about |= plain(dataset.encode(schema, "context", rows))
    groups = [item_features(known, head, rows), about, *history_features(known, rows, ends)]
    table = [column.astype(np.float32) for group in groups for column in group.values()]
    # The trees refuse a column without a number: of a feature that is never known, or never matches.
    table = [np.zeros_like(column) if np.isnan(column).all() else column for column in table]
    return np.stack(table, axis=1), np.cumsum([len(group) for group in groups]).tolist()


def training_rows(dataset: Dataset, head: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw training rows whose label and context are known, and where their request's history ends."""
    requests = dataset.requests("train")
    inside = requests.rows >= 0
    rows = requests.rows[inside]
    ends = np.repeat(requests.history_end, inside.sum(axis=1))
    whole = np.asarray(dataset.impressions.label_mask[head])[rows] > 0
    for column in dataset.impressions.context.values():
        whole &= ~np.ma.getmaskarray(np.ma.asarray(column))[rows]
    chosen = np.flatnonzero(whole)
    if len(chosen) > most:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, most, replace=False))
    return rows[chosen], ends[chosen]
