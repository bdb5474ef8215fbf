"""Converters from tables and columns of any library (NumPy, Arrow, pandas, polars, plain) to NumPy.

Nothing here imports pandas or polars: a frame has ``columns`` and gives them by name, a series has
``to_numpy``. pyarrow is needed only for tables that offer nothing but ``__arrow_c_stream__``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.errors import RequestError
from aif_jax.features.ids import item_keys
from aif_jax.features.tokens import Ragged


def read_ids(ids: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read item ids.

    Args:
        ids: ``[N]``: integers or strings, as anything with a length: array, list, set, series, Arrow array.

    Returns:
        The ids as they were given ``[N]`` (integers of a list as uint64), their keys uint64 ``[N]``, and
        whether they are strings.

    Raises:
        RequestError: these are not ids, or one is missing; see `item_keys`.
    """
    ids = plain_column(ids)
    if not hasattr(ids, "__len__"):
        raise RequestError(f"ids: got a {type(ids).__name__}, expected an array or list of item ids.")
    if isinstance(ids, np.ma.MaskedArray):
        if gone := np.flatnonzero(np.ma.getmaskarray(ids)).tolist():
            raise RequestError(
                f"ids: {len(gone)} of {ids.size} are missing, the first in row {gone[0]}; leave these rows "
                "out."
            )
        ids = np.ma.getdata(ids)
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise RequestError(f"ids: got an array of shape {ids.shape}, expected [N]; flatten it.")
    elif not isinstance(ids, (list, tuple, str, bytes)):
        ids = list(ids)
    keys = np.require(item_keys(ids), requirements=("C", "A"))
    strings = len(ids) > 0 and isinstance(ids[0], str)
    if not isinstance(ids, np.ndarray):
        ids = np.array(ids, dtype=object) if strings else keys
    return ids, keys, strings


def plain_column(values: Any) -> Any:
    """Return an Arrow array or a series as a NumPy array or list; anything else as it is."""
    if isinstance(values, (np.ndarray, list, tuple, Ragged)):
        return values
    if hasattr(values, "to_pylist") and hasattr(values, "null_count"):
        return _arrow_column(values)
    if hasattr(values, "to_numpy"):
        array = values.to_numpy()
        # The missing value of pandas is neither equal to itself nor true nor false.
        if array.dtype == object and hasattr(values, "isna"):
            array = np.where(np.asarray(values.isna()), None, array)
        return array
    return values


def table_columns(table: Any, name: str) -> dict[str, Any] | None:
    """Return the columns of a table by name, as they are; ``None`` for anything that is not a table.

    Args:
        table: a mapping of columns, a structured array, a frame (pandas, polars), or a table of Arrow.
        name: names the argument in errors.

    Raises:
        RequestError: two columns have one name, or reading the table needs pyarrow.
    """
    if isinstance(table, Mapping):
        return dict(table)
    if isinstance(table, np.ndarray):
        names = table.dtype.names
        return None if names is None else {column: table[column] for column in names}
    if isinstance(table, (list, tuple, str, bytes)):
        return None
    if hasattr(table, "column_names") and hasattr(table, "column"):  # Arrow
        names = list(table.column_names)
        return {column: table.column(i) for i, column in enumerate(_unique(names, name))}
    if hasattr(table, "columns") and hasattr(table, "__getitem__"):  # pandas, polars
        return {column: table[column] for column in _unique(list(table.columns), name)}
    if hasattr(table, "to_numpy"):  # a series, which may offer Arrow's interface too
        return None
    if hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__"):
        return table_columns(_imported(table, name), name)
    return None


def _imported(table: Any, name: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise RequestError(
            f"{name}: got a {type(table).__name__}, an Arrow table of another library, which takes "
            "pyarrow to read; run: pip install pyarrow, or give a mapping of NumPy columns."
        ) from error
    try:
        if hasattr(table, "__arrow_c_stream__"):
            return pyarrow.table(table)
        return pyarrow.record_batch(table)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise RequestError(
            f"{name}: got a {type(table).__name__} that Arrow cannot read as a table ({error}); "
            "give a table or record batch."
        ) from error


def _arrow_column(column: Any) -> Any:
    from pyarrow import types

    dtype = column.type
    if types.is_dictionary(dtype):
        return _arrow_column(column.cast(dtype.value_type))
    if types.is_integer(dtype) and column.null_count:  # not as floats, which cannot hold every integer
        return np.ma.MaskedArray(np.asarray(column.fill_null(0)), np.asarray(column.is_null()))
    if types.is_primitive(dtype) and not (types.is_boolean(dtype) and column.null_count):
        return np.asarray(column)
    return column.to_pylist()  # strings, lists, and missing values that NumPy cannot hold


def _unique(columns: list[Any], name: str) -> list[Any]:
    if twice := sorted({str(column) for column in columns if columns.count(column) > 1}):
        raise RequestError(f"{name}: columns {twice} stand in the table twice; name each once.")
    return columns
