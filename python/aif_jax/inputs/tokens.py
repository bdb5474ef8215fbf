"""Readers of raw columns: 64-bit integers or strings, with a mask of missing values.

Missing are ``None``, NaN, the empty string and masked entries of a masked array; no integer means "missing".
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from aif_jax.errors import SchemaError
from aif_jax.inputs.columns import Ragged, is_missing, read_column
from aif_jax.shown import names_of, shown

_USUAL = {type(None), float, int, bool, str}


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
        column: ``[n]``, anything that `read_column` takes: integers, booleans, whole floats, strings; see the
            module for what counts as missing.

    Raises:
        SchemaError: the column is not flat, or mixes kinds, or holds something else.
    """
    return _flat(name, read_column(column, f"feature {name!r}", error=SchemaError))


def _flat(name: str, column: Any) -> Tokens:
    """Read what `read_column` returned."""
    if isinstance(column, Ragged):
        raise SchemaError(f"feature {name!r}: got lists, expected one value a row (MultiValued takes lists).")
    if not isinstance(column, np.ndarray):
        return _objects(name, column)
    if column.ndim != 1:
        raise SchemaError(f"feature {name!r}: got shape {column.shape}, expected one value a row, [n].")
    if isinstance(column, np.ma.MaskedArray):
        inner = _numbers(name, np.ma.getdata(column))
        return Tokens(inner.integers, None, np.ma.getmaskarray(column))
    if column.dtype.kind in "biuf":
        return _numbers(name, column)
    if column.dtype.kind not in "UOT":
        raise SchemaError(
            f"feature {name!r}: got dtype {column.dtype}, expected integers or strings; "
            "decode or convert it first."
        )
    return _objects(name, column.tolist())


def _numbers(name: str, column: np.ndarray) -> Tokens:
    if column.dtype.kind == "u":
        return Tokens(column.astype(np.uint64, copy=False), None, None)
    if column.dtype.kind != "f":
        return Tokens(column.astype(np.int64, copy=False), None, None)
    missing = np.isnan(column)
    whole = np.where(missing, 0.0, column)
    wrong = np.flatnonzero((np.abs(whole) >= 2**53) | (whole != np.trunc(whole)))
    if len(wrong):
        raise SchemaError(
            f"feature {name!r}: row {wrong[0]}: got the float {whole[wrong[0]]}, expected integers or "
            "strings; for a measured quantity, use a Numeric feature."
        )
    return Tokens(whole.astype(np.int64), None, missing if missing.any() else None)


def _objects(name: str, column: Sequence[Any]) -> Tokens:
    kinds = set(map(type, column))
    if kinds - _USUAL:
        column = [_plain(value) for value in column]
        kinds = set(map(type, column))
    special = kinds & {type(None), float}
    if str in kinds:
        if kinds - {str} - special:
            row = _first(column, lambda value: not isinstance(value, (str, float, type(None))))
            raise SchemaError(
                f"feature {name!r}: mixes strings with {names_of(kinds - {str})}, such as "
                f"{shown(column[row or 0])} in row {row}; use one kind for all values."
            )
        if special:
            row = _first(column, lambda value: isinstance(value, float) and not math.isnan(value))
            if row is not None:
                raise SchemaError(
                    f"feature {name!r}: mixes strings and floats, such as {column[row]} in row {row}; use "
                    "strings for all values."
                )
            column = [v if isinstance(v, str) else None for v in column]
        strings: list[str | None] = list(column)
        if "" in strings or special:
            missing = np.fromiter((not v for v in strings), bool, len(strings))
            return Tokens(None, [v or None for v in strings], missing)
        return Tokens(None, strings, None)
    if kinds == special:
        return _numbers(name, np.array([np.nan if v is None else v for v in column], np.float64))
    row = _first(column, lambda value: not isinstance(value, (int, float, type(None))))
    if row is not None:
        raise SchemaError(
            f"feature {name!r}: row {row} is {shown(column[row])}, of type {type(column[row]).__name__}, "
            "expected integers or strings (lists only in a MultiValued feature)."
        )
    gone = np.fromiter((v is None or v != v for v in column), bool, len(column)) if special else None
    clean = [0 if v is None or v != v else v for v in column] if special else column
    row = _first(clean, lambda v: not -math.inf < v < math.inf or v != int(v)) if special else None
    if row is not None:
        raise SchemaError(
            f"feature {name!r}: mixes integers and fractions, such as {column[row]} in row {row}; for a "
            "quantity, use a Numeric feature."
        )
    try:
        integers = np.array(clean, np.int64)
    except OverflowError:
        try:
            integers = np.array(clean, np.uint64)
        except OverflowError:
            lowest = 0 if any(v >= 2**63 for v in clean) else -(2**63)
            row = _first(clean, lambda v: not lowest <= v < 2**64)
            raise SchemaError(
                f"feature {name!r}: row {row} is {shown(clean[row or 0])}, an integer that does not fit in "
                "64 bits together with the others; use strings."
            ) from None
    return Tokens(integers, None, gone)


