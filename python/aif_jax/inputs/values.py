"""Flags, numbers and content embeddings as any caller gives them."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aif_jax.errors import AifError, ItemIndexError, RequestError, SchemaError
from aif_jax.inputs.columns import Ragged, is_missing, read_column, read_flat
from aif_jax.inputs.tables import table_columns
from aif_jax.shown import shown


def read_number(
    value: Any,
    name: str,
    fits: Callable[[float], bool],
    expected: str,
    *,
    error: type[AifError] = RequestError,
) -> float:
    """Read a single number of Python or NumPy.

    Args:
        value: integer or float; no string, no flag.
        name: names it in errors.
        fits: whether a number may be given; false for NaN.
        expected: the same in words.
        error: class of the errors.

    Raises:
        AifError: it is no such number.
    """
    try:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
            number = float(value)
            if fits(number):
                return number
    except OverflowError:
        pass
    raise error(f"{name}: got {shown(value)}, expected {expected}.")


def read_flag(value: Any, name: str, *, error: type[AifError] = RequestError) -> bool:
    """Read a single flag: a boolean, or the integer 0 or 1.

    Raises:
        AifError: it is something else.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not _is_flag(value):
        raise error(f"{name}: got {shown(value)}, expected True or False.")
    return bool(value)


def read_flags(
    values: Any,
    n: int,
    name: str,
    *,
    missing: bool | None = None,
    error: type[AifError] = ItemIndexError,
) -> np.ndarray:
    """Read flags: booleans, or the integers 0 and 1; never the truth of anything else.

    Args:
        values: ``[n]``.
        n: flags expected.
        name: names them in errors.
        missing: the flag of rows in which none is given; ``None`` if that is an error.
        error: class of the errors.

    Returns:
        bool ``[n]``.

    Raises:
        AifError: other values, the first of which is named with its row, or another number of them.
    """
    column = read_flat(values, name, error=error)
    if type(column) is np.ndarray and column.dtype == np.bool_ and len(column) == n:
        return column
    rows = column.tolist() if isinstance(column, np.ndarray) else column
    if len(rows) != n:
        raise error(f"{name}: got {len(rows)} flags, expected bool [{n}], one a row.")
    flags = np.empty(n, bool)
    for row, value in enumerate(rows):
        if _is_flag(value):
            flags[row] = value
        elif is_missing(value) and missing is not None:
            flags[row] = missing
        else:
            raise error(
                f"{name}: row {row} is {shown(value)}, expected true or false (or the integer 1 or 0)."
            )
    return flags


