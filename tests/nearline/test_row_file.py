"""Snapshot files that are cut short, altered, or replaced half-way."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from aif_jax.errors import ItemIndexError
from aif_jax.nearline.row_file import ROWS_AT, RowFile, RowFileWriter, open_row_file
from aif_jax.nearline.store import ColumnSpecs, RowStore

COLUMNS: ColumnSpecs = {
    "h": (np.dtype(np.float32), (3,)),
    "none": (np.dtype(np.int32), (0,)),
    "half": (np.dtype(ml_dtypes.bfloat16), (2,)),
    "signature": (np.dtype(np.uint8), (8,)),
    "rankable": (np.dtype(np.uint8), (1,)),
}


def write(path: Path, n: int = 5, names: list[str] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Write n random rows; return keys, ascending, and columns."""
    rng = np.random.default_rng(n)
    keys = np.sort(rng.integers(0, 2**64, n, np.uint64))
    columns = {
        "h": rng.normal(size=(n, 3)).astype(np.float32),
        "none": np.zeros((n, 0), np.int32),
        "half": rng.normal(size=(n, 2)).astype(ml_dtypes.bfloat16),
        "signature": rng.integers(0, 256, (n, 8), np.uint8),
        "rankable": np.ones((n, 1), np.uint8),
    }
    store = RowStore(COLUMNS)
    store.upsert(keys, columns)
    taken: list[np.ndarray] = []
    with RowFileWriter(path, kind="item_index", version="v1", columns=COLUMNS) as file:
        checksums = file.write_table(store.cache, taken.append)
        file.finish(taken[0], checksums, names, {"made": "here"})
    return keys, columns


def check(file: RowFile, keys: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    assert np.array_equal(file.keys, keys)
    assert file.columns == COLUMNS
    for name, column in columns.items():
        read = file.column(name)
        assert read.dtype == column.dtype
        assert np.array_equal(read, column)


@pytest.mark.parametrize("n", [0, 1, 5, 3000])
def test_row_file_written_reads_back(tmp_path: Path, n: int) -> None:
    names = [f"item-{i}-é" for i in range(n)]
    keys, columns = write(tmp_path / "rows", n, names)
    for verify in (True, False):
        file = open_row_file(tmp_path / "rows", kind="item_index", verify=verify)
        assert (file.kind, file.version, file.names, file.notes) == (
            "item_index",
            "v1",
            names,
            {"made": "here"},
        )
        check(file, keys, columns)


@pytest.mark.parametrize("verify", [True, False])
def test_row_file_cut_anywhere_is_refused(tmp_path: Path, verify: bool) -> None:
    path = tmp_path / "rows"
    write(path)
    whole = path.read_bytes()
    ends = range(2 * ROWS_AT, len(whole))
    lengths = [*range(0, 2 * ROWS_AT, 7919), ROWS_AT - 1, ROWS_AT, ROWS_AT + 64, *ends]
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        with pytest.raises(ItemIndexError, match="rows"):
            open_row_file(path, kind="item_index", verify=verify)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ItemIndexError, match="does not end as a snapshot"):
        open_row_file(path, kind="item_index", verify=verify)


def test_row_file_with_altered_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    keys, columns = write(path)
    whole = path.read_bytes()

    def put(position: int, byte: int) -> None:
        with open(path, "r+b") as stream:
            stream.seek(position)
            stream.write(bytes([byte]))

    rows = range(ROWS_AT, ROWS_AT + 5 * 64)
    behind = range(2 * ROWS_AT, len(whole))
    for position in [0, 7, 8, 5000, ROWS_AT - 1, *rows, rows.stop, rows.stop + 9, 2 * ROWS_AT - 1, *behind]:
        put(position, whole[position] ^ 0x10)
        with pytest.raises(ItemIndexError, match="rows"):
            open_row_file(path, kind="item_index")
        if position in rows:  # which are not read here
            assert np.array_equal(open_row_file(path, verify=False).keys, keys)
        put(position, whole[position])
    assert path.read_bytes() == whole
    check(open_row_file(path), keys, columns)


@pytest.mark.parametrize("step", ["write_table", "fsync", "replace"])
def test_row_file_writer_crash_keeps_previous_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "rows"
    write(path, 5)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk went away")

    if step == "write_table":
        monkeypatch.setattr(RowFileWriter, step, fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises((OSError, ItemIndexError), match="went away"):
        write(path, 7)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows"]
    assert len(open_row_file(path, kind="item_index").keys) == 5


def test_open_row_file_of_wrong_kind_or_format_or_missing_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows")
    with pytest.raises(ItemIndexError, match=r"'item_index', expected 'behaviour_table'"):
        open_row_file(tmp_path / "rows", kind="behaviour_table")
    with pytest.raises(ItemIndexError, match="cannot be read"):
        open_row_file(tmp_path / "nothing", kind="item_index")
    (tmp_path / "old").write_bytes(b"AIFROWS1" + bytes(100))
    with pytest.raises(ItemIndexError, match=r"another format \(AIFROWS1, expected AIFROWS2\); build"):
        open_row_file(tmp_path / "old")


def test_row_file_writer_makes_parent_directories(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "today" / "rows"
    write(path)
    assert len(open_row_file(path).keys) == 5


def test_row_file_writer_at_unwritable_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(
        ItemIndexError, match=r"file/runs: cannot be written \(Not a directory\); expected a path"
    ):
        write(tmp_path / "file" / "runs" / "rows")
    with pytest.raises(
        ItemIndexError, match="is a directory, which is not replaced; expected the name of a file"
    ):
        write(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_row_file_writer_id_with_zero_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ItemIndexError, match=r"'a\\x00b': holds a zero character"):
        write(tmp_path / "rows", 2, ["fine", "a\0b"])
    assert not list(tmp_path.iterdir())
