"""Encoders of tokens as rows of an embedding table: 0 is missing, 1 is unknown, 2 and up are known."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import repeat
from typing import Any, TypeAlias, TypeVar

import numpy as np

from aif_jax.checks import check_types
from aif_jax.errors import SchemaError
from aif_jax.inputs.tokens import Tokens
from aif_jax.lookup import find
from aif_jax.shown import shown
from aif_jax.strict_json import shortened

T = TypeVar("T")

MISSING, UNKNOWN, FIRST = 0, 1, 2
_DENSE_SPAN = 1 << 16
_SHOWN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A fixed list of values, all integers or all strings.

    Attributes:
        values: the known values, sorted; ``None`` until `fit`. Rank ``r`` is encoded as ``r + 2``.
        max_size: keep only the most frequent values when fitting (ties: the smaller value first).
        min_count: keep only values seen at least this often when fitting.

    >>> genres = Vocabulary(values=("horror", "comedy", "drama"))
    >>> genres.values, genres.size
    (('comedy', 'drama', 'horror'), 5)
    >>> from aif_jax.features import Categorical
    >>> Categorical(name="genre", encoder=Vocabulary(min_count=2)).fit(["drama", "noir", "drama"]).encoder
    Vocabulary(values=('drama',), max_size=None, min_count=2)
    """

    values: tuple[int, ...] | tuple[str, ...] | None = None
    max_size: int | None = None
    min_count: int = 1

    def __post_init__(self) -> None:
        check_types(self, SchemaError, but=("values",))  # their types are checked all at once
        if self.max_size is not None and self.max_size < 1:
            raise SchemaError(f"max_size: got {self.max_size}, expected at least 1, or None for no bound.")
        if self.min_count < 1:
            raise SchemaError(f"min_count: got {self.min_count}, expected at least 1.")
        if self.values is None:
            return
        if not isinstance(self.values, (tuple, list)):
            raise SchemaError(
                f"values: got {shown(self.values)}, expected a list of integers, or of strings."
            )
        kinds = set(map(type, self.values))
        if not (kinds <= {int} or kinds <= {str}):
            raise SchemaError(
                f"values: holds {sorted(kind.__name__ for kind in kinds)}; expected Python ints, or strings."
            )
        values = tuple(sorted(self.values))  # type: ignore[type-var]
        if len(set(values)) != len(values):
            raise SchemaError("values: a value stands in the vocabulary twice; name each once.")
        if kinds == {int} and (values[0] < -(2**63) or values[-1] >= 2**63):  # type: ignore[operator]
            raise SchemaError(
                "values: an integer lies outside 64 signed bits; use strings, or a Hashing encoder."
            )
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        """Return the fields; of many values the first few and their number."""
        values = repr(self.values)
        if self.values is not None and len(self.values) > _SHOWN:
            values = f"({', '.join(map(repr, self.values[:3]))}, ...: {len(self.values):,} in all)"
        return f"Vocabulary(values={values}, max_size={self.max_size}, min_count={self.min_count})"

    @property
    def fitted(self) -> bool:
        """True if the values are known."""
        return self.values is not None

    @property
    def size(self) -> int:
        """Rows of the embedding table: two more than there are values.

        Raises:
            SchemaError: not fitted yet.
        """
        return len(self._values) + FIRST

    def fit(self, column: Tokens) -> "Vocabulary":
        """Return a vocabulary of the values in a column of training data; a fitted one returns itself."""
        if self.values is not None:
            return self
        if column.integers is not None:
            seen = column.integers if column.missing is None else column.integers[~column.missing]
            if seen.dtype == np.uint64 and len(seen) and seen.max() >= 2**63:
                raise SchemaError(
                    "an integer of 2^63 or more cannot be in a Vocabulary; use Hashing, or strings."
                )
            values, counts = np.unique(seen.astype(np.int64), return_counts=True)
        else:
            strings = [value for value in column.strings or () if value is not None]
            values, counts = np.unique(np.array(strings, dtype=object), return_counts=True)
        keep = counts >= self.min_count
        values, counts = values[keep], counts[keep]
        if self.max_size is not None and len(values) > self.max_size:
            values = values[np.sort(np.argsort(-counts, kind="stable")[: self.max_size])]
        return dataclasses.replace(self, values=tuple(values.tolist()))

    def encode(self, column: Tokens) -> np.ndarray:
        """Encode tokens ``[n]`` as int32 ``[n]``.

        Raises:
            SchemaError: not fitted yet, or strings meet a vocabulary of integers, or the other way round.
        """
        if column.strings is not None:
            if self._ranks is None:
                raise SchemaError(
                    f"got strings, but the vocabulary holds integers such as {self._values[0]}; give "
                    "integers, or fit it on strings."
                )
            get = self._ranks.get
            return np.fromiter(map(get, column.strings, repeat(UNKNOWN)), np.int32, len(column))
        integers = column.integers
        assert integers is not None
        known, dense = self._table
        if known is None:
            if len(integers) and (column.missing is None or not column.missing.all()):
                raise SchemaError(
                    f"got integers, but the vocabulary holds strings such as {self._values[0]!r}; give "
                    "strings, or fit it on integers."
                )
            return np.zeros(len(integers), np.int32)
        if integers.dtype == np.uint64:
            huge = integers >= 2**63
            integers = integers.astype(np.int64)
        else:
            huge = None
        if dense is not None:
            low, high = known[0], known[-1]
            inside = (integers >= low) & (integers <= high)
            codes = np.where(inside, dense[np.where(inside, integers - low, 0)], np.int32(UNKNOWN))
        else:
            rank, found = find(known, integers)
            codes = np.where(found, rank + FIRST, UNKNOWN).astype(np.int32)
        if huge is not None:
            codes[huge] = UNKNOWN
        if column.missing is not None:
            codes[column.missing] = MISSING
        return codes

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        values = None if self.values is None else list(self.values)
        return {
            "kind": "vocabulary",
            "values": values,
            "max_size": self.max_size,
            "min_count": self.min_count,
        }

    @property
    def _values(self) -> tuple[Any, ...]:
        if self.values is None:
            raise SchemaError(
                "the vocabulary is not fitted yet; call Schema.fit on training data, or give values."
            )
        return self.values

    @cached_property
    def _ranks(self) -> dict[str | None, int] | None:
        if self._values and isinstance(self._values[0], int):
            return None
        ranks: dict[str | None, int] = {value: rank + FIRST for rank, value in enumerate(self._values)}
        ranks[None] = MISSING
        return ranks

    @cached_property
    def _table(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Sorted integers, and a lookup table over their range where the range is small enough for one."""
        if self._values and isinstance(self._values[0], str):
            return None, None
        known = np.array(self._values, np.int64)
        if len(known) == 0 or int(known[-1]) - int(known[0]) >= max(_DENSE_SPAN, 8 * len(known)):
            return known, None
        dense = np.full(int(known[-1] - known[0]) + 1, UNKNOWN, np.int32)
        dense[known - known[0]] = np.arange(FIRST, len(known) + FIRST, dtype=np.int32)
        return known, dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hashing:
    """Values hashed into a fixed number of buckets: no fitting, no unknown values, but collisions.

    The hash is the same in every process and release: splitmix64's finaliser for integers, xxh3-64 for
    strings. The integer 17 and the string "17" are different values.

    Attributes:
        buckets: number of rows for values; the table has two more.

    >>> from aif_jax.features import Categorical, EncodeReport
    >>> user = Categorical(name="user", encoder=Hashing(buckets=1000))
    >>> user.encode(["ann", "bob", "ann", None], 4, EncodeReport())
    array([890, 399, 890,   0], dtype=int32)
    """

    buckets: int

    def __post_init__(self) -> None:
        check_types(self, SchemaError)
        if not 1 <= self.buckets <= 2**31 - 3:
            raise SchemaError(f"buckets: got {self.buckets}, expected 1 to 2^31 - 3.")

    @property
    def fitted(self) -> bool:
        """Always true."""
        return True

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self.buckets + FIRST

    def fit(self, column: Tokens) -> "Hashing":
        """Return itself: there is nothing to learn."""
        del column
        return self

    def encode(self, column: Tokens) -> np.ndarray:
        """Encode tokens ``[n]`` as int32 ``[n]``."""
        if column.integers is not None:
            mixed = _mix(column.integers.astype(np.uint64))
        else:
            from aif_jax import _native

            mixed = np.asarray(_native.hash_strings([value or "" for value in column.strings or ()]))
        codes = (mixed % np.uint64(self.buckets)).astype(np.int32) + np.int32(FIRST)
        if column.missing is not None:
            codes[column.missing] = MISSING
        return codes

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {"kind": "hashing", "buckets": self.buckets}


Encoder: TypeAlias = Vocabulary | Hashing


def encoder_from_json(values: Mapping[str, Any]) -> Encoder:
    """Read `Vocabulary.to_json` or `Hashing.to_json` back.

    Raises:
        SchemaError: the kind is unknown or the fields do not fit.
    """
    return from_kind("encoder", values, {"vocabulary": _vocabulary, "hashing": Hashing})


def from_kind(what: str, fields: Mapping[str, Any], makers: Mapping[str, Callable[..., T]]) -> T:
    """Make an object from its JSON fields, of which ``kind`` names the maker and the others are arguments.

    Args:
        what: the thing, for messages.
        fields: as ``to_json`` returned them.
        makers: functions by kind.

    Raises:
        SchemaError: the kind is unknown or the fields do not fit.
    """
    if not isinstance(fields, Mapping):
        raise SchemaError(f"{what}: got a {type(fields).__name__}, expected an object with its kind.")
    arguments = dict(fields)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in makers:
        *others, last = map(repr, makers)
        raise SchemaError(
            f"{what} kind: got {shortened(repr(kind))}, expected {', '.join(others)} or {last}."
        )
    try:
        return makers[kind](**arguments)
    except TypeError as error:
        raise SchemaError(
            f"{what} {shortened(repr(fields))} has fields that do not fit its kind: {shortened(str(error))}."
        ) from error


def _vocabulary(*, values: Any = None, **fields: Any) -> Vocabulary:
    return Vocabulary(values=values, **fields)


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014), with its increment so that 0 does not stay 0."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
