"""A full disk: every writer says so with path and bytes, keeps the old content, and leaves nothing else."""

import contextlib
import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.bundle.files import read_bundle_files, write_bundle_files
from aif_jax.errors import AifError, ArchiveError, BundleError, ItemIndexError, WriteError
from aif_jax.files import write_atomic
from aif_jax.models.store import load_model, save_model
from aif_jax.nearline import Archive, ItemIndex, build_snapshot
from aif_jax.types import ItemRecords
from support.full_disk import PAGE, filled_disk, limited_file_size
from support.served import World


@dataclasses.dataclass
class Disk:
    """A folder, and a context manager in which only some bytes more can be written to a file in it."""

    folder: Path
    little: Callable[[int], contextlib.AbstractContextManager[None]]


@pytest.fixture(params=["full disk", "file size limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "full disk":
        with contextlib.ExitStack() as mounted:
            mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                pytest.skip("no disk can be mounted here")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            yield Disk(folder, lambda room: filled_disk(folder, room))
    else:
        yield Disk(folder, limited_file_size)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the filler."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "filler"
    }


def refused(disk: Disk, room: int, write: Callable[[], object], error: type[AifError], name: str) -> None:
    """Check that a writer is refused, three times, changes nothing, and succeeds with room."""
    before = contents(disk.folder)
    with disk.little(room):
        for _ in range(3):
            message = (
                rf"{name}.*cannot be written \((No space left on device|File too large).*what was there is "
                r"as it was\. It needs [\d,]+ bytes, and [\d,]+ are free there\. Make room"
            )
            with pytest.raises(error, match=message) as caught:
                write()
            assert not isinstance(caught.value, OSError) or caught.value.errno
            assert contents(disk.folder) == before
    write()
    assert contents(disk.folder) != before


def catalogue(world: World, n: int = 100) -> ItemRecords:
    columns = {name: column[:n] for name, column in world.columns.items()}
    return ItemRecords(ids=world.ids[:n], columns=columns, content=world.content[:n])


@pytest.fixture(scope="module")
def index(bundle: Bundle, world: World) -> ItemIndex:
    some = catalogue(world)
    return ItemIndex.build(bundle, some.ids, some.columns, some.content)


ROOMS = [PAGE, 65536, 65536 + PAGE, 65536 * 2]
"""Bytes in which a snapshot has no head, no rows, not all rows, no footer."""


def test_write_atomic_on_full_disk_keeps_file(disk: Disk) -> None:
    write_atomic(disk.folder / "a.json", "{}")
    write = lambda: write_atomic(disk.folder / "a.json", b"x" * 1_000_000)  # noqa: E731
    refused(disk, PAGE, write, WriteError, "a.json")


@pytest.mark.parametrize("room", ROOMS)
def test_save_on_full_disk_keeps_snapshot(disk: Disk, bundle: Bundle, index: ItemIndex, room: int) -> None:
    path = disk.folder / "items"
    ItemIndex(bundle).save(path)
    refused(disk, room, lambda: index.save(path), ItemIndexError, "items")
    assert len(ItemIndex.open(bundle, path)) == len(index)


def test_checkpoint_on_full_disk_keeps_archive(disk: Disk, bundle: Bundle, world: World) -> None:
    path = disk.folder / "archive"
    some = catalogue(world)
    with Archive(path) as archive:
        table = ItemIndex.build(bundle, some.ids, some.columns, some.content)
        archive.start(table)
        with disk.little(3 * PAGE), pytest.raises(ArchiveError, match=r"no snapshot.*(No space|too large)"):
            archive.checkpoint()
        assert not [name for name in contents(path) if "partial" in name]
        table.delete(world.ids[:1])
    with Archive(path) as archive:
        assert len(archive.open(ItemIndex, bundle)) == len(some.ids) - 1


@pytest.mark.parametrize("room", [PAGE, 65536 + PAGE])
def test_build_snapshot_on_full_disk_keeps_snapshot_and_resumes(
    disk: Disk, bundle: Bundle, world: World, index: ItemIndex, room: int
) -> None:
    path = disk.folder / "rows"
    ItemIndex(bundle).save(path)
    before = path.read_bytes()
    with disk.little(room):
        for _ in range(2):
            with pytest.raises(ItemIndexError, match=r"cannot be written \((No space|File too large)"):
                build_snapshot(ItemIndex, bundle, [catalogue(world)], path)
    assert path.read_bytes() == before
    build_snapshot(ItemIndex, bundle, [catalogue(world)], path)
    assert set(contents(disk.folder)) == {"rows"}
    assert set(ItemIndex.open(bundle, path).ids().tolist()) == set(index.ids().tolist())


def test_bundle_on_full_disk_keeps_bundle(disk: Disk, bundle: Bundle, other_bundle: Bundle) -> None:
    path = disk.folder / "bundle"
    (manifest, files), (_, others) = read_bundle_files(bundle.path), read_bundle_files(other_bundle.path)
    header = {"jax": manifest["jax"], "kernel_abi": manifest["kernel_abi"]}
    version = lambda folder: read_bundle_files(folder)[0]["version"]  # noqa: E731
    write_bundle_files(path, files, header, version, overwrite=True)
    write = lambda: write_bundle_files(path, others, header, version, overwrite=True)  # noqa: E731
    refused(disk, 3 * PAGE, write, BundleError, "bundle")
    assert version(path) == other_bundle.version


def test_save_model_on_full_disk_keeps_model(disk: Disk, world: World) -> None:
    path = disk.folder / "model"
    save_model(world.model, path, metrics={"auc": 0.5}, notes={})
    write = lambda: save_model(world.model, path, metrics={"auc": 0.6}, notes={})  # noqa: E731
    refused(disk, PAGE, write, BundleError, "model")
    assert load_model(path)[1]["metrics"] == {"auc": 0.6}


def test_save_over_what_is_no_snapshot_is_refused(index: ItemIndex, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    before = contents(tmp_path)
    with pytest.raises(ItemIndexError, match=r"photo: is a file of another format.*not replaced"):
        index.save(tmp_path / "photo")
    assert contents(tmp_path) == before
