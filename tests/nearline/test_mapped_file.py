"""A mapped snapshot that somebody replaces, touches, writes to, or cuts short."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ArchiveError, ItemIndexError
from aif_jax.nearline import Archive, ItemIndex, Replica, Tables
from aif_jax.nearline.row_file import ROWS_AT
from aif_jax.nearline.store import RowStore
from aif_jax.server import create_app
from aif_jax.serving import Engine, InMemoryUsers
from support.served import ENGINE_CONFIG, World


def built(bundle: Bundle, world: World, count: int = 60) -> ItemIndex:
    columns = {name: column[:count] for name, column in world.columns.items()}
    return ItemIndex.build(bundle, world.ids[:count], columns, world.content[:count])


def flip(path: Path) -> None:
    """Alter one byte of the rows, as a writer in place does, at another time than the file's."""
    before = path.stat().st_mtime_ns
    with open(path, "r+b", buffering=0) as stream:
        byte = os.pread(stream.fileno(), 1, ROWS_AT + 100)[0] ^ 1
        while path.stat().st_mtime_ns == before:
            os.pwrite(stream.fileno(), bytes([byte]), ROWS_AT + 100)


def cut(path: Path) -> None:
    """Cut a file short, as a writer in place begins."""
    os.truncate(path, path.stat().st_size - 1)


@pytest.fixture
def path(tmp_path: Path, bundle: Bundle, world: World) -> Path:
    built(bundle, world).save(tmp_path / "items")
    return tmp_path / "items"


def renamed_over(path: Path) -> None:
    shutil.copy(path, path.with_name("new"))
    flip(path.with_name("new"))
    path.with_name("new").rename(path)


def moved(path: Path) -> None:
    path.rename(path.with_name("yesterday"))


@pytest.mark.parametrize(
    "change", [renamed_over, moved, os.utime, Path.unlink, lambda path: path.chmod(0o400)]
)
def test_mapped_file_that_keeps_its_rows_is_no_trouble(
    bundle: Bundle, path: Path, change: Callable[[Path], None]
) -> None:
    table = ItemIndex.open(bundle, path)
    change(path)
    assert table.stats()["overwritten"] is None
    table.check_file()
    table.save(path)


@pytest.mark.parametrize("change", [flip, cut])
def test_mapped_file_written_to_is_told_and_logged_once(
    bundle: Bundle, path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    table = ItemIndex.open(bundle, path)
    copied = ItemIndex.open(bundle, path, mapped=False)
    assert table.stats()["overwritten"] is None
    change(path)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert "items: was written to while its rows are served" in table.stats()["overwritten"]
    assert len(caplog.records) == 1
    with pytest.raises(ItemIndexError, match="was written to while its rows are served"):
        table.check_file()
    with pytest.raises(ItemIndexError, match="was written to"):
        table.save(path.with_name("copy"))  # would give spoilt rows good checksums
    assert not path.with_name("copy").exists()
    assert copied.stats()["overwritten"] is None
    copied.save(path)


def test_open_of_file_that_is_replaced_meanwhile_maps_rows_of_its_keys(
    bundle: Bundle, world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(bundle, world, 20).save(path.with_name("new"))
    over_file, calls = RowStore.over_file, list[int]()

    def late(*arguments: object, **given: object) -> object:
        if not calls:
            path.with_name("new").rename(path)
        calls.append(1)
        return over_file(*arguments, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(RowStore, "over_file", late)
    table = ItemIndex.open(bundle, path)
    assert len(calls) == 2
    assert len(table) == 20
    expected = built(bundle, world, 20).gather(world.ids[:20])[0]
    found = table.gather(world.ids[:20])[0]
    assert all(found[name].tobytes() == column.tobytes() for name, column in expected.items())


def test_archive_over_spoilt_snapshot_keeps_good_ones(bundle: Bundle, world: World, tmp_path: Path) -> None:
    with Archive(tmp_path, keep=1) as archive:
        archive.start(built(bundle, world))
    with Archive(tmp_path, keep=1) as archive, Replica(tmp_path) as replica:
        archive.open(ItemIndex, bundle)
        replica.open(ItemIndex, bundle)
        flip(tmp_path / "000001.rows")
        with pytest.raises(ArchiveError, match=r"no snapshot could be written.*was written to"):
            archive.checkpoint()
        assert "was written to" in archive.stats()["overwritten"]
        with pytest.raises(ItemIndexError, match="was written to"):
            replica.poll()
        assert not (tmp_path / "000002.rows").exists()


def test_engine_over_spoilt_snapshot_tells_and_refuses_to_publish(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, path: Path
) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    mapped = Tables(ItemIndex.open(bundle, path), tables.behaviours)
    with Engine(bundle, mapped, users=users, config=ENGINE_CONFIG) as engine:
        client = testclient.TestClient(create_app(engine))
        assert client.get("/health").json()["status"] == "ok"
        flip(path)
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "overwritten")
        assert "was written to" in client.get("/stats").json()["item_index"]["overwritten"]
        with pytest.raises(ItemIndexError, match="was written to"):
            engine.publish(bundle, mapped)
