"""Writing of files: whatever ends the process, a name has its old content or all of the new.

Everything that the package writes goes through here (`tests/tidy.py` refuses other ways). New content is
written beside its place, under ``.NAME.partial-*``, and renamed when the disk has it and it is proven. Such a
temporary is locked for as long as it is written. One that nobody locks was left by a killed process: the next
write of the same name removes it, and so does `remove_leftovers`. (On a file system without locks it stays.)

A symbolic link is followed: it stays, and what it points to is replaced. What is no regular file, or begins
otherwise than a file of its kind, is not replaced.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

from aif_jax.errors import WriteError

_PARTIAL, _REPLACED = ".partial-", ".replaced-"
_LEFTOVER = re.compile(rf"\.(?P<name>.+){_PARTIAL}[0-9a-f]{{8}}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_EXCHANGE = 2
"""Flag of Linux's ``renameat2``: two paths change places."""
_KINDS = {
    stat.S_IFDIR: "a directory", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a symbolic link in a circle",
}  # fmt: skip
_T = TypeVar("_T")


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o666, begins: bytes = b"") -> None:
    """Write a file, and return when the disk has it.

    Args:
        path: the file; its directory must exist.
        data: all of its content; text as UTF-8.
        mode: permissions of a new file, less the umask's. A file that is replaced keeps its own.
        begins: first bytes of a file of this kind; one that begins otherwise, unless empty, is not replaced.

    Raises:
        WriteError: the system refuses, or what has the name is not replaced. The old content is still there,
            unless only the directory could not be synced: then the new one is, and a power failure may bring
            the old one back.
    """
    content = data.encode() if isinstance(data, str) else data
    place = real_path(path)
    with refusals(path, len(content)):
        check_replaceable_file(path, begins)
        with temporary_file(place, mode=mode) as (stream, scratch):
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            move_into_place(scratch, place)


def write_directory(path: Path, files: Mapping[str, bytes], prove: Callable[[Path], _T]) -> _T:
    """Write a directory of files, whole or not at all, and return when the disk has it.

    Args:
        path: of the directory; parents that do not exist are made. A directory that is there is replaced; see
            `replace_directory`. The caller has made sure that it may be; see `foreign_names`.
        files: contents by name; a name may hold one ``/``.
        prove: called with the written directory, under its temporary path, before it gets its name; if it
            raises, the old directory stays.

    Returns:
        The result of ``prove``.

    Raises:
        WriteError: the system refuses; what was there is still there.
    """
    place = real_path(path)
    with refusals(path, sum(map(len, files.values()))):
        make_directory(place.parent)
        _check_kind(path, stat.S_IFDIR)
        with temporary_directory(place) as scratch:
            for name, content in files.items():
                target = scratch / name
                target.parent.mkdir(exist_ok=True)
                with open(target, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            for folder in {(scratch / name).parent for name in files} | {scratch}:
                sync_directory(folder)
            proven = prove(scratch)
            replace_directory(scratch, place)
    return proven


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file to be read, without waiting: a pipe would wait for a writer, and a device may never end.

    Raises:
        OSError: the system refuses, it is no regular file, or no file can have such a name.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"{error}: no file has such a name") from error
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return open(descriptor, "rb")
    os.close(descriptor)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, f"Is {_KINDS[kind]}, expected a file")


def read_file(path: str | Path) -> bytes:
    """Return the content of a file; see `open_file`."""
    with open_file(path) as stream:
        return stream.read()


