"""Catalogues and changes in Parquet files give the same rows as arrays."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import DataError
from aif_jax.integrations.parquet import ParquetUpdates, catalogue_batches
from aif_jax.nearline import Archive, Follower, ItemIndex, read_dead_letters
from aif_jax.nearline.applying import apply_deliveries
from support.served import World
from support.waiting import eventually


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
                    apply_deliveries(archive.table, [delivery])
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


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_parquet_updates_what_is_no_file_is_set_aside_and_passed_over(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "1.parquet")
    pq.write_table(pa.table({"id": [7]}), tmp_path / "2.parquet")
    source = ParquetUpdates(tmp_path, endless=False)
    (refused,), (taken,) = (source.read(None, 0.0) for _ in range(2))  # type: ignore[misc]
    assert "1.parquet: is no file" in str(refused.update)
    assert taken.update.ids.tolist() == [7]


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
        "null": "'id': row 1 is missing",
        "widths": "'content': row 1 has 2 numbers, expected 1",
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


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_parquet_string_ids_of_any_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array(["a", "b"]).cast(kind)
    pq.write_table(pa.table({"id": ids, "genres": [["x"], None]}), tmp_path / "items.parquet")
    (batch,) = catalogue_batches(tmp_path / "items.parquet")
    assert list(batch.ids) == ["a", "b"]


def test_parquet_content_of_nulls_alone_is_none(tmp_path: Path) -> None:
    content = pa.array([None, None], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": [1, 2], "content": content}), tmp_path / "items.parquet")
    (batch,) = catalogue_batches(tmp_path / "items.parquet")
    assert batch.content is None


@pytest.mark.parametrize(
    ("column", "said"),
    [(["false", "false"], "row 0 is 'false'"), ([0, 7], "row 1 is 7"), ([0.0, 1.0], "row 0 is 0.0")],
)
def test_catalogue_flags_of_another_type_are_refused(tmp_path: Path, column: Any, said: str) -> None:
    pq.write_table(pa.table({"id": [1, 2], "rankable": column}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match=rf"1\.parquet: 'rankable': {said}, expected true or false"):
        list(catalogue_batches(tmp_path / "1.parquet"))


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("deleted", ["false", "false"], "the column 'deleted' is string, expected bool"),
        ("deleted", [0, 7], "'deleted': row 0 is 7, expected true or false"),
        ("deleted", [0.0, 1.0], "the column 'deleted' is double, expected bool"),
        ("rankable", ["true", "false"], "'rankable': row 0 is 'false', expected true or false"),
        ("rankable", [1, 7], "'rankable': row 0 is 7, expected true or false"),
    ],
)
def test_parquet_updates_flags_of_another_type_are_refused(
    tmp_path: Path, name: str, column: Any, said: str
) -> None:
    pq.write_table(pa.table({"id": [1, 2], name: column}), tmp_path / "1.parquet")
    *_, last = ParquetUpdates(tmp_path, endless=False).read(None, 0.0) or ()
    assert isinstance(last.update, DataError)
    assert said in str(last.update)


def test_parquet_flags_as_0_and_1_are_taken(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "deleted": [0, 1]}), tmp_path / "1.parquet")
    read = ParquetUpdates(tmp_path, endless=False).read(None, 0.0)
    assert read is not None
    assert [type(delivery.update).__name__ for delivery in read] == ["Upsert", "Delete"]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def broken_within(world: World, path: Path) -> None:
    """Write twenty rows in four groups, the third of which is altered."""
    pq.write_table(table(world, slice(0, 20)), path, row_group_size=5, compression="gzip")
    column = pq.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(content))


def test_parquet_updates_unreadable_files_are_set_aside_and_passed_over(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    changes = tmp_path / "changes"
    changes.mkdir()
    good = table(world, slice(100, 101))
    (changes / "a.parquet").write_text("no Parquet at all")
    pq.write_table(good, changes / "b.parquet")
    cut(changes / "b.parquet", 200)
    pq.write_table(pa.table({"item": [1]}), changes / "c.parquet")
    pq.write_table(pa.table({"id": [1.5]}), changes / "d.parquet")
    pq.write_table(table(world, slice(30, 32), deleted=["false", "false"]), changes / "e.parquet")
    broken_within(world, changes / "f.parquet")
    (changes / "g.parquet").write_bytes(b"")
    pq.write_table(table(world, slice(0, 0)), changes / "h.parquet")
    pq.write_table(good, changes / "i.parquet")
    with Archive(tmp_path / "items") as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(ParquetUpdates(changes, endless=False, rows=5), [archive])
        follower.run()
        stats = follower.stats()
        assert (stats["set_aside"], stats["source_errors"], stats["trouble"]) == (7, 0, None)
        assert sorted(archive.table.ids().tolist()) == sorted([*world.ids[:10].tolist(), int(world.ids[100])])
        again = Follower(ParquetUpdates(changes, endless=False), [archive])
        again.run()
        assert again.stats()["updates"] == 0
    letters = list(read_dead_letters(tmp_path / "items"))
    assert [letter.position[0] for letter in letters if letter.position] == [
        f"{c}.parquet" for c in "abcdefg"
    ]
    id_and_flag = "'id': got dtype float64", "'deleted' is string"
    reasons = "row 0", "row 0", "no column 'id'", *id_and_flag, "row 10", "row 0"
    for letter, said in zip(letters, reasons, strict=True):
        assert said in letter.reasons[0][2]
        assert letter.raw[0].endswith(letter.position[0].encode())  # type: ignore[index, union-attr]


def test_parquet_updates_bad_rows_are_set_aside_alone(bundle: Bundle, world: World, tmp_path: Path) -> None:
    changes = tmp_path / "changes"
    changes.mkdir()
    rows = pa.table({
        "id": pa.array([1, None, 3, 4, 5, 6], pa.int64()),
        "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "content": [None, None, [1.0, 0.0], world.content[0].tolist(), [3.0] * 8, None],
        "deleted": [False, False, False, None, False, True],
    })  # fmt: skip
    pq.write_table(rows, changes / "a.parquet")
    no_content = pa.table({"id": [8, 9], "content": pa.array([None, None], pa.list_(pa.float32()))})
    pq.write_table(no_content, changes / "b.parquet")
    with Archive(tmp_path / "items") as archive:
        archive.start(ItemIndex.build(bundle, [6], {}))
        follower = Follower(ParquetUpdates(changes, endless=False), [archive])
        follower.run()
        assert sorted(archive.table.ids().tolist()) == [1, 4, 8, 9]
    letters = list(read_dead_letters(tmp_path / "items"))
    assert [letter.position for letter in letters] == [("a.parquet", row) for row in (2, 3, 5)]
    (row,) = pa.ipc.open_stream(letters[0].raw[0]).read_all().to_pylist()
    assert (row["id"], row["price"]) == (None, 2.0)


def test_parquet_updates_directory_that_is_away_is_waited_for(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    changes = tmp_path / "changes"
    changes.mkdir()
    with Archive(tmp_path / "items") as archive:
        archive.start(ItemIndex(bundle))
        source = ParquetUpdates(changes)
        changes.rename(tmp_path / "away")
        pq.write_table(table(world, slice(0, 2)), tmp_path / "away" / "a.parquet")
        with Follower(source, [archive]) as follower:
            follower.start()
            assert eventually(lambda: follower.stats()["source_errors"] > 1)
            (tmp_path / "away").rename(changes)
            assert eventually(lambda: world.ids[1] in archive.table)
            assert follower.stats()["trouble"] is None
