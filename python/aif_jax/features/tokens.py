"""Readers of raw columns: 64-bit integers or strings, with a mask of missing values.

Missing are ``None``, NaN, the empty string and masked entries of a masked array; no integer means "missing".
"""

import dataclasses
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from aif_jax.errors import SchemaError

_NONE_OR_FLOAT = {type(None), float, np.float32, np.float64}


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """A flat column of lists: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``. The fastest form.

    Attributes:
        values: all values in row order, ``[V]``.
        offsets: ``int64[n + 1]``, ascending, from 0 to V.

    >>> genres = Ragged(["drama", "noir", "comedy"], np.array([0, 2, 2, 3]))  # the second row is empty
    >>> len(genres)
    3
    >>> genres.take(np.array([2, 0])).values.tolist()
    ['comedy', 'drama', 'noir']
    """

    values: Any
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: np.ndarray) -> "Ragged":
        """Return the chosen rows, in the order given.

        Args:
            rows: row numbers, ``[m]``.
        """
        starts, lengths = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(np.asarray(self.values)[index], offsets)


class Tokens(NamedTuple):
    """One flat column: ``integers`` (int64 or uint64 ``[n]``) or ``strings`` (``None`` where missing)."""

    integers: np.ndarray | None
    strings: list[str | None] | None
    missing: np.ndarray | None
    """bool ``[n]``, or ``None`` if nothing is missing."""

    def __len__(self) -> int:
        return len(self.integers if self.integers is not None else self.strings or ())


def tokens(name: str, column: Any) -> Tokens:
    """Read a flat column of integers or strings.

    Args:
        name: the feature, for messages.
        column: array, list or tuple, ``[n]``: integers, booleans, whole floats, strings; see the module for
            what counts as missing.

    Raises:
        SchemaError: the column is not flat, or mixes kinds, or holds something else.
    """
    if isinstance(column, np.ma.MaskedArray):
        inner = tokens(name, column.data)
        mask = np.ma.getmaskarray(column)
        missing = mask if inner.missing is None else mask | inner.missing
        strings = inner.strings
        if strings is not None:
            strings = [None if gone else value for value, gone in zip(strings, missing, strict=True)]
        return Tokens(inner.integers, strings, missing if missing.any() else None)
    if isinstance(column, (str, bytes)):
        raise SchemaError(f"feature {name!r}: got one string, expected a column; wrap it in a list.")
    if not isinstance(column, (np.ndarray, list, tuple)):
        column = np.asarray(column)
    if isinstance(column, np.ndarray):
        if column.ndim != 1:
            raise SchemaError(f"feature {name!r}: got shape {column.shape}, expected one value a row, [n].")
        if column.dtype.kind in "biuf":
            return _numbers(name, column)
        if column.dtype.kind not in "UOT":
            raise SchemaError(
                f"feature {name!r}: got dtype {column.dtype}, expected integers or strings; "
                "decode or convert it first."
            )
        column = column.tolist()
    return _objects(name, column)


def _numbers(name: str, column: np.ndarray) -> Tokens:
    if column.dtype.kind == "u":
        return Tokens(column.astype(np.uint64, copy=False), None, None)
    if column.dtype.kind != "f":
        return Tokens(column.astype(np.int64, copy=False), None, None)
    missing = np.isnan(column)
    whole = np.where(missing, 0.0, column)
    if not np.all(np.abs(whole) < 2**53) or np.any(whole != np.trunc(whole)):
        bad = whole[(np.abs(whole) >= 2**53) | (whole != np.trunc(whole))][0]
        raise SchemaError(
            f"feature {name!r}: got the float {bad}, expected integers or strings; "
            "for a measured quantity, use a Numeric feature."
        )
    return Tokens(whole.astype(np.int64), None, missing if missing.any() else None)


