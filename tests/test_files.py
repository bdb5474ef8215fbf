"""Atomic writes: a write that ends at any step leaves the old content or the new, and nothing beside it."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aif_jax import files
from aif_jax.errors import WriteError
from aif_jax.files import (
    foreign_names,
    make_directory,
    read_file,
    real_path,
    remove_leftovers,
    replace_directory,
    temporary_directory,
    temporary_file,
    write_atomic,
    write_directory,
)

OLD, NEW = b"old" * 1000, b"the new one" * 1000

WRITER = """
import sys
from pathlib import Path
from aif_jax.files import temporary_directory, temporary_file

path = Path(sys.argv[2])
with temporary_file(path) if sys.argv[1] == "file" else temporary_directory(path) as made:
    print("ready", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def ends(*_: Any) -> None:
    raise KeyboardInterrupt


def is_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.json"


def test_write_atomic_creates_and_replaces_file(path: Path) -> None:
    write_atomic(path, OLD)
    assert path.read_bytes() == OLD
    write_atomic(path, NEW)
    assert path.read_bytes() == NEW
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert names(path.parent) == ["table.json"]


@pytest.mark.parametrize("fails", [ends, is_full])
@pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
def test_write_atomic_ended_before_rename_keeps_old_content(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, fails: Callable[..., None]
) -> None:
    write_atomic(path, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fails)
        with pytest.raises(KeyboardInterrupt if fails is ends else OSError):
            write_atomic(path, NEW)
    assert path.read_bytes() == OLD
    assert names(path.parent) == ["table.json"]
    write_atomic(path, NEW)
    assert path.read_bytes() == NEW


def test_write_atomic_ended_after_rename_has_new_content(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(path, OLD)
    monkeypatch.setattr(files, "sync_directory", ends)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, NEW)
    assert path.read_bytes() == NEW
    assert names(path.parent) == ["table.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_temporary_file_on_full_disk_is_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(path, OLD)
    create = os.open

    def on_full_device(name: Any, flags: int, *mode: int) -> int:
        descriptor = create(name, flags, *mode)
        if flags & os.O_CREAT:
            full = create("/dev/full", os.O_RDWR)
            os.dup2(full, descriptor)
            os.close(full)
        return descriptor

    monkeypatch.setattr(os, "open", on_full_device)
    monkeypatch.setattr(os.path, "samestat", lambda *_: True)
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(path, NEW)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == OLD
    assert names(path.parent) == ["table.json"]


def test_write_atomic_syncs_file_before_rename_and_directory_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, bool]] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        sync(descriptor)
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_atomic(path, NEW)
    assert synced == [(False, False), (True, True)]


def test_write_atomic_through_link_keeps_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.write_bytes(OLD)
    link.symlink_to(target)
    write_atomic(link, NEW)
    assert link.is_symlink()
    assert target.read_bytes() == NEW
    target.unlink()
    write_atomic(link, OLD)  # a link to nothing yet
    assert target.read_bytes() == OLD
    assert names(tmp_path) == ["link", "there"]
    assert names(tmp_path / "there") == ["target"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_write_atomic_replacing_file_keeps_its_permissions(path: Path, mode: int) -> None:
    path.write_bytes(OLD)
    path.chmod(mode)
    write_atomic(path, NEW, mode=0o644)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o000, 0o666)])
