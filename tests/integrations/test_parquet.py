"""Catalogues and changes in Parquet files give the same rows as arrays."""

import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import DataError
from aif_jax.integrations.parquet import ParquetUpdates, catalogue_batches
from aif_jax.nearline import Archive, Follower, ItemIndex
from support.served import World


def table(world: World, rows: slice, **more: object) -> pa.Table:
    content = [None if not row.any() else row for row in world.content[rows]]
    columns = {name: list(column[rows]) for name, column in world.columns.items()}
    return pa.table({"id": world.ids[rows], **columns, "content": content, **more})


def same(index: ItemIndex, other: ItemIndex) -> None:
    keys = np.sort(index.store.cache.keys())
    assert np.array_equal(keys, np.sort(other.store.cache.keys()))
    for name, column in index.gather(keys)[0].items():
        assert np.array_equal(column, other.gather(keys)[0][name]), name


def test_catalogue_batches_equal_arrays(bundle: Bundle, world: World, tmp_path: Path) -> None:
    for number, rows in enumerate([slice(0, 60), slice(60, 61), slice(61, 150)]):
        pq.write_table(table(world, rows), tmp_path / f"part-{number}.parquet")
    index = ItemIndex(bundle)
    sizes = []
    for batch in catalogue_batches(tmp_path, rows=25):
        sizes.append(len(batch.ids))
        index.apply(batch)
    assert sizes == [25, 25, 10, 1, 25, 25, 25, 14]
    same(index, ItemIndex.build(bundle, world.ids, world.columns, world.content))
    assert len(list(catalogue_batches([tmp_path / "part-1.parquet"]))) == 1


def test_parquet_updates_are_followed_and_resumed(bundle: Bundle, world: World, tmp_path: Path) -> None:
    changes = tmp_path / "changes"
    changes.mkdir()
    pq.write_table(table(world, slice(0, 40)), changes / "a.parquet")
    gone = [row in (3, 4, 9) for row in range(20)]
    pq.write_table(
        table(world, slice(0, 20), deleted=gone, rankable=[True] * 19 + [False]), changes / "b.parquet"
    )
    expected = ItemIndex.build(
        bundle, world.ids[:40], {n: c[:40] for n, c in world.columns.items()}, world.content[:40]
    )
    expected.delete(world.ids[[3, 4, 9]])
    expected.set_rankable(world.ids[19:20], False)
    with Archive(tmp_path / "items") as archive:
        archive.start(ItemIndex(bundle))
        source = ParquetUpdates(changes, endless=False, rows=7)
        some = 0
        while archive.position is None or archive.position < ("b.parquet", 5):  # inside of a batch
            delivered = source.read(archive.position, 0.0)
            assert delivered is not None
            some += 1
            for delivery in delivered[:2]:
                with archive.batch(delivery.position):
                    Follower(ParquetUpdates(changes), [archive])._apply(archive.table, [delivery])
        follower = Follower(ParquetUpdates(changes, endless=False, rows=7), [archive])
        follower.run()
        same(archive.table, expected)
        assert archive.position == ("b.parquet", 20)
        os.remove(changes / "a.parquet")
        again = Follower(ParquetUpdates(changes, endless=False), [archive])
        again.run()
        assert again.stats()["updates"] == 0
        with Follower(ParquetUpdates(changes), [archive]) as waiting:
            waiting.start()
            pq.write_table(table(world, slice(50, 52)), tmp_path / "c.parquet")
            os.rename(tmp_path / "c.parquet", changes / "c.parquet")
            pause = threading.Event()
            for _ in range(500):
                if world.ids[51] in archive.table:
                    break
                pause.wait(0.02)
            assert world.ids[51] in archive.table
        assert waiting.stats()["delay_ms"]["p99"] > 0


def test_parquet_updates_file_without_rows_is_passed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [5]}), tmp_path / "b.parquet")
    source = ParquetUpdates(tmp_path, endless=False)
    read = [source.read(None, 0.0) for _ in range(3)]
    assert [[delivery.position for delivery in some or ()] for some in read] == [[], [("b.parquet", 1)], []]
    assert read[2] is None


def test_records_keep_missing_values_and_string_ids(bundle: Bundle, tmp_path: Path) -> None:
    rows = pa.table({
        "id": ["a", "b", "c"], "price": [1.0, None, 3.0], "item": [5, None, 7],
        "genres": [["drama", "noir"], None, []],
    })  # fmt: skip
    pq.write_table(rows, tmp_path / "x.parquet")
    index = ItemIndex(bundle)
    for batch in catalogue_batches(tmp_path / "x.parquet"):
        index.apply(batch)
    same(index, ItemIndex.build(
        bundle, ["a", "b", "c"],
        {"price": [1.0, None, 3.0], "item": [5, None, 7], "genres": [["drama", "noir"], None, []]},
    ))  # fmt: skip


def test_parquet_bad_files_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": [1]}), tmp_path / "no-id.parquet")
    pq.write_table(pa.table({"id": [1, None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"id": [1, 2], "content": [[1.0], [1.0, 0.0]]}), tmp_path / "widths.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet at all")
    for name, said in {
        "no-id": r"no-id\.parquet: has no column 'id', only \['item'\]",
        "null": "'id' is int64 with 1 nulls",
        "widths": r"content of different widths, \[1, 2\]",
        "text": "cannot be read as Parquet",
        "nothing": "is not a file; expected Parquet files",
    }.items():
        with pytest.raises(DataError, match=said):
            list(catalogue_batches(tmp_path / f"{name}.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.parquet file is there"):
        list(catalogue_batches(tmp_path / "empty"))
    with pytest.raises(DataError, match="is not a directory"):
        ParquetUpdates(tmp_path / "nowhere")
