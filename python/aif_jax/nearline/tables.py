"""The pair of tables of one bundle version."""

from typing import NamedTuple

from aif_jax import processes
from aif_jax.bundle import Bundle
from aif_jax.checks import typed
from aif_jax.errors import ConfigError, VersionMismatchError
from aif_jax.nearline.behaviour_table import BehaviourTable
from aif_jax.nearline.item_index import ItemIndex
from aif_jax.shown import shown
from aif_jax.types import Catalogue, ItemRecords


class Tables(NamedTuple):
    """The two tables that an engine reads beside its bundle.

    Attributes:
        items: rows of the items that can be ranked.
        behaviours: rows of the items in users' histories.
    """

    items: ItemIndex
    behaviours: BehaviourTable


@typed
def build_tables(bundle: Bundle, records: ItemRecords | Catalogue) -> Tables:
    """Compute item index and behaviour table of the same items.

    Args:
        bundle: the model.
        records: the items, or a data set that holds them. `ItemRecords.rankable` is for the index; every item
            gets a behaviour row.

    Raises:
        ItemIndexError: an id is repeated in the records, two string ids have the same hash, or content or
            ``rankable`` does not fit the ids.
        SchemaError: a column does not fit the schema.
        RequestError: ids are neither integers nor strings.

    >>> records = ItemRecords(ids=[7, 8, 9], columns={"price": [4.0, 5.0, 6.0]})
    >>> tables = build_tables(bundle, records)
    >>> len(tables.items), len(tables.behaviours)
    (3, 3)
    """
    if not isinstance(records, ItemRecords):
        records = records.item_records(bundle.spec.content_width)
    catalogue = (records.ids, records.columns, records.content)
    return Tables(
        ItemIndex.build(bundle, *catalogue, rankable=records.rankable),
        BehaviourTable.build(bundle, *catalogue),
    )


def check_tables(bundle: Bundle, tables: Tables) -> None:
    """Check that tables were computed by a bundle, in this process.

    Raises:
        ConfigError: they are no bundle and tables, or in another order.
        ItemIndexError: somebody writes to their files, see `RowTable.check_file`.
        VersionMismatchError: another bundle version computed them.
        ProcessError: they were made before this process was forked.
    """
    kinds = {"bundle": Bundle, "item index": ItemIndex, "behaviour table": BehaviourTable}
    both = tables if isinstance(tables, Tables) else (tables, None)
    for (name, kind), part in zip(kinds.items(), (bundle, *both), strict=True):
        if not isinstance(part, kind):
            raise ConfigError(
                f"{name}: got {type(part).__name__} {shown(part)}, expected a {kind.__name__}; an engine "
                "takes a bundle and Tables(items, behaviours), in this order."
            )
    processes.check_all(bundle, *tables)
    for name, table in (("item index", tables.items), ("behaviour table", tables.behaviours)):
        table.check_file()
        if table.version != bundle.version:
            raise VersionMismatchError(
                f"the {name} was computed by bundle version {table.version}, but the bundle at "
                f"{bundle.path} is version {bundle.version}; build the {name} with this bundle, or serve the "
                "other one."
            )
