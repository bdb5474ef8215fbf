"""Candidates as ids or as a table, whatever holds them: NumPy, Arrow, pandas, polars, plain mappings.

Nothing here imports pandas or polars: a frame is what has ``columns`` and gives them by name, a series is
what has ``to_numpy``. pyarrow is needed only for tables that say nothing but ``__arrow_c_stream__``.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from aif_jax.errors import RequestError
from aif_jax.features import Ragged, Schema, item_keys

UnknownColumns = Literal["error", "ignore"]

ID_COLUMNS = ("id", "item_id")
"""The column of a table that holds the item ids: the first of these names that the table has."""


def split_table(
    candidates: Any, pair: Mapping[str, Any] | None, schema: Schema, unknown: UnknownColumns
) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """Tell ids from pair features.

    Args:
        candidates: item ids ``[N]``, or a table of N rows: a mapping of columns, a structured array, a frame
            (pandas, polars), or anything of Arrow. Its ids are in the column ``id`` (or ``item_id``), every
            other column is the pair feature of that name.
        pair: further raw pair features by name, each ``[N]``.
        schema: the model's features.
        unknown: what becomes of a table's columns that are no pair features of the schema.

    Returns:
        The ids, pair features by name, and the names of the columns that were ignored; columns of Arrow,
        pandas and polars as NumPy arrays or lists.

    Raises:
        RequestError: the table has no ids, or two columns of one name; it has unknown columns, under
            ``error``; ``pair`` is no mapping, or names a feature that the table has too; or reading the table
            needs pyarrow.
    """
    if pair is not None and not isinstance(pair, Mapping):
        raise RequestError(f"pair features: got a {type(pair).__name__}, expected columns by name.")
    given = {name: plain_column(column) for name, column in (pair or {}).items()}
    table = _columns(candidates)
    if table is None:
        return plain_column(candidates), given, ()
    name = next((name for name in ID_COLUMNS if name in table), None)
    if name is None:
        raise RequestError(
            f"candidates: got a table with the columns {_named(table)}, expected one named 'id' (or "
            "'item_id') that holds the item ids; rename it."
        )
    ids = table.pop(name)
    if twice := table.keys() & given.keys():
        raise RequestError(
            f"pair features: {_named(twice)} are columns of the table and named by pair= too; give each once."
        )
    known = {feature.name for feature in schema.pair}
    ignored = [column for column in table if column not in known]
    if ignored and unknown == "error":
        raise RequestError(
            f"candidates: columns {_named(ignored)} of the table are not in the schema, whose pair features "
            f"are {_named(known)}; leave them out, or configure unknown_columns='ignore'."
        )
    for column in ignored:
        del table[column]
    features = {column: plain_column(values) for column, values in table.items()}
    return plain_column(ids), {**features, **given}, tuple(map(str, ignored))


def read_ids(ids: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read item ids.

    Args:
        ids: ``[N]``: integers or strings, as anything with a length: array, list, set, series, Arrow array.

    Returns:
        The ids as they were given ``[N]`` (integers of a list as uint64), their keys uint64 ``[N]``, and
        whether they are strings.

    Raises:
        RequestError: these are no ids, or one is missing; see `item_keys`.
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
        # The missing value of pandas is like no other: not even equal to itself, and neither true nor false.
        if array.dtype == object and hasattr(values, "isna"):
            array = np.where(np.asarray(values.isna()), None, array)
        return array
    return values


def _columns(candidates: Any) -> dict[str, Any] | None:
    """Return the columns of a table by name; ``None`` if it is none."""
    if isinstance(candidates, Mapping):
        return dict(candidates)
    if isinstance(candidates, np.ndarray):
        names = candidates.dtype.names
        return None if names is None else {name: candidates[name] for name in names}
    if isinstance(candidates, (list, tuple, str, bytes)):
        return None
    if hasattr(candidates, "column_names") and hasattr(candidates, "column"):  # of Arrow
        names = list(candidates.column_names)
        return {name: candidates.column(i) for i, name in enumerate(_once(names))}
    if hasattr(candidates, "columns") and hasattr(candidates, "__getitem__"):  # of pandas, polars
        return {name: candidates[name] for name in _once(list(candidates.columns))}
    if hasattr(candidates, "to_numpy"):  # a series, which may speak Arrow too
        return None
    if hasattr(candidates, "__arrow_c_stream__") or hasattr(candidates, "__arrow_c_array__"):
        return _columns(_imported(candidates))
    return None


def _imported(candidates: Any) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise RequestError(
            f"candidates: got a {type(candidates).__name__}, an Arrow table of another library, which takes "
            "pyarrow to read; run: pip install pyarrow, or give a mapping of NumPy columns."
        ) from error
    try:
        if hasattr(candidates, "__arrow_c_stream__"):
            return pyarrow.table(candidates)
        return pyarrow.record_batch(candidates)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise RequestError(
            f"candidates: got a {type(candidates).__name__} that Arrow cannot read as a table ({error}); "
            "give a table or record batch."
        ) from error


def _arrow_column(column: Any) -> Any:
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        return _arrow_column(column.cast(kind.value_type))
    if types.is_integer(kind) and column.null_count:  # not as floats, which cannot hold every integer
        return np.ma.MaskedArray(np.asarray(column.fill_null(0)), np.asarray(column.is_null()))
    if types.is_primitive(kind) and not (types.is_boolean(kind) and column.null_count):
        return np.asarray(column)
    return column.to_pylist()  # strings, lists, and what has a missing value that NumPy lacks


def _once(names: list[Any]) -> list[Any]:
    if twice := {name for name in names if names.count(name) > 1}:
        raise RequestError(f"candidates: columns {_named(twice)} stand in the table twice; name each once.")
    return names


def _named(names: Any) -> list[str]:
    return sorted(map(str, names))
