"""The snapshot file survives nothing being true: cut short, altered, replaced half-way."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from aif_jax.errors import ItemIndexError
from aif_jax.nearline.rows import Snapshot, read_snapshot, write_snapshot


def snapshot(n: int = 5, names: list[str] | None = None) -> Snapshot:
    rng = np.random.default_rng(n)
    return Snapshot(
        kind="item_index",
        version="v1",
        keys=rng.integers(0, 2**64, n, np.uint64),
        columns={
            "h": rng.normal(size=(n, 3)).astype(np.float32),
            "half": rng.normal(size=(n, 2)).astype(ml_dtypes.bfloat16),
            "signature": rng.integers(0, 256, (n, 8), np.uint8),
            "rankable": np.ones((n, 1), np.uint8),
        },
        names=names,
        notes={"made": "here"},
    )


@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_what_is_written_is_read(tmp_path: Path, n: int) -> None:
    given = snapshot(n, [f"item-{i}-é" for i in range(n)])
    write_snapshot(tmp_path / "rows", given)
    read = read_snapshot(tmp_path / "rows", kind="item_index")
    assert (read.kind, read.version, read.names, read.notes) == (
        given.kind,
        "v1",
        given.names,
        {"made": "here"},
    )
    assert np.array_equal(read.keys, given.keys)
    assert read.columns.keys() == given.columns.keys()
    for name, column in given.columns.items():
        assert read.columns[name].dtype == column.dtype
        assert np.array_equal(read.columns[name], column)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    write_snapshot(path, snapshot())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ItemIndexError, match="rows"):
            read_snapshot(path, kind="item_index")
    path.write_bytes(whole + b"\0")
    with pytest.raises(ItemIndexError, match="expected"):
        read_snapshot(path, kind="item_index")


def test_a_changed_byte_is_refused_or_never_read(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    given = snapshot()
    write_snapshot(path, given)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        try:
            read = read_snapshot(path, kind="item_index")
        except ItemIndexError:
            refused += 1
            continue
        assert whole[position] == 0  # padding between sections
        assert np.array_equal(read.keys, given.keys)
    assert refused > len(whole) // 2


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_crash_while_saving_leaves_the_previous_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "rows"
    write_snapshot(path, snapshot(5))
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk went away")

    if step == "write":
        monkeypatch.setattr("aif_jax.nearline.rows._raw", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="went away"):
        write_snapshot(path, snapshot(7))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows"]
    assert len(read_snapshot(path, kind="item_index").keys) == 5


def test_another_kind_and_a_missing_file_say_so(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "rows", snapshot())
    with pytest.raises(ItemIndexError, match=r"'item_index', expected 'behaviour_table'"):
        read_snapshot(tmp_path / "rows", kind="behaviour_table")
    with pytest.raises(ItemIndexError, match="cannot be read"):
        read_snapshot(tmp_path / "nothing", kind="item_index")


def test_parent_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "today" / "rows"
    write_snapshot(path, snapshot())
    assert len(read_snapshot(path).keys) == 5


def test_a_place_that_cannot_be_written_to_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(
        ItemIndexError, match=r"file/runs/rows: cannot be written \(.*file.*\); expected a path"
    ):
        write_snapshot(tmp_path / "file" / "runs" / "rows", snapshot())
    with pytest.raises(ItemIndexError, match="is a directory; expected the name of the file"):
        write_snapshot(tmp_path, snapshot())
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_id_that_the_format_cannot_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ItemIndexError, match="zero character"):
        write_snapshot(tmp_path / "rows", snapshot(1, ["a\0b"]))
    assert not (tmp_path / "rows").exists()
