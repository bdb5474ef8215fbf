"""Candidates of a request as a caller gives them: ids, or a table with pair features beside them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aif_jax.errors import RequestError
from aif_jax.features.schema import Schema
from aif_jax.inputs import Ids, read_column, read_ids, table_columns

ID_COLUMNS = ("id", "item_id")
"""The column of a table that holds the item ids: the first of these names that the table has."""


class GivenCandidates(NamedTuple):
    """Candidates by position.

    Attributes:
        ids: integers or strings ``[N]``; -1 is padding.
        pair: raw pair features by name, as `read_column` returns them.
        ignored: names of the table's columns that the schema does not know.
    """

    ids: Ids
    pair: dict[str, Any]
    ignored: tuple[str, ...]


def read_candidates(
    candidates: Any, pair: Mapping[str, Any] | None, schema: Schema, *, ignore_unknown: bool = False
) -> GivenCandidates:
    """Read candidates and their pair features.

    Args:
        candidates: item ids ``[N]``, or a table of N rows: a mapping of columns, a structured array, a frame
            (pandas, polars), or anything of Arrow. Its ids are in the column ``id`` (or ``item_id``), every
            other column is the pair feature of that name.
        pair: further raw pair features by name, each ``[N]``.
        schema: the model's features.
        ignore_unknown: whether a table's columns that are not pair features of the schema are ignored;
            otherwise they are an error.

    Raises:
        RequestError: these are not ids, or a set beside pair features; the table has no ids, two columns of
            one name, or unknown ones; ``pair`` is not a mapping, or names a feature that the table has too;
            or reading the table needs pyarrow.
    """
    if pair is not None and not isinstance(pair, Mapping):
        raise RequestError(f"pair features: got a {type(pair).__name__}, expected columns by name.")
    features, ignored, ids = dict(pair or {}), [], candidates
    table = table_columns(candidates, "candidates")
    if table is not None:
        name = next((name for name in ID_COLUMNS if name in table), None)
        if name is None:
            raise RequestError(
                f"candidates: got a table with the columns {_sorted(table)}, expected one named 'id' (or "
                "'item_id') that holds the item ids; rename it."
            )
        ids = table.pop(name)
        if twice := table.keys() & features.keys():
            raise RequestError(
                f"pair features: {_sorted(twice)} are columns of the table and named by pair= too; give each "
                "once."
            )
        known = schema.names("pair")
        ignored = [column for column in table if column not in known]
        if ignored and not ignore_unknown:
            raise RequestError(
                f"candidates: columns {_sorted(ignored)} of the table are not in the schema, whose pair "
                f"features are {_sorted(known)}; leave them out, or configure unknown_columns='ignore'."
            )
        features |= {column: values for column, values in table.items() if column in known}
    read = {name: read_column(values, f"pair features: {name!r}") for name, values in features.items()}
    keys = read_ids(ids, "candidates", ordered=bool(read), padded=True)
    return GivenCandidates(keys, read, tuple(map(str, ignored)))


def _sorted(names: Iterable[Any]) -> list[str]:
    return sorted(map(str, names))
