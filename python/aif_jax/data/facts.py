"""Facts about a data set for its reader: sizes, rates, what the training part does not know, and warnings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.data.rows import Events, Impressions
from aif_jax.data.splits import SPLITS, TEST, TRAIN, VALIDATION

SHORT_HISTORY = 3
FEW_ROWS = 1_000
_HEAD_OF_CATALOGUE = 100


def summary_of(
    name: str, n_users: int, n_items: int, events: Events, rows: Impressions, notes: Mapping[str, Any]
) -> str:
    """Return the facts and warnings, one a line."""
    lengths = np.diff(events.offsets)
    positive = ", ".join(
        f"{head} {_share(label, rows.label_mask[head])}" for head, label in rows.labels.items()
    )
    by_split = ", ".join(f"{np.count_nonzero(rows.split == n):,} {part}" for part, n in SPLITS.items())
    lines = [
        f"{name}: {n_users:,} users, {n_items:,} items, {len(events):,} behaviours, "
        f"{len(rows):,} impressions",
        f"impressions: {by_split}; positive: {positive}",
    ]
    if rows.sampled is not None:
        lines.append(
            f"sampled: {np.count_nonzero(rows.sampled):,} of the impressions, {notes.get('negatives')}"
        )
    if len(lengths):
        lines.append(
            f"behaviours of a user: {np.median(lengths):,.0f} in the median, {lengths.max():,} at most"
        )
    if len(before := history_lengths(events, rows)):
        middle, long = np.quantile(before, (0.5, 0.95))
        lines.append(
            f"behaviours before an impression: {middle:,.0f} in the median, {long:,.0f} at the 95th "
            f"percentile, none for {np.mean(before == 0):.1%}"
        )
    for part, number in list(SPLITS.items())[1:]:
        if len(mine := rows.real(number)):
            items, users = known_items(events, rows, n_items), known_users(rows, n_users)
            lines.append(
                f"unknown to training in {part}: items of {np.mean(~items[rows.item[mine]]):.1%} of the "
                f"impressions, users of {np.mean(~users[rows.user[mine]]):.1%}"
            )
    lines += [
        f"{key}: {notes[key]}"
        for key in ("time", "split", "moved", "content")
        if isinstance(notes.get(key), str)
    ]
    if left_out := notes.get("left_out"):
        lines.append(
            "left out: " + ", ".join(f"{count:,} rows {reason}" for reason, count in left_out.items())
        )
    for key, words in (("idle", "in no log"), ("unlisted", "without a row in their table")):
        if found := {side: count for side, count in notes.get(key, {}).items() if count}:
            lines.append(f"{words}: " + ", ".join(f"{count:,} {side}" for side, count in found.items()))
    lines += [f"schema: {remark}" for remark in notes.get("schema", ())]
    lines += [f"warning: {text}" for text in warnings_of(n_items, n_users, events, rows, notes)]
    return "\n".join(lines)


def warnings_of(
    n_items: int, n_users: int, events: Events, rows: Impressions, notes: Mapping[str, Any]
) -> list[str]:
    """Return what makes training or its measurement doubtful."""
    found = []
    trained = rows.real(TRAIN)
    if len(trained) < FEW_ROWS:
        found.append(
            f"{len(trained):,} training impressions are few: a model will hardly beat an item mean; wait for "
            f"{FEW_ROWS:,} and more."
        )
    before = history_lengths(events, rows)
    if len(before) and np.median(before) < SHORT_HISTORY:
        found.append(
            f"histories are short, {np.median(before):,.0f} behaviours in the median: sequence blocks have "
            "little to read; compare with the architecture 'cold'."
        )
    for part, number in list(SPLITS.items())[1:]:
        mine = np.flatnonzero(rows.split == number)
        for head, label in rows.labels.items():
            known = label[mine][rows.label_mask[head][mine] > 0]
            if len(mine) and (not len(known) or known.min() == known.max()):
                found.append(
                    f"label {head!r} has one class in the {part} part: AUC is undefined there. Hold out "
                    "more, or other rows."
                )
    if not np.any(rows.split == VALIDATION):
        found.append("no validation part: training cannot choose its best epoch.")
    tested = rows.item[rows.real(TEST)]
    if len(tested) and len(trained):
        unknown = float(np.mean(~known_items(events, rows, n_items)[tested]))
        if unknown > 0.3:
            found.append(
                f"items of {unknown:.0%} of the test impressions are unknown to training: features and "
                "content of items count there, ids do not. Train more often, or hold out a shorter time."
            )
        counts = np.bincount(tested, minlength=n_items)
        top = np.argsort(-counts, kind="stable")[:_HEAD_OF_CATALOGUE]
        share = counts[top].sum() / len(tested)
        was = np.bincount(rows.item[trained], minlength=n_items)[top].sum() / len(trained)
        if n_items > 10 * _HEAD_OF_CATALOGUE and share > 0.05 and share > 3 * was:
            found.append(
                f"popularity shifts: the {_HEAD_OF_CATALOGUE} most frequent items of the test part have "
                f"{share:.0%} of its impressions, and had {was:.0%} in training."
            )
    if future := notes.get("future"):
        found.append(f"{future:,} times lie in the future: clocks, time zones or units are wrong there.")
    gone = sum(notes.get("left_out", {}).values())
    if gone > 0.1 * (gone + len(rows.real(TRAIN)) + len(rows.real(VALIDATION)) + len(rows.real(TEST))):
        found.append(f"{gone:,} rows were left out, more than a tenth; see left out.")
    if (lacking := notes.get("negatives_lacking", 0.0)) > 0.01:
        found.append(
            f"{lacking:.0%} of the negatives were not found, because users meet most of the items later."
        )
    return found


def history_lengths(events: Events, rows: Impressions) -> np.ndarray:
    """Return the number of behaviours before each impression that was logged, int64."""
    mine = slice(None) if rows.sampled is None else ~rows.sampled
    return rows.history_end[mine] - events.offsets[rows.user[mine]]


def known_items(events: Events, rows: Impressions, n_items: int) -> np.ndarray:
    """Return which items occur in the training part, shown or in a history, bool ``[n_items]``."""
    seen = np.zeros(n_items, bool)
    seen[rows.item[rows.split == TRAIN]] = True
    seen[events.item[events.training]] = True
    return seen


def known_users(rows: Impressions, n_users: int) -> np.ndarray:
    """Return which users have impressions in the training part, bool ``[n_users]``."""
    seen = np.zeros(n_users, bool)
    seen[rows.user[rows.split == TRAIN]] = True
    return seen


def _share(label: np.ndarray, mask: np.ndarray) -> str:
    known = float(np.sum(mask, dtype=np.float64))
    return f"{float(np.sum(label * mask, dtype=np.float64)) / known:.1%}" if known else "unknown"
