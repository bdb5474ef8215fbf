import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aif_jax.bundle import files as bundle_files
from aif_jax.bundle.files import (
    MANIFEST,
    read_bundle_files,
    read_manifest,
    read_verified,
    write_bundle_files,
)
from aif_jax.errors import BundleError

FILES = {"config.json": b'{"a": 1}', "programs/item.native": b"\x00\x01\x02", "empty": b""}


def version_of(path: Path) -> str:
    return read_bundle_files(path)[0]["version"]


def write(path: Path, files: dict[str, bytes] = FILES, *, overwrite: bool = False) -> str:
    return write_bundle_files(path, files, {"jax": "0.0"}, version_of, overwrite=overwrite)


def test_bundle_files_written_read_back(tmp_path: Path) -> None:
    version = write(tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest["version"] == version
    assert manifest["jax"] == "0.0"
    for name, content in FILES.items():
        assert read_verified(tmp_path / "bundle", manifest, name) == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_write_bundle_files_makes_parents_or_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "today" / "bundle")
    assert read_manifest(tmp_path / "runs" / "today" / "bundle")["jax"] == "0.0"
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(BundleError, match=r"file/runs: cannot be written \(Not a directory\)"):
        write(tmp_path / "file" / "runs" / "bundle")


def test_bundle_version_depends_on_contents(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    assert write(tmp_path / "b") == first
    assert write(tmp_path / "c", {**FILES, "empty": b"x"}) != first


@pytest.mark.parametrize("name", sorted(FILES))
def test_read_verified_broken_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bundle"
    write(path)
    manifest = read_manifest(path)
    original = (path / name).read_bytes()
    (path / name).write_bytes(original + b"!")
    with pytest.raises(BundleError, match=rf"{name}.*{len(original) + 1} bytes, expected {len(original)}"):
        read_verified(path, manifest, name)
    if original:
        (path / name).write_bytes(bytes([original[0] ^ 1]) + original[1:])
        with pytest.raises(
            BundleError, match=rf"{name}.*SHA-256.*expected {manifest['files'][name]['sha256']}"
        ):
            read_verified(path, manifest, name)
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}.*cannot be read"):
        read_verified(path, manifest, name)


def test_read_manifest_broken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write(path)
    file = path / MANIFEST
    original = json.loads(file.read_text())
    file.write_text(json.dumps({**original, "jax": "1.0"}))
    with pytest.raises(BundleError, match=r"manifest\.json: says version .* altered"):
        read_manifest(path)
    file.write_text(json.dumps({**original, "format": 99}))
    with pytest.raises(BundleError, match=r"format 99, this release .* reads 2"):
        read_manifest(path)
    file.write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        read_manifest(path)
    file.write_text("[]")
    with pytest.raises(BundleError, match="no list of files"):
        read_manifest(path)
    file.unlink()
    with pytest.raises(BundleError, match="not found"):
        read_manifest(path)
    with pytest.raises(BundleError, match="is a file"):
        read_manifest(path / "config.json")


def test_write_bundle_files_overwrites_only_bundles_on_request(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write(path)
    with pytest.raises(BundleError, match="overwrite=True"):
        write(path)
    write(path, {"config.json": b"new"}, overwrite=True)
    assert read_verified(path, read_manifest(path), "config.json") == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "nonsense", '{"files": 1}', '{"name": "an app"}'])
def test_write_bundle_files_over_directory_that_is_no_bundle_is_refused(
    tmp_path: Path, manifest: str | None
) -> None:
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    (tmp_path / "photo").write_text("of the sea")
    with pytest.raises(BundleError, match="is not a bundle"):
        write(tmp_path, overwrite=True)
    assert (tmp_path / "photo").read_text() == "of the sea"


def test_write_bundle_files_over_bundle_with_other_files_is_refused(tmp_path: Path) -> None:
    version = write(tmp_path / "bundle")
    (tmp_path / "bundle" / "programs" / "items.aifrows").write_text("rows")
    with pytest.raises(BundleError, match=r"holds programs/items\.aifrows beside the bundle"):
        write(tmp_path / "bundle", {"config.json": b"new"}, overwrite=True)
    assert version_of(tmp_path / "bundle") == version


def test_write_bundle_files_that_do_not_load_keep_old_bundle(tmp_path: Path) -> None:
    version = write(tmp_path / "bundle")

    def refuses(path: Path) -> None:
        assert version_of(path) != version
        raise BundleError("other golden vectors")

    with pytest.raises(BundleError, match=r"bundle: is not written.*does not load: other golden vectors"):
        write_bundle_files(tmp_path / "bundle", {"config.json": b"new"}, {}, refuses, overwrite=True)
    assert version_of(tmp_path / "bundle") == version
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_read_bundle_files_replaced_meanwhile_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bundle")
    read, replaced = bundle_files.read_verified, list[str]()

    def late(path: Path, manifest: Mapping[str, Any], name: str) -> bytes:
        if not replaced:
            replaced.append("the first file is read")
            replaced.append(write(tmp_path / "bundle", {"config.json": b"new"}, overwrite=True))
        return read(path, manifest, name)

    monkeypatch.setattr(bundle_files, "read_verified", late)
    manifest, contents = read_bundle_files(tmp_path / "bundle")
    assert manifest["version"] == replaced[1]
    assert contents == {"config.json": b"new"}


def test_write_bundle_files_crash_keeps_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    version = write(path)

    def fail(*_: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BundleError, match="went away"):
        write(path, {"config.json": b"new"}, overwrite=True)
    assert read_manifest(path)["version"] == version
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_write_bundle_files_failed_rename_restores_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    version = write(path)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(target) == path and "partial" in str(source):
            raise OSError("the disk went away")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr("aif_jax.files._exchanged", lambda *_: False)
    with pytest.raises(BundleError, match="went away"):
        write(path, {"config.json": b"new"}, overwrite=True)
    assert read_manifest(path)["version"] == version
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_write_bundle_files_syncs_everything_before_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    synced: list[tuple[int, bool]] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        sync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write(path)
    *before, last = synced
    assert last == (tmp_path.stat().st_ino, True)
    for entry in (path, *path.rglob("*")):
        assert (entry.stat().st_ino, False) in before
