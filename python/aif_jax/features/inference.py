"""Features that fit raw columns, with remarks on what was decided and what was left out.

A column is judged by up to 100,000 of its values. Text and booleans are categories, lists are several
categories, fractions are quantities; whole numbers are categories if they are named like ids or categories,
or take few values, quantities otherwise. Columns that a model cannot use as they are get a remark instead of
a feature: dates, text that differs in almost every row, columns without any value.
"""

import datetime
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.errors import SchemaError
from aif_jax.features.encoders import Vocabulary
from aif_jax.features.kinds import Categorical, Feature, MultiValued, Numeric
from aif_jax.inputs import Ragged

FEW = 32
"""Whole numbers with at most so many values are categories."""

MAX_VALUES = 16
"""Bound of `MultiValued.max_values`; the 95th percentile of the lengths may be lower."""

_SAMPLE = 100_000
_ID = re.compile(r"(^|_)(id|key|code|zip)$|Id$|ID$")
_CATEGORY = re.compile(
    r"categor|genre|(^|_)(tag|topic|section|class|brand|(sub)?cat)(s|es)?(_|$)", re.IGNORECASE
)


def infer_features(
    group: str,
    columns: Mapping[str, Any],
    *,
    item_id: str | None = None,
    min_item_count: int = 1,
    category: str | None = None,
) -> tuple[tuple[Feature, ...], list[str]]:
    """Return a feature for each column that can be one.

    Args:
        group: names the columns in messages.
        columns: raw columns by name.
        item_id: the column that is the item's own id.
        min_item_count: of its vocabulary.
        category: a column that is a category whatever its numbers.

    Returns:
        The features in the order of the columns, and remarks for a reader.

    Raises:
        SchemaError: a column's name cannot be the name of a feature.
    """
    features: list[Feature] = []
    remarks: list[str] = []
    for name, column in columns.items():
        if not name.isidentifier():
            better = re.sub(r"\W+", "_", name.split(":")[0]).strip("_") or "feature"
            raise SchemaError(
                f"{group}: column {name[:50]!r} cannot be a feature by this name; rename it, for example to "
                f"{better!r}, or leave it out."
            )
        if name == item_id:
            features.append(Categorical(name=name, encoder=Vocabulary(min_count=min_item_count)))
            continue
        found = _feature(name, column)
        if name == category and isinstance(found, Numeric):
            found = Categorical(name=name)
        if isinstance(found, str):
            remarks.append(f"{group} column {name!r} {found}")
        else:
            features.append(found)
    return tuple(features), remarks


def infer_category(features: tuple[Feature, ...], item_id: str | None) -> str | None:
    """Return the item feature that looks like a category: by name, or the only one with several values."""
    coded = [f for f in features if not isinstance(f, Numeric) and f.name != item_id]
    named = [feature.name for feature in coded if _CATEGORY.search(feature.name)]
    several = [feature.name for feature in coded if isinstance(feature, MultiValued)]
    if named:
        return named[0]
    return several[0] if len(several) == 1 else None


def _feature(name: str, column: Any) -> Feature | str:
    """Return a feature, or the reason why there is none."""
    if isinstance(column, Ragged):
        return _several(name, np.diff(column.offsets))
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        return _DATES
    values = _sample(column)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            return "holds several numbers a row and was left out; content embeddings are given apart"
        if values.dtype.kind == "b":
            return Categorical(name=name)
        if values.dtype.kind in "iu":
            return _whole(name, np.ma.compressed(values))
        known = np.ma.compressed(values)
        known = known[np.isfinite(known)]
        if not len(known):
            return _EMPTY
        # Whole numbers with gaps are floats in most libraries.
        if np.all(known == np.trunc(known)) and np.all(np.abs(known) < 2**53):
            return _whole(name, known.astype(np.int64))
        return _quantity(name, known)
    known_values = [value for value in values if value is not None and value == value]
    if not known_values:
        return _EMPTY
    kinds = {
        next(name for name, types in _KINDS if issubclass(kind, types))
        for kind in set(map(type, known_values))
    }
    if len(kinds) > 1:
        return f"mixes {' and '.join(sorted(kinds))} and was left out; convert all rows to one kind"
    first = known_values[0]
    if isinstance(first, _LISTS):
        inner = next((next(iter(value)) for value in known_values if len(value)), None)
        if isinstance(inner, (float, np.floating)):
            return "holds lists of fractions and was left out; content embeddings are given apart"
        if isinstance(inner, _LISTS):
            return "holds lists of lists and was left out; give one list a row"
        return _several(name, np.array([len(value) for value in known_values]))
    if isinstance(first, (bool, np.bool_)):
        return Categorical(name=name)
    if isinstance(first, (int, float, np.integer, np.floating)):
        numbers = np.array(known_values)
        if numbers.dtype.kind not in "iuf":
            return "holds numbers of more than 64 bits and was left out; give them as text"
        return _feature(name, numbers)
    if isinstance(first, (datetime.date, datetime.time, datetime.timedelta)):
        return _DATES
    if isinstance(first, str):
        return _text(name, known_values)
    return f"holds {type(first).__name__} and was left out; give numbers, text or lists"


_LISTS = (list, tuple, set, frozenset, np.ndarray)
_KINDS: tuple[tuple[str, Any], ...] = (
    ("lists", _LISTS), ("booleans", (bool, np.bool_)), ("text", str),
    ("numbers", (int, float, np.integer, np.floating)),
    ("dates", (datetime.date, datetime.time, datetime.timedelta)), ("others", object),
)  # fmt: skip
_DATES = "holds dates and was left out; give a number, such as its age in days"
_EMPTY = "has no value in any row and was left out"


def _text(name: str, known: list[str]) -> Feature | str:
    different = len(set(known))
    if len(known) >= 100 and different > 0.5 * len(known):
        return (
            f"was left out: {different:,} different texts in {len(known):,} rows; declare it by hand if "
            "it is a feature"
        )
    texts = set(known[:1000])
    for separator, few in (("|", 1.0), (";", 1.0), (",", 0.5), (" ", 0.5)):  # text has the last two anyway
        lists = [text.split(separator) for text in texts]
        parts = {part for parts in lists for part in parts}
        if sum(len(parts) > 1 for parts in lists) > 0.3 * len(lists) and len(parts) < few * len(lists):
            return f"was left out: it looks like lists joined by {separator!r}; split it into lists"
    return Categorical(name=name)


def _whole(name: str, known: np.ndarray) -> Feature | str:
    if not len(known):
        return _EMPTY
    different = len(np.unique(known))
    if _ID.search(name):
        return Categorical(name=name, encoder=Vocabulary(min_count=2 if different > FEW else 1))
    coded = different <= FEW or _CATEGORY.search(name)
    return Categorical(name=name) if coded else _quantity(name, known)


def _quantity(name: str, known: np.ndarray) -> Feature:
    low, middle, high = np.quantile(known, (0.0, 0.5, 0.99))
    return Numeric(name=name, transform="log1p" if low >= 0 and high > 20 * max(middle, 1) else "identity")


def _several(name: str, lengths: np.ndarray) -> Feature | str:
    if not lengths.any():
        return _EMPTY
    return MultiValued(name=name, max_values=int(np.clip(np.ceil(np.quantile(lengths, 0.95)), 1, MAX_VALUES)))


def _sample(column: Any) -> Any:
    """Return values spread over the column: an array of numbers, or a list."""
    step = max(1, len(column) // _SAMPLE)
    values = column[::step]
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biuf":
        return values.tolist()
    return values