@contextlib.contextmanager
def refusals(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the `OSError` of a block that writes into a `WriteError`.

    Args:
        path: what is written.
        needed: its bytes, if known.

    Raises:
        WriteError: also if no file can have such a name.
    """
    if _is_impossible(path):
        refused = WriteError(f"{str(path)!r}: holds what no name of a file can; choose another path.")
        refused.errno, refused.strerror = errno.EINVAL, "no file has such a name"
        raise refused
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise _refused(path, error, needed) from error


@contextlib.contextmanager
def temporary_file(path: Path, *, mode: int = 0o666) -> Iterator[tuple[IO[bytes], Path]]:
    """Make a file beside ``path``, to be written, synced and then moved there by `move_into_place`.

    If it is not moved, it is removed at the end of the block. What is there must be replaceable, see
    `check_replaceable_file`.

    Args:
        path: where it will be, from `real_path`.
        mode: see `write_atomic`.

    Yields:
        The file, open for reading and writing, and its temporary path.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor, scratch = _claim(path, lambda name: os.open(name, flags, mode))
    stream = open(descriptor, "w+b")  # noqa: SIM115
    try:
        _like(path, descriptor)
        yield stream, scratch
    finally:
        scratch.unlink(missing_ok=True)
        close_unflushed(stream)


def close_unflushed(stream: IO[bytes]) -> None:
    """Close a file whose content is synced, or is not needed, so that it may stay unflushed."""
    with contextlib.suppress(OSError):
        stream.close()


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

    On Linux the two change places in one step. On systems and file systems that cannot do that (macOS, NFS)
    it takes two renames: in between a reader finds no directory, and never parts of two. If the second one
    fails, the old directory gets its name back. A process that is killed in between leaves it under
    ``.NAME.replaced-*``, until the next one is in place.
    """
    if not path.exists():
        os.rename(scratch, path)
        sync_directory(path.parent)
        return
    descriptor = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _like(path, descriptor)
    finally:
        os.close(descriptor)
    if not _exchanged(scratch, path):
        _rename_twice(scratch, path)
    sync_directory(path.parent)
    _remove_leftovers(path, _REPLACED)


def check_replaceable_file(path: Path, begins: bytes) -> None:
    """Check that a file may be written to a path, which may be a symbolic link; see `write_atomic`.

    Raises:
        WriteError: what has the name is no regular file, or neither empty nor begins so.
    """
    _check_kind(path, stat.S_IFREG)
    with contextlib.suppress(FileNotFoundError), open_file(path) as stream:
        found = stream.read(len(begins))
        if found and found != begins:
            raise WriteError(
                f"{path}: is a file of another format (it begins with {found!r}, expected {begins!r}), which "
                "is not replaced; choose another path, or remove it by hand."
            )


def foreign_names(path: Path, known: Collection[str]) -> list[str]:
    """Return the files of a directory and of those in it, by relative path, that are not among known ones."""
    found = [
        Path(folder, name).relative_to(path).as_posix()
        for folder, folders, names in os.walk(path)
        for name in (*names, *(each for each in folders if Path(folder, each).is_symlink()))
    ]
    return sorted(set(found) - set(known))


def remove_leftovers(directory: Path) -> None:
    """Remove the temporaries that killed processes left in a directory, of whatever name."""
    with contextlib.suppress(OSError):
        for name in {
            found["name"] for entry in os.listdir(directory) if (found := _LEFTOVER.fullmatch(entry))
        }:
            _remove_leftovers(directory / name, _PARTIAL)


def make_directory(path: Path) -> None:
    """Make a directory and its parents where they do not exist, and return when the disk has them.

    Raises:
        WriteError: the system refuses, or something else has the name of one of them.
    """
    with refusals(path):
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
    """Return the path that is written to: the absolute one, with symbolic links followed.

    Raises:
        WriteError: no file can have such a name, or it is relative to a directory that is gone.
    """
    with refusals(Path(path)):
        return Path(os.path.realpath(path))


def _is_impossible(path: Path) -> bool:
    try:
        return b"\0" in os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        return True


def _refused(path: Path, error: OSError, needed: int | None) -> WriteError:
    # The extension gives errors of the system as text alone: "No space left on device (os error 28)".
    code = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno or (int(code[1]) if code else None)
    reason = error.strerror or (os.strerror(number) if number else str(error))
    if error.filename and Path(os.fsdecode(error.filename)) != path:
        reason = f"{reason}: {os.fsdecode(error.filename)}"
    if number in _FULL:
        size = "" if needed is None else f" It needs {needed:,} bytes{_free(path)}."
        advice = f"what was there is as it was.{size} Make room, or raise the limit, and write it again."
    elif number == errno.EIO:
        advice = "what was there is as it was. Check the disk."
    else:
        advice = "expected a path under a directory that can be written to."
    refused = WriteError(f"{path}: cannot be written ({reason}); {advice}")
    refused.errno, refused.strerror = number, reason
    return refused


def _free(path: Path) -> str:
    """Return in words the room that a full disk has; empty if the system does not tell."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            return f", and {found.f_bavail * found.f_frsize:,} are free there"
    return ""


def _check_kind(path: Path, expected: int) -> None:
    """Raise if something of another kind than expected (`stat.S_IFREG`, `stat.S_IFDIR`) has the name."""
    try:
        found = stat.S_IFMT(os.lstat(real_path(path)).st_mode)
    except FileNotFoundError:
        return
    if found != expected:
        wanted = "directory" if expected == stat.S_IFDIR else "file"
        raise WriteError(
            f"{path}: is {_KINDS.get(found, 'a file')}, which is not replaced; expected the name of a "
            f"{wanted}. Choose another path."
        )


def _like(path: Path, descriptor: int) -> None:
    """Give a temporary the permissions, and if the system lets it the owner, of what it will replace."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        made = os.fstat(descriptor)
        if (made.st_uid, made.st_gid) != (found.st_uid, found.st_gid):
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))


def _exchanged(one: Path, other: Path) -> bool:
    """Let two absolute paths change places in one step; return False where that cannot be done.

    Raises:
        OSError: the system refuses for another reason.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    rename.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    if rename(0, os.fsencode(one), 0, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _rename_twice(scratch: Path, path: Path) -> None:
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
    for leftover in path.parent.glob(f".{glob.escape(path.name)}{infix}{'[0-9a-f]' * 8}"):
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
