"""The snapshot file: rows of a table with their keys, checksummed, replaced in one rename.

Layout: an 8-byte magic, the header's length (uint64), the header's SHA-256 (32 bytes), the header (JSON,
UTF-8), then the sections, each at a multiple of 64 bytes: ``keys`` (uint64), one per column, and
``names`` (string ids, each followed by a zero byte) where ids are strings. All numbers are little-endian. The
header gives offset, size, dtype, shape and SHA-256 of every section and the size of the file, so a file cut
at any byte, or changed in any byte that is read, is refused.

A snapshot is written under a name of its own (``NAME.partial-*``) and renamed over the old one when the disk
has all of it: a crash leaves the previous snapshot as it was, and at worst a partial file to delete.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from aif_jax.bundle.files import make_directory, sync_directory
from aif_jax.errors import ItemIndexError

_MAGIC = b"AIFROWS1"
_PREFIX = len(_MAGIC) + 8 + 32
_ALIGN = 64
_DTYPES = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8), "int32": np.dtype(np.int32),
    "uint32": np.dtype(np.uint32), "uint64": np.dtype(np.uint64),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one file holds.

    Attributes:
        kind: what the rows are: ``item_index`` or ``behaviour_table``.
        version: version of the bundle that computed them.
        keys: uint64 ``[n]``.
        columns: by name, each ``[n, ...]``.
        names: the string id of each key, or ``None`` where ids are integers.
        notes: anything else worth keeping, JSON.
    """

    kind: str
    version: str
    keys: np.ndarray
    columns: Mapping[str, np.ndarray]
    names: list[str] | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, replacing what stands at ``path`` only when the new one is complete.

    Args:
        path: the file; parent directories that do not exist are made.
        snapshot: what to write.

    Raises:
        ItemIndexError: a string id holds a zero byte, which the format uses as separator; ``path`` is a
            directory; or no file can be made there.
    """
    path = Path(path)
    if path.is_dir():
        raise ItemIndexError(f"{path}: is a directory; expected the name of the file to write.")
    sections: dict[str, np.ndarray] = {"keys": snapshot.keys}
    sections |= {f"column:{name}": column for name, column in snapshot.columns.items()}
    if snapshot.names is not None:
        for name in snapshot.names:
            if "\0" in name:
                raise ItemIndexError(
                    f"id {name!r}: holds a zero character, which a snapshot cannot keep; rename it."
                )
        joined = b"".join(name.encode() + b"\0" for name in snapshot.names)
        sections["names"] = np.frombuffer(joined, np.uint8)
    entries: dict[str, dict[str, Any]] = {}
    contiguous = {name: np.ascontiguousarray(array) for name, array in sections.items()}
    position = 0
    for name, array in contiguous.items():
        position = _aligned(position)
        entries[name] = {
            "offset": position, "bytes": array.nbytes, "dtype": array.dtype.name, "shape": list(array.shape),
            "sha256": hashlib.sha256(_raw(array)).hexdigest(),
        }  # fmt: skip
        position += array.nbytes
    header = {
        "kind": snapshot.kind, "version": snapshot.version, "rows": len(snapshot.keys),
        "notes": dict(snapshot.notes), "sections": entries, "body_bytes": position,
    }  # fmt: skip
    encoded = json.dumps(header).encode()
    body = _aligned(_PREFIX + len(encoded))
    try:
        make_directory(path.parent)
        descriptor, scratch = tempfile.mkstemp(prefix=f"{path.name}.partial-", dir=path.parent)
    except OSError as error:
        raise ItemIndexError(
            f"{path}: cannot be written ({error.strerror}: {error.filename}); expected a path under a "
            "directory that can be written to."
        ) from error
    try:
        with open(descriptor, "wb") as stream:
            stream.write(
                _MAGIC + len(encoded).to_bytes(8, "little") + hashlib.sha256(encoded).digest() + encoded
            )
            for name, array in contiguous.items():
                stream.write(b"\0" * (body + entries[name]["offset"] - stream.tell()))
                stream.write(_raw(array))
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_snapshot(path: Path, *, kind: str | None = None) -> Snapshot:
    """Read a snapshot and check every byte that is used.

    Args:
        path: the file.
        kind: what it must hold; ``None`` for anything.

    Returns:
        The snapshot; its arrays are read-only views of the mapped file.

    Raises:
        ItemIndexError: the file is missing, cut short, altered, or holds another kind of rows.
    """
    path = Path(path)
    fix = "take an older snapshot, or build the rows again"
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    except OSError as error:
        raise ItemIndexError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    if size < _PREFIX or data[: len(_MAGIC)].tobytes() != _MAGIC:
        raise ItemIndexError(
            f"{path}: is not a snapshot ({size} bytes, no {_MAGIC.decode()} at its start); {fix}."
        )
    length = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 8].tobytes(), "little")
    if size < _PREFIX + length:
        raise ItemIndexError(
            f"{path}: has {size} bytes, its header alone needs {_PREFIX + length}: cut short; {fix}."
        )
    encoded = data[_PREFIX : _PREFIX + length].tobytes()
    if hashlib.sha256(encoded).digest() != data[_PREFIX - 32 : _PREFIX].tobytes():
        raise ItemIndexError(f"{path}: its header does not have the hash that it says: altered; {fix}.")
    header = json.loads(encoded)
    if kind not in (None, header["kind"]):
        raise ItemIndexError(
            f"{path}: holds a snapshot of kind {header['kind']!r}, expected {kind!r}; check the path."
        )
    body = _aligned(_PREFIX + length)
    if size != (expected := body + header["body_bytes"]):
        raise ItemIndexError(f"{path}: has {size} bytes, expected {expected}; {fix}.")
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header["sections"].items():
        start = body + entry["offset"]
        raw = data[start : start + entry["bytes"]]
        digest = hashlib.sha256(raw.data).hexdigest()
        if digest != entry["sha256"]:
            raise ItemIndexError(
                f"{path}: section {name!r} has the SHA-256 {digest}, expected {entry['sha256']}; {fix}."
            )
        arrays[name] = np.asarray(raw).view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    names = None
    if "names" in arrays:
        names = arrays["names"].tobytes().decode().split("\0")[:-1]
    return Snapshot(
        kind=header["kind"],
        version=header["version"],
        keys=arrays["keys"],
        columns={n.removeprefix("column:"): a for n, a in arrays.items() if n.startswith("column:")},
        names=names,
        notes=header["notes"],
    )


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _aligned(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN
