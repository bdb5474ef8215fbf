"""Atomic writes: whatever ends the process, a name has its old content or all of the new.

New content is written beside its place, under ``.NAME.partial-*``, and renamed when the disk has it. Such a
temporary is locked for as long as it is written. One that nobody locks was left by a killed process, and the
next write of the same name removes it. (On a file system without locks it stays.)

A symbolic link is followed: it stays, and what it points to is replaced.
"""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_PARTIAL, _REPLACED = ".partial-", ".replaced-"


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file, and return when the disk has it.

    Args:
        path: the file; its directory must exist.
        data: all of its content.
        mode: permissions of a new file, less the umask's. A file that is replaced keeps its own.

    Raises:
        OSError: the system refuses. The old content is still there, unless only the directory could not be
            synced: then the new one is, and a power failure may bring the old one back.
    """
    path = real_path(path)
    with temporary_file(path, mode=mode) as (stream, scratch):
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        move_into_place(scratch, path)


@contextlib.contextmanager
def temporary_file(path: Path, *, mode: int = 0o666) -> Iterator[tuple[IO[bytes], Path]]:
    """Make a file beside ``path``, to be written, synced and then moved there by `move_into_place`.

    If it is not moved, it is removed at the end of the block.

    Args:
        path: where it will be, from `real_path`.
        mode: see `write_atomic`.

    Yields:
        The file, open for reading and writing, and its temporary path.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor, scratch = _claim(path, lambda name: os.open(name, flags, mode))
    with open(descriptor, "w+b") as stream:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
            yield stream, scratch
        finally:
            scratch.unlink(missing_ok=True)


def move_into_place(scratch: Path, path: Path) -> None:
    """Rename a file that the disk has, over one that has the name; return when the disk has the rename."""
    os.replace(scratch, path)
    sync_directory(path.parent)


@contextlib.contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """Make a directory beside ``path``, to be filled, synced and then moved there by `replace_directory`.

    If it is not moved, it is removed at the end of the block.

    Args:
        path: where it will be, from `real_path`.
    """

    def create(name: Path) -> int:
        name.mkdir()
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    descriptor, scratch = _claim(path, create)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(descriptor)


def replace_directory(scratch: Path, path: Path) -> None:
    """Rename a directory that the disk has; remove the one that had the name.

    That takes two renames: in between a reader finds no directory, and never parts of two. If the second one
    fails, the old directory gets its name back. A process that is killed in between leaves it under
    ``.NAME.replaced-*``, until the next one is in place.
    """
    if not path.exists():
        os.rename(scratch, path)
        sync_directory(path.parent)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside = _beside(path, _REPLACED)
        os.rename(path, aside)
        try:
            os.rename(scratch, path)
        except BaseException:
            os.rename(aside, path)
            raise
    finally:
        os.close(descriptor)
    sync_directory(path.parent)
    _remove_leftovers(path, _REPLACED)


def make_directory(path: Path) -> None:
    """Make a directory and its parents where they do not exist, and return when the disk has them.

    Raises:
        OSError: the system refuses, or something else has the name of one of them.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)


def sync_directory(path: Path) -> None:
    """Return when the disk has a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def real_path(path: str | Path) -> Path:
    """Return the path that is written to: the absolute one, with symbolic links followed."""
    return Path(os.path.realpath(path))


def _beside(path: Path, infix: str) -> Path:
    return path.with_name(f".{path.name}{infix}{secrets.token_hex(4)}")


def _claim(path: Path, create: Callable[[Path], int]) -> tuple[int, Path]:
    """Create a temporary beside a path and lock it; return its descriptor and its path."""
    _remove_leftovers(path, _PARTIAL)
    while True:
        scratch = _beside(path, _PARTIAL)
        descriptor = create(scratch)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # no locks here, so nobody removes it either
            return descriptor, scratch
        # Before it was locked, another writer may have taken it for a leftover.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(scratch), os.fstat(descriptor)):
                return descriptor, scratch
        os.close(descriptor)


def _remove_leftovers(path: Path, infix: str) -> None:
    """Remove what nobody holds of the temporaries beside a path."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}{infix}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
            finally:
                os.close(descriptor)
