"""Columns of any library as NumPy arrays or lists, by position.

`read_column` takes NumPy arrays (masked, strided, unaligned, of any byte order), series and indexes of
pandas, series of polars, arrays of Arrow, anything with ``__array__``, and collections of Python. Labels of
an index are never read. Nothing here imports pandas, polars or pyarrow: who gives such a column has the
library."""

import array
import dataclasses
import functools
from collections.abc import Iterator, KeysView, Mapping, Set
from typing import Any

import numpy as np

from aif_jax.errors import AifError, RequestError
from aif_jax.shown import shown


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
        return Ragged(np.asanyarray(self.values)[index], offsets)


Column = np.ndarray | list[Any] | tuple[Any, ...] | Ragged
"""A column by position. Missing are masked entries (of integers and booleans), NaN (of floats), and ``None``
in lists and arrays of objects."""


def read_column(values: Any, name: str, *, error: type[AifError] = RequestError, ordered: bool = True) -> Any:
    """Read a column of any library.

    Args:
        values: the column, ``[n]`` (or ``[n, ...]`` as an array).
        name: names it in errors.
        error: class of the errors.
        ordered: whether the order of the values counts; only otherwise a set is taken.

    Returns:
        A `Column`. A contiguous array of this machine's byte order, a list and a tuple are returned as they
        are, without a copy.

    Raises:
        AifError: it is no column: a single value, a table, an iterator, a lazy frame; or its library fails.

    >>> read_column(np.ma.MaskedArray([1.0, 2.0], mask=[False, True]), "price")
    array([ 1., nan])
    """
    kind = type(values)
    if kind is np.ndarray:
        flags, dtype = values.flags, values.dtype
        if flags.c_contiguous and flags.aligned and dtype.isnative and values.ndim and dtype.kind != "V":
            return values
    elif isinstance(values, (list, tuple)):
        return values
    try:
        return _read(values, ordered)
    except _Refused as refused:
        raise error(f"{name}: {refused}") from None
    except Exception as raised:
        raise error(
            f"{name}: got a {kind.__name__} that cannot be read ({type(raised).__name__}: "
            f"{str(raised)[:200]}); give a NumPy array or a list."
        ) from raised


def read_flat(values: Any, name: str, *, error: type[AifError] = RequestError, ordered: bool = True) -> Any:
    """Read a column of one value a row, see `read_column`.

    Returns:
        An array of one axis, a list or a tuple, ``[n]``.
    """
    column = read_column(values, name, error=error, ordered=ordered)
    if isinstance(column, np.ndarray):
        if column.ndim != 1:
            raise error(f"{name}: got an array of shape {column.shape}, expected [n]; flatten it.")
    elif isinstance(column, Ragged):
        raise error(f"{name}: got lists, expected one value a row.")
    return column


def take_rows(column: Any, rows: np.ndarray) -> Any:
    """Return the chosen rows of a column that `read_column` returned, in the order given."""
    if isinstance(column, Ragged):
        return column.take(rows)
    if isinstance(column, (list, tuple)):
        return [column[row] for row in rows.tolist()]
    return column[rows]


