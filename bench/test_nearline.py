"""Item rows: computed into an index, replaced, read by id, written to a snapshot and read back."""

import itertools

import numpy as np
import pytest

from aif_jax.nearline import ItemIndex, Upsert, build_snapshot


@pytest.fixture(scope="module")
def some(built, sizes):
    """Ids, raw columns and content embeddings of some items, and the rows that they should get."""
    source, n = built.source, sizes.rows
    columns = {name: column[:n] for name, column in source.columns.items()}
    rows, found = built.tables.items.gather(source.ids[:n])
    assert found.all()
    return source.ids[:n], columns, source.content[:n], rows


def same_rows(index, ids, rows):
    found = index.gather(ids)
    assert found[1].all()
    for name, column in rows.items():
        np.testing.assert_array_equal(found[0][name], column, err_msg=name)


def test_item_index_build_computes_rows(benchmark, built, some):
    ids, columns, content, rows = some
    benchmark.group = f"item rows, {len(ids):,} at once"
    same_rows(ItemIndex.build(built.bundle, ids, columns, content), ids, rows)
    benchmark(lambda: ItemIndex.build(built.bundle, ids, columns, content))


def test_item_index_upsert_replaces_rows(benchmark, built, some):
    ids, columns, content, rows = some
    benchmark.group = f"item rows, {len(ids):,} at once"
    benchmark(lambda: built.tables.items.upsert(ids, columns, content))
    same_rows(built.tables.items, ids, rows)


def test_item_index_gather_reads_rows(benchmark, built, some):
    ids, _, _, rows = some
    benchmark.group = f"item rows, {len(ids):,} at once"
    same_rows(built.tables.items, ids, rows)
    benchmark(lambda: built.tables.items.gather(ids))
    memory = built.tables.items.stats()
    benchmark.extra_info.update({name: value for name, value in memory.items() if isinstance(value, int)})


def test_snapshot_save_writes_rows(benchmark, built, some, tmp_path):
    ids, columns, content, rows = some
    benchmark.group = f"a snapshot of {len(ids):,} item rows"
    index, file = ItemIndex.build(built.bundle, ids, columns, content), tmp_path / "rows"
    benchmark(lambda: index.save(file))
    same_rows(ItemIndex.open(built.bundle, file), ids, rows)


def test_snapshot_open_reads_rows(benchmark, built, some, tmp_path):
    ids, columns, content, rows = some
    benchmark.group = f"a snapshot of {len(ids):,} item rows"
    ItemIndex.build(built.bundle, ids, columns, content).save(tmp_path / "rows")
    same_rows(ItemIndex.open(built.bundle, tmp_path / "rows"), ids, rows)
    benchmark(lambda: ItemIndex.open(built.bundle, tmp_path / "rows"))


def test_build_snapshot_computes_and_writes_rows(benchmark, built, some, tmp_path):
    ids, columns, content, rows = some
    benchmark.group = f"a snapshot of {len(ids):,} item rows"
    files = map(tmp_path.joinpath, map(str, itertools.count()))

    def build():
        file = next(files)
        build_snapshot(ItemIndex, built.bundle, [Upsert(ids, columns, content)], file)
        return file

    same_rows(ItemIndex.open(built.bundle, build()), ids, rows)
    benchmark(build)
