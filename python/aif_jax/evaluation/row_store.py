"""The finished rows of a study, a small file each: to go on from, to share, and to make the table of."""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aif_jax.errors import DataError
from aif_jax.evaluation.row import Row

FORMAT = 1
_FACTS = "facts"
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


class RowStore:
    """A folder of rows, ``VARIANT-SEED.npz``: the facts as JSON text, and integers for each user.

    A row appears whole or not at all, so a run that is killed leaves nothing half written. Files may be
    copied from one folder to another; whether rows belong together is for `aif_jax.evaluation.Study` to say.

    Args:
        folder: is made with the first row.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows, by the names of their files."""
        for path in sorted(self.folder.glob("*.npz")):
            yield _read(path)

    def get(self, variant: str, seed: int) -> Row | None:
        """Return a row, or ``None`` if it is not there.

        Raises:
            DataError: its file is broken, or of another release.
        """
        path = self.folder / f"{variant}-{seed}.npz"
        return _read(path) if path.exists() else None

    def put(self, row: Row) -> None:
        """Keep a row, in place of what has its name, and wait until the disk has it."""
        buffer = io.BytesIO()
        facts = np.frombuffer(json.dumps({"format": FORMAT, **row.facts()}).encode(), np.uint8)
        arrays = {_FACTS: facts, **row.arrays()}
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its keywords are declared as one
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{row.name}.npz"
        beside = path.with_suffix(".part")
        with open(beside, "wb") as stream:
            stream.write(buffer.getvalue())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)


def _read(path: Path) -> Row:
    try:
        # By its bytes, so that no file stays open when they are no archive.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        facts = json.loads(arrays.pop(_FACTS).tobytes())
        written = facts.pop("format")
        if written == FORMAT:
            return Row.from_parts(facts, arrays)
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as a row of a study ({error}); copy it again, or remove it and it is "
            "trained again."
        ) from error
    raise DataError(
        f"{path}: is a row of format {written}, expected {FORMAT}; read it with the release that wrote it, "
        "or remove it and it is trained again."
    )
