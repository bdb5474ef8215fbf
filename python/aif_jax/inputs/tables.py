"""Tables of any library as columns by name."""

from typing import Any

from aif_jax.errors import AifError, RequestError
from aif_jax.inputs.columns import family, read_column
from aif_jax.shown import shown


def read_table(table: Any, name: str, *, error: type[AifError] = RequestError) -> dict[str, Any]:
    """Read a table of any library.

    Args:
        table: see `table_columns`.
        name: names it in errors.
        error: class of the errors.

    Returns:
        Its columns by name, each as `read_column` returns it.

    Raises:
        AifError: it is not a table, a column's name is not a string, or a column cannot be read.

    >>> read_table({"price": [2.5, None]}, "items")
    {'price': [2.5, None]}
    """
    columns = table_columns(table, name, error=error)
    if columns is None:
        raise error(f"{name}: got a {type(table).__name__}, expected columns by name.")
    for column in columns:
        if not isinstance(column, str):
            raise error(f"{name}: got the column name {shown(column)}, expected a string.")
    return {
        column: read_column(values, f"{name}: {column!r}", error=error) for column, values in columns.items()
    }


def table_columns(table: Any, name: str, *, error: type[AifError] = RequestError) -> dict[Any, Any] | None:
    """Return the columns of a table by name, as they are; ``None`` for anything that is not a table.

    Args:
        table: a mapping of columns, a structured array, a frame (pandas, polars), or a table of Arrow.
        name: names the argument in errors.
        error: class of the errors.

    Raises:
        AifError: two columns have one name, the table is not computed yet, or reading it needs pyarrow.
    """
    kind = family(type(table))
    if kind == "array":
        names = table.dtype.names
        return None if names is None else {column: table[column] for column in names}
    if kind == "mapping":
        return dict(table)
    if kind == "lazy":
        raise error(
            f"{name}: got a {type(table).__name__}, which is not computed yet; give the result of its "
            "collect()."
        )
    if kind == "arrow table":
        names = _unique(list(table.column_names), name, error)
        return {column: table.column(i) for i, column in enumerate(names)}
    if kind == "frame":  # pandas, polars
        return {column: table[column] for column in _unique(list(table.columns), name, error)}
    if kind == "foreign":
        return table_columns(_imported(table, name, error), name, error=error)
    return None


def _imported(table: Any, name: str, error: type[AifError]) -> Any:
    try:
        import pyarrow
    except ImportError as absent:
        raise error(
            f"{name}: got a {type(table).__name__}, an Arrow table of another library, which takes "
            "pyarrow to read; run: pip install pyarrow, or give a mapping of NumPy columns."
        ) from absent
    try:
        if hasattr(table, "__arrow_c_stream__"):
            return pyarrow.table(table)
        return pyarrow.record_batch(table)
    except (pyarrow.ArrowException, TypeError, ValueError) as raised:
        raise error(
            f"{name}: got a {type(table).__name__} that Arrow cannot read as a table ({raised}); "
            "give a table or record batch."
        ) from raised


def _unique(columns: list[Any], name: str, error: type[AifError]) -> list[Any]:
    if twice := sorted({str(column) for column in columns if columns.count(column) > 1}):
        raise error(f"{name}: columns {twice} stand in the table twice; name each once.")
    return columns