def is_missing(value: Any) -> bool:
    """Return whether a value of a list is missing: ``None``, NaN, or the missing value of pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return True
    return isinstance(value, (float, np.floating)) and bool(value != value)


class _Refused(Exception):
    """A fault of a column, in words."""


@functools.lru_cache(512)
def family(kind: type) -> str:
    """Return how values of a type are read. (Asked of the type, once: a series looks its labels through.)"""

    def has(*names: str) -> bool:
        return all(hasattr(kind, name) for name in names)

    if issubclass(kind, np.ndarray):
        return "array"
    if issubclass(kind, (str, bytes, bytearray, int, float, complex, np.generic, type(None))):
        return "single"
    if has("collect_schema") and not has("__len__"):
        return "lazy"
    if issubclass(kind, Mapping):
        return "mapping"
    if has("column_names", "column"):
        return "arrow table"
    if has("columns", "__getitem__"):
        return "frame"
    if issubclass(kind, Set) and not issubclass(kind, KeysView):
        return "set"
    if has("to_pylist", "null_count"):
        return "arrow"
    if has("isna", "to_numpy"):
        return "pandas"
    if has("is_null", "to_list"):
        return "polars"
    if has("to_numpy"):
        return "to_numpy"
    if has("__array__") or issubclass(kind, (array.array, memoryview)):
        return "buffer"
    if has("__arrow_c_stream__") or has("__arrow_c_array__"):
        return "foreign"
    if issubclass(kind, Iterator):
        return "iterator"
    return "collection" if has("__iter__", "__len__") else "other"


TABLES = frozenset({"mapping", "arrow table", "frame"})
"""Families that are tables by name."""


def _read(values: Any, ordered: bool) -> Any:
    if isinstance(values, Ragged):
        offsets = np.ascontiguousarray(_native(np.asarray(values.offsets)), np.int64)
        return Ragged(read_column(values.values, "values"), offsets)
    kind, given = family(type(values)), f"got a {type(values).__name__}"
    if kind == "array":
        return _native(values)
    if kind == "pandas":
        return _from_pandas(values)
    if kind == "polars":
        return _from_polars(values)
    if kind == "arrow":
        return _from_arrow(values)
    if kind == "to_numpy":
        return _native(np.asarray(values.to_numpy()))
    if kind == "buffer":
        return _native(np.asarray(values))
    if kind == "foreign":
        return _imported(values)
    if kind == "collection" or (kind == "set" and not ordered):
        return list(values)
    if kind == "set":
        raise _Refused(f"{given}, whose order is arbitrary, expected an array or list; sort it first.")
    if kind == "single":
        raise _Refused(f"got {shown(values)}, expected an array or list of values; wrap it in a list.")
    if kind == "lazy":
        raise _Refused(f"{given}, which is not computed yet; give the result of its collect().")
    if kind in TABLES:
        raise _Refused(f"{given}, which is a table; give one of its columns.")
    once = ", which can be read only once" if kind == "iterator" else ""
    raise _Refused(f"{given}{once}, expected an array or list; list(...) makes one.")


def _imported(values: Any) -> Any:
    import pyarrow

    stream = hasattr(values, "__arrow_c_stream__")
    return _from_arrow(pyarrow.chunked_array(values) if stream else pyarrow.array(values))


def _native(values: np.ndarray) -> Any:
    """Return an array as a contiguous one of this machine's byte order; see `Column` for missing entries."""
    if values.ndim == 0:
        raise _Refused(
            f"got the single value {shown(values.tolist())}, expected an array; wrap it in a list."
        )
    if values.dtype.names is not None:
        raise _Refused(
            f"got a structured array of {list(values.dtype.names)}, a table; give one of its fields."
        )
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        return with_missing(_native(np.asarray(np.ma.getdata(values))), mask)
    if values.dtype.kind == "V":  # bfloat16, to NumPy
        values = values.astype(np.float32)
    return np.require(np.asarray(values), values.dtype.newbyteorder("="), ("C", "A"))


def with_missing(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return an array in which some entries are missing, see `Column`; the array itself if none is."""
    if not missing.any():
        return values
    if values.dtype.kind == "f":
        return np.where(missing, values.dtype.type(np.nan), values)
    if values.dtype.kind in "biu":
        return np.ma.MaskedArray(values, missing)
    absent = values.astype(object)
    absent[missing] = None
    return absent


def _from_pandas(values: Any) -> Any:
    dtype, inner = values.dtype, getattr(values, "array", values)
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        return _native(values.to_numpy())
    missing = np.asarray(inner.isna(), bool)
    if hasattr(inner, "categories"):
        categories = np.asarray(read_column(inner.categories, "categories"))
        codes = np.asarray(inner.codes)
        return with_missing(categories[np.where(missing, 0, codes)] if len(categories) else codes, missing)
    native = getattr(dtype, "numpy_dtype", None)
    if native is not None and native.kind in "biuf":
        if not missing.any():
            return _native(inner.to_numpy(dtype=native))
        absent = np.nan if native.kind == "f" else native.type(0)
        return with_missing(_native(inner.to_numpy(dtype=native, na_value=absent)), missing)
    return with_missing(_native(np.asarray(values)), missing)


def _from_polars(values: Any) -> Any:
    dtype = values.dtype
    if dtype.is_float():
        return _native(values.to_numpy())  # null becomes NaN
    if dtype.is_integer() or str(dtype) == "Boolean":
        if not values.null_count():
            return _native(values.to_numpy())
        # Not as floats, which cannot hold every integer.
        plain = values.fill_null(False if str(dtype) == "Boolean" else 0)
        return with_missing(_native(plain.to_numpy()), _native(values.is_null().to_numpy()))
    return values.to_list()


def _from_arrow(column: Any) -> Any:
    import pyarrow
    import pyarrow.compute
    from pyarrow import types

    compute: Any = pyarrow.compute  # its functions are made when it is imported
    if isinstance(column, pyarrow.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pyarrow.ChunkedArray):  # too large for one array
            return column.to_pylist()
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    dtype = column.type
    if types.is_dictionary(dtype):
        return _from_arrow(column.dictionary_decode())
    if types.is_run_end_encoded(dtype):
        return _from_arrow(compute.run_end_decode(column))
    if types.is_boolean(dtype) or types.is_integer(dtype):
        if not column.null_count:
            return _native(column.to_numpy(zero_copy_only=False))
        plain = column.fill_null(False if types.is_boolean(dtype) else 0)
        missing = column.is_null().to_numpy(zero_copy_only=False)
        return with_missing(_native(plain.to_numpy(zero_copy_only=False)), missing)
    if types.is_floating(dtype):
        return _native(column.to_numpy(zero_copy_only=False))  # null becomes NaN
    if types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        # `flatten` leaves out what null rows hold.
        lengths = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Ragged(_from_arrow(column.flatten()), offsets)
    return column.to_pylist()
