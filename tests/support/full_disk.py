"""A disk without room."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096


@contextlib.contextmanager
def limited_file_size(room: int) -> Iterator[None]:
    """Limit the size of files that this process writes to some bytes, which needs no privilege."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def filled_disk(folder: Path, room: int) -> Iterator[None]:
    """Fill the disk of a folder, which should be small, but for some bytes."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as stream:
        with contextlib.suppress(OSError):
            while True:
                stream.write(bytes(PAGE))
        stream.truncate(stream.tell() - -(-room // PAGE) * PAGE)
        yield
    filler.unlink()
