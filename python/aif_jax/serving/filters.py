"""What a request leaves out of its own candidates: items it excludes, and categories it did not ask for."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from aif_jax.errors import RequestError, SchemaError
from aif_jax.features import EncodeReport, Schema
from aif_jax.features.encoders import FIRST
from aif_jax.features.tokens import tokens
from aif_jax.nearline import ItemIndex
from aif_jax.serving.candidate_tables import read_ids

Filter = Literal["exclude", "categories"]

CATEGORY = "category"
"""The column of item rows that holds an item's encoded categories, int32 ``[C]``."""

_LARGEST_TABLE = 1 << 20
_MOST_BITS = 20
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Filters:
    """Which candidates a request does not want. Made once, it serves any number of requests.

    Attributes:
        exclude: ids that must not be in the answer (seen, bought, blocked): integers or strings like those of
            the candidates, ``[m]``, as array, list, set or series.
        categories: raw values of the schema's category; only items that have one of them stay, an item with
            several if any is among them. ``None`` for all; an empty list leaves nothing. Values that the
            schema does not know are counted in the report. Under a `Hashing` encoder, categories that share a
            bucket pass together; an item has the categories that fit its row, ``max_values`` of a
            `MultiValued` feature.

    Raises:
        RequestError: ``exclude`` are no ids, or ``categories`` is neither a collection nor ``None``.
    """

    exclude: Any = ()
    categories: Iterable[Any] | None = None
    _excluded: "KeySet" = dataclasses.field(init=False, repr=False)
    _strings: bool = dataclasses.field(init=False, repr=False)
    _categories: list[Any] | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            _, keys, strings = read_ids(self.exclude)
        except RequestError as error:
            raise RequestError(f"exclude: {str(error).removeprefix('ids: ')}") from error
        categories = self.categories
        if categories is not None:
            if isinstance(categories, (str, bytes, Mapping)) or not isinstance(categories, Iterable):
                raise RequestError(
                    f"categories: got {categories!r}, expected a list of category values, or None for all."
                )
            categories = list(categories)
        object.__setattr__(self, "_excluded", KeySet(keys))
        object.__setattr__(self, "_strings", strings)
        object.__setattr__(self, "_categories", categories)

    def excluded(self, keys: np.ndarray, strings: bool) -> np.ndarray | None:
        """Return which candidates are excluded, bool ``[n]``; ``None`` if no id is.

        Args:
            keys: of the candidates, uint64 ``[n]``.
            strings: whether their ids are strings.

        Raises:
            RequestError: the excluded ids are strings and the candidates' are not, or the other way round.
        """
        if not len(self._excluded):
            return None
        if strings != self._strings:
            here, there = ("strings", "integers") if self._strings else ("integers", "strings")
            raise RequestError(
                f"exclude: got {here}, but the candidates' ids are {there}, so that nothing would ever be "
                "excluded; give ids of the same kind."
            )
        return self._excluded.has(keys)

    def of_other_categories(
        self, keys: np.ndarray, index: ItemIndex, schema: Schema, report: EncodeReport
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return which candidates have a row without an allowed category, and which have a row, bool ``[n]``.

        Args:
            keys: of the candidates, uint64 ``[n]``.
            index: their rows.
            schema: the model's features.
            report: values of ``categories`` that the schema does not know are added to it, as unknown values
                of ``filters.categories``.

        Returns:
            ``None`` if all categories are allowed.

        Raises:
            RequestError: item rows hold no category, no value of ``categories`` is known, or they are of the
                wrong kind.
        """
        if self._categories is None:
            return None
        specs = index.store.columns
        if CATEGORY not in specs or 0 in specs[CATEGORY][1]:
            raise RequestError(
                "categories: this model's item rows hold no category to filter by; train with a schema that "
                "names a category and with the block 'sim_hard', or filter in retrieval."
            )
        allowed = _encoded(self._categories, schema, report)
        codes, found = index.store.cache.gather_column(keys, CATEGORY)
        passes = _among(codes, allowed).any(axis=1)
        return found & ~passes, found


class KeySet:
    """A set of 64-bit keys that looks many up at once.

    A table of marks, by some bits of a hash, says of nearly every key that it is not there; only the others
    are searched for among the sorted keys.

    Args:
        keys: uint64 ``[m]``.
    """

    __slots__ = ("_keys", "_marks", "_shift")

    def __init__(self, keys: np.ndarray):
        self._keys = np.unique(keys)
        bits = min(_MOST_BITS, max(8, (16 * len(self._keys)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._marks = np.zeros(1 << bits, bool)
        self._marks[self._places(self._keys)] = True

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Return which of the keys uint64 ``[n]`` are in the set, bool ``[n]``."""
        found = self._marks[self._places(keys)]
        likely = np.flatnonzero(found)
        if len(likely):
            asked = keys[likely]
            place = np.minimum(np.searchsorted(self._keys, asked), len(self._keys) - 1)
            found[likely] = self._keys[place] == asked
        return found

    def _places(self, keys: np.ndarray) -> np.ndarray:
        # The product wraps; its high bits depend on every bit of the key.
        return ((keys * _SPREAD) >> self._shift).astype(np.intp)


def _among(codes: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return which codes int32 ``[n, C]`` are among the allowed ones ``[m]``, bool ``[n, C]``."""
    largest = int(allowed.max(initial=0))
    if largest >= _LARGEST_TABLE:
        return np.isin(codes, allowed)
    table = np.zeros(largest + 2, bool)  # the last for all that are larger
    table[allowed] = True
    return table[np.minimum(codes, largest + 1)]


def checked_filters(filters: Any) -> Filters | None:
    """Return what a request gave as ``filters``.

    Raises:
        RequestError: it is neither `Filters` nor ``None``.
    """
    if filters is None or isinstance(filters, Filters):
        return filters
    raise RequestError(
        f"filters: got a {type(filters).__name__}, expected aif_jax.Filters(exclude=..., categories=...), or "
        "None."
    )


def for_each_user(
    filters: Filters | Sequence[Filters | None] | None, users: Sequence[Any]
) -> list[Filters | None]:
    """Return the filters of each of several users: one for all, or one each.

    Raises:
        RequestError: there are more or fewer of them than users, or one is something else.
    """
    if not isinstance(filters, (list, tuple)):
        return [checked_filters(filters)] * len(users)
    if len(filters) != len(users):
        raise RequestError(
            f"filters: got {len(filters)} for {len(users)} users; expected one for all, or one for each."
        )
    return [checked_filters(each) for each in filters]


def _encoded(categories: list[Any], schema: Schema, report: EncodeReport) -> np.ndarray:
    """Return the codes of those categories that the schema knows, int32 ``[m]``."""
    feature = schema.category_feature
    assert feature is not None, "rows have a category only if the schema names one"
    if not categories:
        return np.zeros(0, np.int32)
    try:
        codes = feature.encoder.encode(tokens(feature.name, categories))
    except SchemaError as error:
        raise RequestError(f"categories: {error}") from error
    known = codes[codes >= FIRST]
    if not len(known):
        raise RequestError(
            f"categories: {categories[:10]!r}: the item feature {feature.name!r} knows none of these, so "
            "that nothing could be ranked; check the spelling, or train with a vocabulary that has them."
        )
    report.unknown["filters.categories"] += len(codes) - len(known)
    return known