def _is_flag(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return True
    return isinstance(value, (int, np.integer)) and value in (0, 1)


def read_numbers(
    values: Any, name: str, n: int | None = None, *, error: type[AifError] = SchemaError
) -> np.ndarray:
    """Read a column of numbers.

    Args:
        values: integers, floats or booleans, ``[n]``.
        name: names them in errors.
        n: rows expected; ``None`` for any number.
        error: class of the errors.

    Returns:
        float64 ``[n]``, contiguous, NaN where missing.

    Raises:
        AifError: a value is no number, or has no place in a float64; it is named with its row.

    >>> read_numbers([1, None, 2.5], "price")
    array([1. , nan, 2.5])
    """
    column = numbers = read_flat(values, name, error=error)
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
        numbers = column.astype(np.float64, copy=False)
        if isinstance(column, np.ma.MaskedArray):
            numbers = np.ma.filled(numbers, np.nan)
    elif isinstance(column, np.ndarray) and column.dtype.kind != "O":
        raise error(f"{name}: got dtype {column.dtype}, expected numbers; convert them first.")
    else:
        rows = column.tolist() if isinstance(column, np.ndarray) else column
        kinds = set(map(type, rows))
        if kinds <= {int, float, type(None)}:
            try:
                numbers = np.array(rows, np.float64)
            except OverflowError:
                numbers = _one_by_one(rows, name, error)
        else:
            numbers = _one_by_one(rows, name, error)
    if n is not None and len(numbers) != n:
        raise error(f"{name}: got shape {numbers.shape}, expected ({n},): one number a row.")
    return numbers


def _one_by_one(rows: Any, name: str, error: type[AifError]) -> np.ndarray:
    numbers = np.empty(len(rows), np.float64)
    for row, value in enumerate(rows):
        try:
            if isinstance(value, np.ndarray) and value.ndim == 0:
                value = value.item()
            if isinstance(value, (str, bytes, complex)) or hasattr(value, "__len__"):
                raise TypeError
            numbers[row] = np.nan if is_missing(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            raise error(
                f"{name}: row {row} is {shown(value)}, of type {type(value).__name__}, expected numbers "
                "(those of a float64); convert them first."
            ) from None
    return numbers


def read_matrix(
    columns: Mapping[Any, Any], name: str, *, error: type[AifError] = ItemIndexError
) -> np.ndarray:
    """Read columns of numbers side by side, float64 ``[n, columns]``, NaN where missing.

    Raises:
        AifError: a value is no number, or the columns have different lengths.
    """
    numbers = [read_numbers(column, f"{name}: {key!r}", error=error) for key, column in columns.items()]
    if len({len(column) for column in numbers}) != 1:
        raise error(
            f"{name}: got {len(numbers)} columns of {[len(column) for column in numbers]} rows, expected "
            "columns of one length."
        )
    return np.stack(numbers, axis=1)


def read_content(
    values: Any, n: int, width: int | None, name: str = "content", *, error: type[AifError] = ItemIndexError
) -> np.ndarray | None:
    """Read content embeddings.

    Args:
        values: a matrix ``[n, width]``, a frame of its columns, or a column of n rows, each of which is a
            list or array of ``width`` numbers, or missing; ``None`` if no item has any.
        n: rows expected.
        width: of a row; ``None`` to take that of the rows.
        name: names it in errors.
        error: class of the errors.

    Returns:
        float32 ``[n, width]``, NaN in rows without content. ``None`` if no row has any and the width is not
        known.

    Raises:
        AifError: another shape, something that is no number, or a row in which some number is not finite; row
            and column are named.
    """
    if values is None:
        return None if width is None else np.full((n, width), np.nan, np.float32)
    matrix = _matrix(values, n, width, name, error)
    if matrix is None:
        return None
    if matrix.shape != (n, matrix.shape[1] if width is None else width):
        raise error(
            f"{name}: got shape {matrix.shape}, expected ({n}, {'width' if width is None else width}): one "
            "embedding of the model's content_width for each id."
        )
    if not np.isfinite(matrix).all():
        wrong = ~np.isfinite(matrix)
        wrong[np.isnan(matrix).all(axis=1)] = False
        if wrong.any():
            row, place = np.argwhere(wrong)[0].tolist()
            raise error(
                f"{name}: row {row} has {matrix[row, place]} in column {place}, expected finite numbers "
                "(float32); a row of NaN or zeros is an item without content."
            )
    return matrix


def _matrix(values: Any, n: int, width: int | None, name: str, error: type[AifError]) -> np.ndarray | None:
    columns = None if isinstance(values, np.ndarray) else table_columns(values, name, error=error)
    if columns is not None:
        return _float32(read_matrix(columns, name, error=error))
    column = read_column(values, name, error=error)
    if isinstance(column, np.ndarray) and column.dtype != object:
        if column.dtype.kind not in "iuf":
            raise error(f"{name}: got dtype {column.dtype}, expected floats.")
        if column.ndim != 2:
            raise error(
                f"{name}: got shape {column.shape}, expected ({n}, {'width' if width is None else width})."
            )
        masked = isinstance(column, np.ma.MaskedArray)
        return _float32(np.ma.filled(column.astype(np.float64), np.nan) if masked else column)
    if isinstance(column, Ragged):
        offsets = column.offsets
        if np.ma.isMaskedArray(column.values) or not isinstance(column.values, np.ndarray):
            column = Ragged(read_numbers(column.values, name, error=error), offsets)
        lengths = np.diff(offsets)
        if len(lengths) and lengths.min() == lengths.max() > 0 and column.values.dtype.kind in "iuf":
            return _float32(column.values.reshape(len(lengths), -1))
        column = [column.values[start:end] for start, end in itertools.pairwise(offsets.tolist())]
    return _of_rows(column, width, name, error)


def _of_rows(rows: Any, width: int | None, name: str, error: type[AifError]) -> np.ndarray | None:
    """Return rows as a matrix; those that are missing or empty are NaN."""
    read: list[np.ndarray | None] = []
    for row, value in enumerate(rows):
        if is_missing(value) or (not np.isscalar(value) and hasattr(value, "__len__") and not len(value)):
            read.append(None)
            continue
        numbers = read_numbers(value, f"{name}: row {row}", error=error)
        width = len(numbers) if width is None else width
        if len(numbers) != width:
            raise error(f"{name}: row {row} has {len(numbers)} numbers, expected {width} in each.")
        read.append(numbers)
    if width is None:
        return None
    matrix = np.full((len(read), width), np.nan)
    for row, numbers in enumerate(read):
        if numbers is not None:
            matrix[row] = numbers
    return _float32(matrix)


def _float32(matrix: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite then, and refused
        return np.ascontiguousarray(matrix, np.float32)
