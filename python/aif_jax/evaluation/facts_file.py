"""A small file of facts and arrays: an ``npz`` whose member ``facts`` is JSON text."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.errors import DataError
from aif_jax.evaluation.whole_file import write_whole

_FACTS = "facts"
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


def write_facts(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file, whole or not at all.

    Args:
        path: its folder is made if it does not exist.
        facts: JSON-serialisable.
        arrays: by name, of any shape and dtype but objects.
    """
    buffer = io.BytesIO()
    members: dict[str, Any] = {_FACTS: np.frombuffer(json.dumps(dict(facts)).encode(), np.uint8), **arrays}
    np.savez_compressed(buffer, **members)
    write_whole(path, buffer.getvalue())


def read_facts(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the facts and the arrays of a file.

    Raises:
        DataError: it is no such file, or broken.
    """
    try:
        # By its bytes, so that no file stays open when they are no archive.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        return dict(json.loads(arrays.pop(_FACTS).tobytes())), arrays
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as facts and arrays ({error}); copy it again, or remove it and what it "
            "holds is made again."
        ) from error