def _objects(name: str, column: Sequence[Any]) -> Tokens:
    kinds = set(map(type, column))
    special = kinds & _NONE_OR_FLOAT
    if str in kinds or np.str_ in kinds:
        if kinds - {str, np.str_} - special:
            raise SchemaError(
                f"feature {name!r}: mixes strings with {_names(kinds - {str, np.str_})}; "
                "use one kind for all values."
            )
        if special:
            if any(isinstance(v, (float, np.floating)) and not math.isnan(v) for v in column):
                raise SchemaError(f"feature {name!r}: mixes strings and floats; use strings for all values.")
            column = [v if isinstance(v, str) else None for v in column]
        strings: list[str | None] = list(column)
        if "" in strings or special:
            missing = np.fromiter((not v for v in strings), bool, len(strings))
            return Tokens(None, [v or None for v in strings], missing)
        return Tokens(None, strings, None)
    if kinds <= _NONE_OR_FLOAT:
        return _numbers(name, np.array([np.nan if v is None else v for v in column], np.float64))
    plain = {kind for kind in kinds if issubclass(kind, (int, np.integer, np.bool_))}
    if kinds - plain - special:
        raise SchemaError(
            f"feature {name!r}: holds {_names(kinds - plain - special)}, expected integers or strings "
            "(lists only in a MultiValued feature)."
        )
    gone = np.fromiter((v is None or v != v for v in column), bool, len(column)) if special else None
    clean = [0 if v is None or v != v else v for v in column] if special else column
    if special and any(v != int(v) for v in clean):
        raise SchemaError(
            f"feature {name!r}: mixes integers and fractions; for a quantity, use a Numeric feature."
        )
    try:
        integers = np.array(clean, np.int64)
    except OverflowError:
        try:
            integers = np.array(clean, np.uint64)
        except OverflowError:
            raise SchemaError(f"feature {name!r}: an integer does not fit in 64 bits; use strings.") from None
    return Tokens(integers, None, gone)


def _names(kinds: set[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))


def ragged(name: str, column: Any, n: int) -> tuple[Tokens, np.ndarray]:
    """Read a column of lists.

    Args:
        name: the feature, for messages.
        column: `Ragged`; a sequence of n lists, tuples or arrays (``None`` for no values); or an array
            ``[n, k]`` in which missing entries, and negative ones among integers, are padding.
        n: rows expected.

    Returns:
        The flat tokens ``[V]`` and the row of each, int64 ``[V]`` ascending.

    Raises:
        SchemaError: wrong length, or rows that are not lists.
    """
    if isinstance(column, Ragged):
        offsets = np.asarray(column.offsets)
        flat = tokens(name, column.values)
        if (
            offsets.shape != (n + 1,)
            or offsets[0] != 0
            or offsets[-1] != len(flat)
            or np.any(np.diff(offsets) < 0)
        ):
            raise SchemaError(
                f"feature {name!r}: offsets of shape {offsets.shape} over {len(flat)} values do not describe "
                f"{n} rows; "
                "expected n + 1 ascending positions from 0 to the number of values."
            )
        return flat, np.repeat(np.arange(n), np.diff(offsets))
    if isinstance(column, np.ndarray) and column.ndim == 2:
        if len(column) != n:
            raise SchemaError(f"feature {name!r}: got {len(column)} rows, expected {n}.")
        flat = tokens(name, column.reshape(-1))
        if column.dtype.kind == "i":
            padding = np.ma.getdata(column).reshape(-1) < 0
            flat = Tokens(flat.integers, None, padding if flat.missing is None else padding | flat.missing)
        return flat, np.repeat(np.arange(n), column.shape[1])
    if isinstance(column, (str, bytes)) or not hasattr(column, "__len__"):
        raise SchemaError(
            f"feature {name!r}: got {type(column).__name__}, expected one list of values a row."
        )
    if len(column) != n:
        raise SchemaError(f"feature {name!r}: got {len(column)} rows, expected {n}.")
    rows: list[Any] = [() if row is None else row for row in column]
    kinds = set(map(type, rows))
    if wrong := {kind for kind in kinds if not issubclass(kind, (list, tuple, np.ndarray, set, frozenset))}:
        raise SchemaError(
            f"feature {name!r}: a row is {_names(wrong)}, expected a list of values; split strings such as "
            "'Action|Comedy' into lists first."
        )
    if kinds & {set, frozenset}:
        # Their order differs between processes, and with it what a full row has to drop.
        rows = [sorted(row, key=repr) if isinstance(row, (set, frozenset)) else row for row in rows]
    lengths = np.fromiter(map(len, rows), np.int64, n)
    return tokens(name, list(chain.from_iterable(rows))), np.repeat(np.arange(n), lengths)
