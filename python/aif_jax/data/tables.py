"""Tables of any library, of which only the wanted columns are read, and the dense numbers of ids.

Taken are: pandas, polars (eager and lazy), tables, batches and data sets of Arrow, paths of Parquet files,
folders and globs, mappings of arrays, and whatever else `aif_jax.inputs` reads.
"""

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.errors import DataError
from aif_jax.extras import needs
from aif_jax.inputs import read_column, table_columns

_KINDS = (
    "a DataFrame of pandas or polars, an Arrow table or data set, the path of a Parquet file (or a folder, a "
    "glob, a list of them), or a mapping of arrays"
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of one length.

    Attributes:
        name: names the table in errors.
        columns: as the source gave them, by name.
        rows: number of rows.
    """

    name: str
    columns: Mapping[str, Any]
    rows: int

    def arrow(self, column: str) -> Any:
        """Return a column as an Arrow array or chunked array."""
        return arrow_column(self.columns[column], self.named(column))

    def plain(self, column: str) -> Any:
        """Return a column as NumPy or a list, as the schema takes it."""
        return read_column(self.columns[column], self.named(column), error=DataError)

    def named(self, column: str) -> str:
        """Return what errors call a column."""
        return f"{self.name}: column {column!r}"


def open_table(source: Any, name: str, wanted: Sequence[str] | None = None) -> Table:
    """Open a table and read the wanted columns.

    Args:
        source: see the module.
        name: names the argument in errors.
        wanted: columns; all of them if ``None``.

    Raises:
        DataError: it is no table, or lacks a column; the message lists those there are.
    """
    needs("pyarrow", what="reading tables")
    if isinstance(source, (str, Path)) or (
        isinstance(source, (list, tuple)) and source and all(isinstance(s, (str, Path)) for s in source)
    ):
        source = _files(source, name)
    table: Any = source
    if hasattr(table, "collect_schema") and hasattr(table, "collect"):  # lazy polars
        chosen = _chosen(list(table.collect_schema().names()), name, wanted)
        table = table.select(chosen).collect()
    elif hasattr(table, "to_table") and hasattr(getattr(table, "schema", None), "names"):  # Arrow data set
        table = _read(table, name, _chosen(list(table.schema.names), name, wanted))
    columns = table_columns(table, name, error=DataError)
    if columns is None:
        raise DataError(f"{name}: got a {type(table).__name__}, expected {_KINDS}.")
    columns = {str(column): values for column, values in columns.items()}
    columns = {column: columns[column] for column in _chosen(list(columns), name, wanted)}
    lengths = {column: _length(values, f"{name}: column {column!r}") for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{name}: columns have different lengths: {lengths}.")
    return Table(name, columns, next(iter(lengths.values()), 0))


def _length(values: Any, what: str) -> int:
    try:
        return len(values)
    except TypeError:  # an iterator or a single value, refused in words
        return len(read_column(values, what, error=DataError))


def compute() -> Any:
    """Return the functions of Arrow, which a type checker cannot see."""
    import pyarrow.compute

    return pyarrow.compute


def arrow_column(values: Any, what: str) -> Any:
    """Return a column of any library as an Arrow array or chunked array of plain values; NaN is null.

    Raises:
        DataError: Arrow cannot hold it, mostly because it mixes kinds.
    """
    import pyarrow as pa

    try:
        return _decoded(_to_arrow(values))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{what}: {str(error)[:150]}; expected one kind of values in all rows; convert it first."
        ) from error


def _decoded(column: Any) -> Any:
    """Return a column without dictionaries; Arrow does not decode those of string views itself."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column
    kind = column.type.value_type
    kind = pa.large_string() if pa.types.is_string_view(kind) else kind
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return pa.chunked_array([chunk.dictionary.cast(kind).take(chunk.indices) for chunk in chunks], kind)


def _to_arrow(values: Any) -> Any:
    import pyarrow as pa

    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if hasattr(values, "__arrow_c_stream__"):
        return pa.chunked_array(values)
    if hasattr(values, "__arrow_c_array__"):
        return pa.array(values)
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(np.ma.getdata(values), mask=np.ma.getmaskarray(values))
    if hasattr(values, "to_numpy") and not isinstance(values, np.ndarray):
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "M" and np.datetime_data(values.dtype)[0] not in ("s", "ms", "us", "ns"):
            values = values.astype("datetime64[s]")
        return pa.array(values, from_pandas=True)
    return pa.array(list(values), from_pandas=True)


@dataclasses.dataclass(frozen=True)
class SortedIds:
    """Ids in ascending order, each once; an id's place is its row number.

    Attributes:
        values: Arrow array of int64, uint64 or strings.
    """

    values: Any

    def __len__(self) -> int:
        return len(self.values)

    def plain(self) -> np.ndarray:
        """Return the ids as integers, or as strings (dtype object)."""
        if self.strings:
            return np.array(self.values.to_pylist(), dtype=object)
        return np.asarray(self.values)

    @property
    def strings(self) -> bool:
        """True if the ids are strings."""
        import pyarrow as pa

        return pa.types.is_large_string(self.values.type)

    def rows(self, coded: "CodedIds") -> np.ndarray:
        """Return the row number of each value, int32 ``[n]``; -1 where it is missing or not among these."""
        pc = compute()

        values, known = _of_one_type(coded.values, self.values)
        place = np.asarray(pc.fill_null(pc.index_in(values, value_set=known), -1)).astype(np.int32)
        return np.append(place, np.int32(-1))[coded.codes]

    def lacks(self, others: "SortedIds") -> "SortedIds":
        """Return those of other ids of the same kind that are not among these."""
        pc = compute()

        one, two = _of_one_type(others.values, self.values)
        return SortedIds(one.filter(pc.invert(pc.is_in(one, value_set=two))))

    def joined(self, others: "SortedIds") -> "SortedIds":
        """Return these ids and others of the same kind."""
        return SortedIds.of(
            CodedIds(np.zeros(0, np.int32), self.values), CodedIds(np.zeros(0, np.int32), others.values)
        )

    @classmethod
    def of(cls, *columns: "CodedIds") -> "SortedIds":
        """Return the ids that occur in columns of one kind."""
        import pyarrow as pa

        pc = compute()

        values: Any = pa.array([], pa.int64())
        for column in columns:
            if len(column.values):
                one, two = (
                    _of_one_type(values, column.values) if len(values) else (column.values[:0], column.values)
                )
                values = pa.concat_arrays([one, two])
        values = pc.unique(values)
        return cls(values.take(pc.array_sort_indices(values)))


@dataclasses.dataclass(frozen=True)
class CodedIds:
    """A column of ids, coded by the values it holds.

    Attributes:
        codes: int32 ``[n]``, place in `values`; -1 where missing.
        values: Arrow array of the different values.
    """

    codes: np.ndarray
    values: Any

    @property
    def strings(self) -> bool:
        """True if the ids are strings."""
        import pyarrow as pa

        return pa.types.is_large_string(self.values.type)


def code_ids(column: Any, what: str) -> CodedIds:
    """Code a column of ids: integers, whole floats, or strings, of which the empty one is missing.

    Args:
        column: an Arrow column.
        what: names it in errors.

    Raises:
        DataError: other values.
    """
    import pyarrow as pa

    pc = compute()

    kind = column.type
    if pa.types.is_null(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_floating(kind):
        try:
            column = pc.if_else(pc.is_finite(column), column, None).cast(pa.int64())
        except pa.ArrowInvalid:
            example = column.filter(pc.not_equal(pc.trunc(column), column))[0]
            raise DataError(
                f"{what}: holds the fraction {example}, expected ids: integers or strings; convert it first."
            ) from None
    elif pa.types.is_unsigned_integer(kind):
        column = column.cast(pa.uint64())
    elif pa.types.is_integer(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        column = column.cast(pa.large_string())
    else:
        raise DataError(f"{what}: got {kind}, expected ids: integers or strings; convert it first.")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):  # combine_chunks of an empty column
        encoded = pa.array([], column.type).dictionary_encode()
    codes, values = np.asarray(pc.fill_null(encoded.indices, -1)), encoded.dictionary
    if pa.types.is_large_string(values.type):
        empty = pc.index_in(pa.array([""], values.type), value_set=values)[0].as_py()
        if empty is not None:
            codes = np.where(codes == empty, np.int32(-1), codes)
            kept = np.arange(len(values)) != empty
            codes = np.append(np.cumsum(kept) - 1, -1).astype(np.int32)[codes]
            values = values.filter(pa.array(kept))
    return CodedIds(codes, values)


def _of_one_type(one: Any, two: Any) -> tuple[Any, Any]:
    """Return two arrays of integers, or of strings, as one type: uint64 if both fit, otherwise int64."""
    import pyarrow as pa

    if one.type == two.type:
        return one, two
    if not len(one) or not len(two):
        return (one.cast(two.type), two) if not len(one) else (one, two.cast(one.type))
    for kind in (pa.uint64(), pa.int64()):
        try:
            return one.cast(kind), two.cast(kind)
        except pa.ArrowInvalid:
            continue
    raise DataError(f"ids: {one.type} and {two.type} fit no common type; use strings in all tables.")


def _files(source: Any, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.dataset

    paths: list[str] = []
    for given in [source] if isinstance(source, (str, Path)) else source:
        text = str(given)
        found = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else [text]
        if not found or not all(os.path.exists(path) for path in found):
            raise DataError(
                f"{name}: got the path {text[:150]!r}, which matches no file; give the path of a "
                "Parquet file."
            )
        paths += found
    kind = "csv" if all(path.endswith(".csv") for path in paths) else "parquet"
    try:
        return pyarrow.dataset.dataset(paths[0] if len(paths) == 1 else paths, format=kind)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: {paths[0]} cannot be read as {kind}: {str(error)[:150]}.") from error


def _read(dataset: Any, name: str, columns: list[str]) -> Any:
    import pyarrow as pa

    try:
        return dataset.to_table(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read: {str(error)[:150]}.") from error


def _chosen(names: list[str], name: str, wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        return names
    wanted = list(dict.fromkeys(wanted))
    if absent := [column for column in wanted if column not in names]:
        raise DataError(f"{name}: has no column {absent[0]!r}; its columns are {str(names)[:200]}.")
    return wanted
