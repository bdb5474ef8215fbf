"""Item rows: computed into an index, replaced, read by id, written to a snapshot and read back."""

import itertools

import numpy as np
import pytest

from aif_jax.nearline import ItemIndex, Upsert, build_snapshot


@pytest.fixture(scope="module")
def some(built, sizes):
    """Ids, raw columns and content embeddings of some items."""
    source, n = built.source, sizes.rows
    return source.ids[:n], {name: column[:n] for name, column in source.columns.items()}, source.content[:n]


@pytest.fixture
def check(benchmark, built, some):
    """Check that an index has the rows of these items, and name the group."""
    benchmark.group = f"item rows, {len(some[0]):,} at once"
    expected, there = built.tables.items.gather(some[0])
    assert there.all()
    expected = {name: column.copy() for name, column in expected.items()}

    def check(index):
        columns, found = index.gather(some[0])
        assert found.all()
        for name, column in expected.items():
            np.testing.assert_array_equal(columns[name], column, err_msg=name)

    return check


def test_item_index_build_computes_rows(benchmark, built, some, check):
    check(ItemIndex.build(built.bundle, *some))
    benchmark(lambda: ItemIndex.build(built.bundle, *some))


def test_item_index_upsert_replaces_rows(benchmark, built, some, check):
    benchmark(lambda: built.tables.items.upsert(*some))
    check(built.tables.items)


def test_item_index_gather_reads_rows(benchmark, built, some, check):
    check(built.tables.items)
    benchmark(lambda: built.tables.items.gather(some[0]))


def test_snapshot_save_writes_rows(benchmark, built, some, check, tmp_path):
    index = ItemIndex.build(built.bundle, *some)
    benchmark(lambda: index.save(tmp_path / "rows"))
    check(ItemIndex.open(built.bundle, tmp_path / "rows"))


def test_snapshot_open_reads_rows(benchmark, built, some, check, tmp_path):
    ItemIndex.build(built.bundle, *some).save(tmp_path / "rows")
    check(ItemIndex.open(built.bundle, tmp_path / "rows"))
    benchmark(lambda: ItemIndex.open(built.bundle, tmp_path / "rows"))


def test_build_snapshot_computes_and_writes_rows(benchmark, built, some, check, tmp_path):
    files = map(tmp_path.joinpath, map(str, itertools.count()))

    def build():
        file = next(files)
        build_snapshot(ItemIndex, built.bundle, [Upsert(*some)], file)
        return file

    check(ItemIndex.open(built.bundle, build()))
    benchmark(build)