def test_write_atomic_of_new_file_follows_umask(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(path, NEW)
        write_atomic(path.with_name("narrow"), NEW, mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(path.with_name("narrow").stat().st_mode) == 0o600


def test_write_atomic_over_directory_or_without_parent_fails_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="is a directory, which is not replaced"):
        write_atomic(tmp_path / "folder", NEW)
    with pytest.raises(WriteError, match=r"cannot be written \(No such file"):
        write_atomic(tmp_path / "none" / "file", NEW)
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_temporary_of_killed_process_is_removed_and_of_living_one_kept(path: Path, kind: str) -> None:
    command = [sys.executable, "-c", WRITER, kind, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        (temporary,) = names(path.parent)
        assert temporary.startswith(".table.json.partial-")
        write_atomic(path, OLD)
        assert names(path.parent) == [temporary, "table.json"]
        writer.kill()
    assert names(path.parent) == [temporary, "table.json"]
    write_atomic(path.with_name("table"), NEW)  # a name that this one begins with
    assert temporary in names(path.parent)
    write_atomic(path, NEW)
    assert names(path.parent) == ["table", "table.json"]


def test_write_atomic_from_many_threads_shows_readers_whole_contents(path: Path) -> None:
    contents = [bytes([letter]) * 50_000 for letter in b"abcd"]
    write_atomic(path, contents[0])
    done, errors = threading.Event(), list[BaseException]()

    def write(content: bytes) -> None:
        try:
            for _ in range(20):
                write_atomic(path, content)
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        while not done.is_set():
            if path.read_bytes() not in contents:
                errors.append(AssertionError("parts of two contents"))

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert errors == []
    assert names(path.parent) == ["table.json"]


def test_temporary_file_taken_for_leftover_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, removed = files.fcntl.flock, list[Path]()

    def late(descriptor: int, operation: int) -> None:
        if not removed:  # before the first lock, another writer has removed the file
            (name,) = path.parent.iterdir()
            name.unlink()
            removed.append(name)
        lock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with temporary_file(path) as (_, scratch):
        assert scratch.exists()
        assert [scratch] != removed


def test_temporary_file_without_locks_is_written_and_leftovers_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    leftover = path.with_name(".table.json.partial-00000000")
    leftover.write_bytes(OLD)
    monkeypatch.setattr(files.fcntl, "flock", refuses)
    write_atomic(path, NEW)
    assert path.read_bytes() == NEW
    assert names(path.parent) == [leftover.name, "table.json"]


# -- directories ---------------------------------------------------------------------------------------------


def fill(path: Path, content: bytes) -> None:
    with temporary_directory(real_path(path)) as scratch:
        (scratch / "file").write_bytes(content)
        replace_directory(scratch, real_path(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def test_replace_directory_creates_and_replaces(folder: Path) -> None:
    fill(folder, OLD)
    fill(folder, NEW)
    assert (folder / "file").read_bytes() == NEW
    assert names(folder.parent) == ["bundle"]
    assert stat.S_IMODE(folder.stat().st_mode) & 0o700 == 0o700


@pytest.mark.parametrize("failing", [1, 2])
def test_replace_directory_ended_at_rename_keeps_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    fill(folder, OLD)
    rename, calls = os.rename, list[int]()

    def sometimes(source: Path, target: Path) -> None:
        calls.append(1)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", sometimes)
    with pytest.raises(KeyboardInterrupt):
        fill(folder, NEW)
    assert (folder / "file").read_bytes() == OLD
    assert names(folder.parent) == ["bundle"]


def test_replace_directory_left_between_renames_is_kept_until_next_is_in_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = folder.with_name(".bundle.replaced-00000000")
    aside.mkdir()
    (aside / "file").write_bytes(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", is_full)
        with pytest.raises(OSError, match="No space"):
            fill(folder, NEW)
    assert (aside / "file").read_bytes() == OLD
    fill(folder, NEW)
    fill(folder, NEW)
    assert names(folder.parent) == ["bundle"]


def test_replace_directory_through_link_keeps_link(folder: Path) -> None:
    link = folder.with_name("current")
    fill(folder, OLD)
    link.symlink_to("bundle")
    fill(link, NEW)
    assert link.is_symlink()
    assert (folder / "file").read_bytes() == NEW
    assert names(folder.parent) == ["bundle", "current"]


def test_replace_directory_is_never_seen_absent(folder: Path) -> None:
    fill(folder, OLD)
    with temporary_directory(real_path(folder)) as scratch:
        if not files._exchanged(scratch, real_path(folder)):
            pytest.skip("this system cannot let two directories change places")
    fill(folder, OLD)
    done, seen = threading.Event(), set[bool]()

    def look() -> None:
        while not done.is_set():
            seen.add(folder.exists())

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(100):
        fill(folder, NEW)
    done.set()
    reader.join()
    assert seen == {True}
    assert names(folder.parent) == ["bundle"]


def test_write_directory_that_is_not_proven_keeps_old_one(folder: Path) -> None:
    def refuses(scratch: Path) -> None:
        assert (scratch / "in" / "file").read_bytes() == NEW
        assert (folder / "file").read_bytes() == OLD
        raise ValueError("no")

    fill(folder, OLD)
    with pytest.raises(ValueError, match="no"):
        write_directory(folder, {"in/file": NEW}, refuses)
    assert (folder / "file").read_bytes() == OLD
    assert names(folder.parent) == ["bundle"]
    assert write_directory(folder, {"in/file": NEW}, lambda scratch: scratch.name) != "bundle"
    assert foreign_names(folder, ()) == ["in/file"]


def test_write_directory_keeps_permissions_of_directory(folder: Path) -> None:
    fill(folder, OLD)
    folder.chmod(0o750)
    write_directory(folder, {"file": NEW}, lambda _: None)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


# -- what is not ours ----------------------------------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


KINDS = [make_pipe, make_socket, make_device, make_circle]


@pytest.mark.parametrize("make", KINDS)
def test_write_atomic_over_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = Path(os.path.relpath(tmp_path / "it"))
    make(path)
    before = os.lstat(path)
    for write in (
        lambda: write_atomic(path, NEW),
        lambda: write_directory(path, {"file": NEW}, lambda _: None),
    ):
        with pytest.raises(WriteError, match=r"is a .*, which is not replaced"):
            write()
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert names(tmp_path) == ["it"]


@pytest.mark.parametrize("make", [*KINDS, Path.mkdir])
def test_read_file_of_what_is_no_file_is_refused_without_waiting(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "it")
    with pytest.raises(OSError, match=r"expected a file|Is a directory|No such device|Too many levels"):
        read_file(tmp_path / "it")
    with pytest.raises(OSError, match="Is a device, expected a file"):
        read_file("/dev/zero")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=["zero character", "half a pair"])
def test_path_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="no file has such a name"):
        read_file(tmp_path / name)
    for write in (real_path, make_directory, lambda path: write_atomic(path, b"")):
        with pytest.raises(WriteError, match="holds what no name of a file can"):
            write(tmp_path / name)
    odd = tmp_path / os.fsdecode(b"caf\xe9")  # no UTF-8, and a name all the same
    write_atomic(odd, b"here")
    assert read_file(odd) == b"here"


def test_real_path_relative_to_a_directory_that_is_gone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(WriteError, match="cannot be written"):
        real_path("here")


def test_write_atomic_over_file_of_other_format_is_refused(path: Path) -> None:
    path.write_bytes(b"GIF89a")
    with pytest.raises(WriteError, match=r"begins with b'GI', expected b'\{\\n'"):
        write_atomic(path, b"{\n}", begins=b"{\n")
    assert path.read_bytes() == b"GIF89a"
    path.write_bytes(b"")
    for content in (b"{\n}", b"{\n }"):
        write_atomic(path, content, begins=b"{\n")
        assert path.read_bytes() == content
    assert names(path.parent) == ["table.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_write_atomic_by_root_keeps_owner_of_replaced_file(path: Path) -> None:
    path.write_bytes(OLD)
    os.chown(path, 12345, 12346)
    write_atomic(path, NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_remove_leftovers_removes_temporaries_of_any_name_that_nobody_holds(tmp_path: Path) -> None:
    kept = [".a.partial-", ".a.partial-1", "a.partial-00000000", ".b.replaced-00000000"]
    for name in (*kept, ".a.partial-00000000"):
        (tmp_path / name).write_bytes(OLD)
    (tmp_path / ".c.partial-00000000").mkdir()
    with temporary_file(tmp_path / "held") as (_, held):
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([*kept, held.name])
