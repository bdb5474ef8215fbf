"""Filters of a request: items that it excludes, and categories that it asks for."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from aif_jax.errors import RequestError, SchemaError
from aif_jax.features.encoders import FIRST
from aif_jax.features.ids import KeySet
from aif_jax.features.report import EncodeReport
from aif_jax.features.schema import Schema
from aif_jax.inputs import read_flat, read_ids
from aif_jax.inputs.tokens import tokens
from aif_jax.shown import shown

_MAX_TABLE = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Filters:
    """Candidates that a request excludes. One object serves any number of requests.

    >>> Filters(exclude=[17, 42])
    Filters(exclude=[17, 42], categories=None)

    Attributes:
        exclude: ids that must not be in the answer (seen, bought, blocked): integers or strings like those of
            the candidates, ``[m]``, as array, list, set, series or Arrow array.
        categories: raw values of the schema's category; only items that have one of them stay, an item with
            several if any is among them. ``None`` for all; an empty list leaves nothing. Values that the
            schema does not know are counted in the report. Under a `Hashing` encoder, categories that share a
            bucket pass together; an item has the categories that fit its row, ``max_values`` of a
            `MultiValued` feature.

    Raises:
        RequestError: ``exclude`` are not ids, or ``categories`` is neither a collection nor ``None``.
    """

    exclude: Any = ()
    categories: Iterable[Any] | None = None
    _excluded: KeySet = dataclasses.field(init=False, repr=False)
    _strings: bool = dataclasses.field(init=False, repr=False)
    _categories: list[Any] | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        excluded = read_ids(self.exclude, "exclude", ordered=False)
        categories: Any = self.categories
        if isinstance(categories, Iterator):
            categories = list(categories)  # read once: filters serve any number of requests
        if categories is not None:
            categories = read_flat(categories, "categories", ordered=False)
            categories = categories.tolist() if isinstance(categories, np.ndarray) else list(categories)
        object.__setattr__(self, "_excluded", KeySet(excluded.keys))
        object.__setattr__(self, "_strings", excluded.strings)
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

    @property
    def by_category(self) -> bool:
        """True if only some categories are allowed."""
        return self._categories is not None

    def outside(self, codes: np.ndarray, schema: Schema, report: EncodeReport) -> np.ndarray:
        """Return which items have none of the allowed categories, bool ``[n]``.

        Args:
            codes: encoded categories of the items, int32 ``[n, C]``.
            schema: the model's features.
            report: values of ``categories`` that the schema does not know are added to it, as unknown values
                of ``filters.categories``.

        Raises:
            RequestError: no value of ``categories`` is known, or they are of the wrong kind.
        """
        assert self._categories is not None, "call only if by_category"
        among = _among(codes, _category_codes(self._categories, schema, report))
        return np.logical_not(np.any(among, axis=1))


def _among(codes: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return which codes int32 ``[n, C]`` are among the allowed ones ``[m]``, bool ``[n, C]``."""
    largest = int(allowed.max(initial=0))
    if largest >= _MAX_TABLE:
        return np.isin(codes, allowed)
    table = np.zeros(largest + 2, bool)  # the last for all that are larger
    table[allowed] = True
    return table[np.minimum(codes, largest + 1)]


def checked_filters(filters: Any) -> Filters | None:
    """Return a request's ``filters``.

    Raises:
        RequestError: it is neither `Filters` nor ``None``.
    """
    if filters is None or isinstance(filters, Filters):
        return filters
    raise RequestError(
        f"filters: got a {type(filters).__name__}, expected aif_jax.Filters(exclude=..., categories=...), or "
        "None."
    )


def filters_for_each(
    filters: Filters | Sequence[Filters | None] | None, users: Sequence[Any]
) -> list[Filters | None]:
    """Return the filters of each of several users: one for all, or one each.

    Raises:
        RequestError: there are more or fewer of them than users, or one is something else.
    """
    if filters is None or isinstance(filters, Filters):
        return [filters] * len(users)
    filters = list(read_flat(filters, "filters"))
    if len(filters) != len(users):
        raise RequestError(
            f"filters: got {len(filters)} for {len(users)} users; expected one for all, or one for each."
        )
    return [checked_filters(each) for each in filters]


def _category_codes(categories: list[Any], schema: Schema, report: EncodeReport) -> np.ndarray:
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
            f"categories: {shown(categories[:10])}: the item feature {feature.name!r} knows none of these, "
            "so that nothing could be ranked; check the spelling, or train with a vocabulary that has them."
        )
    report.unknown["filters.categories"] += len(codes) - len(known)
    return known
