"""Both tables of an engine, built of the same item records."""

import doctest

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ItemIndexError
from aif_jax.nearline import BehaviourTable, ItemIndex, build_tables
from aif_jax.types import ItemRecords
from support.served import World, part_of


def test_build_tables_equals_building_each_table(bundle: Bundle, world: World) -> None:
    ids, columns, content = part_of(world, range(30))
    rankable = np.arange(30) % 3 > 0
    index, behaviours = build_tables(bundle, ItemRecords(ids, columns, content, rankable))
    expected = (
        ItemIndex.build(bundle, ids, columns, content, rankable=rankable),
        BehaviourTable.build(bundle, ids, columns, content),
    )
    for table, other in zip((index, behaviours), expected, strict=True):
        rows, found = table.gather(ids)
        assert found.all()
        for name, column in other.gather(ids)[0].items():
            np.testing.assert_array_equal(rows[name], column)
    assert index.gather(ids)[0]["rankable"][:, 0].tolist() == rankable.tolist()


def test_build_tables_without_flags_makes_items_rankable(bundle: Bundle, world: World) -> None:
    ids, columns, content = part_of(world, range(5))
    tables = build_tables(bundle, ItemRecords(ids, columns, content))
    assert tables.items.gather(ids)[0]["rankable"].all()


def test_build_tables_repeated_id_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ItemIndexError, match="7 is given twice"):
        build_tables(bundle, ItemRecords([7, 8, 7], {"price": [4.0, 5.0, 6.0]}))


def test_build_tables_example_runs(bundle: Bundle) -> None:
    """It is skipped elsewhere, because the export of a bundle takes seconds."""
    names = {"bundle": bundle, "build_tables": build_tables, "ItemRecords": ItemRecords}
    text = build_tables.__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, names, "build_tables", None, None)
    for step in example.examples:
        step.options.clear()
    assert doctest.DocTestRunner().run(example) == (0, 3)