def _plain(value: Any) -> Any:
    """Return a value of NumPy as one of Python, ``None`` for any that is missing, others as they are."""
    if is_missing(value):
        return None
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return str.__str__(value) if isinstance(value, str) else value


def _first(values: Sequence[Any], is_so: Callable[[Any], bool]) -> int | None:
    return next((row for row, value in enumerate(values) if is_so(value)), None)


def ragged(name: str, column: Any, n: int | None) -> tuple[Tokens, np.ndarray]:
    """Read a column of lists.

    Args:
        name: the feature, for messages.
        column: `Ragged`; n lists, tuples, arrays or series (``None`` for no values) in anything that
            `read_column` takes; or an array ``[n, k]`` in which missing entries, and negative ones among
            integers, are padding.
        n: rows expected; ``None`` for any number.

    Returns:
        The flat tokens ``[V]`` and the row of each, int64 ``[V]`` ascending.

    Raises:
        SchemaError: wrong length, or rows that are not lists.
    """
    where = f"feature {name!r}"
    column = read_column(column, where, error=SchemaError)
    if n is not None and len(column) != n:
        raise SchemaError(f"{where}: got {len(column)} rows, expected {n}.")
    n = len(column)
    if isinstance(column, Ragged):
        offsets, flat = column.offsets, _flat(name, column.values)
        if offsets.ndim != 1 or offsets[0] != 0 or offsets[-1] != len(flat) or np.any(np.diff(offsets) < 0):
            raise SchemaError(
                f"{where}: offsets of shape {offsets.shape} over {len(flat)} values do not describe {n} "
                "rows; expected n + 1 ascending positions from 0 to the number of values."
            )
        return flat, np.repeat(np.arange(n), np.diff(offsets))
    if isinstance(column, np.ndarray) and column.ndim == 2:
        flat = _flat(name, column.reshape(-1))
        if column.dtype.kind == "i":
            padding = np.ma.getdata(column).reshape(-1) < 0
            flat = Tokens(flat.integers, None, padding if flat.missing is None else padding | flat.missing)
        return flat, np.repeat(np.arange(n), column.shape[1])
    rows = [
        row if type(row) in (list, tuple) else _listed(row, where, place) for place, row in enumerate(column)
    ]
    lengths = np.fromiter(map(len, rows), np.int64, n)
    return _objects(name, list(chain.from_iterable(rows))), np.repeat(np.arange(n), lengths)


def _listed(row: Any, where: str, place: int) -> Any:
    if is_missing(row):
        return ()
    if isinstance(row, (set, frozenset)):
        # Their order differs between processes, and with it what a full row has to drop.
        return sorted(row, key=repr)
    if np.isscalar(row) or (isinstance(row, np.ndarray) and row.ndim != 1):
        raise SchemaError(
            f"{where}: row {place} is {shown(row)}, of type {type(row).__name__}, expected a list of values; "
            "split strings such as 'Action|Comedy' into lists first."
        )
    values = read_column(row, f"{where}: row {place}", error=SchemaError)
    return values.tolist() if isinstance(values, np.ndarray) else values
