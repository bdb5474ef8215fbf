"""Targets of files: bundles, snapshots, change logs, catalogues, saved models, retrievers and runs."""

import functools
import hashlib
import json
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aif_jax import _native
from aif_jax.bundle import Bundle
from aif_jax.bundle.files import MANIFEST, canonical_json, read_manifest, read_verified
from aif_jax.config import ModelConfig
from aif_jax.errors import AifError
from aif_jax.features import Categorical, Hashing, Schema
from aif_jax.integrations.parquet import ParquetUpdates
from aif_jax.integrations.usearch import TwoTowerRetriever
from aif_jax.models import build_model
from aif_jax.models.store import load_model
from aif_jax.nearline import Delete, Upsert
from aif_jax.nearline.change_log import About, ChangeLog, Deleted, Reached, Rows, read_log
from aif_jax.nearline.row_file import ROWS_AT, open_row_file
from aif_jax.training.identity import differing
from aif_jax.types import ItemRecords, UserRecord

ABOUT = About(
    kind="item_index",
    version="v1",
    columns={"h": (np.dtype(np.float32), (2,)), "rankable": (np.dtype(np.uint8), (1,))},
)
"""The table of the logs that are read."""


@functools.cache
def _room() -> tempfile.TemporaryDirectory[str]:
    """Return a folder of this process, in memory where there is such a place."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="aif-fuzz-", dir=memory if memory.is_dir() else None)


def _place(name: str) -> Path:
    """Return a path at which nothing is."""
    path = Path(_room().name) / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


def _described(data: bytes) -> Any:
    """Return the description of a file; ``None`` if the bytes are the file themselves."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _bytes(value: Any) -> bytes:
    """Return what a description says that bytes are: a character each, or else JSON."""
    if isinstance(value, str):
        return value.encode("latin-1", "replace")
    return json.dumps(value).encode()


def _fields(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def manifest(data: bytes) -> None:
    """A manifest whose own hash is right, or raw bytes; then the files that it lists."""
    folder = _place("manifest")
    folder.mkdir()
    given = _described(data)
    if isinstance(given, dict):
        data = json.dumps(_with_version(given)).encode("utf-8", "surrogatepass")
    (folder / MANIFEST).write_bytes(data)
    (folder / "config.json").write_bytes(b"{}")
    read = read_manifest(folder)
    for name, entry in read["files"].items():
        content = read_verified(folder, read, name)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def _with_version(fields: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in fields.items() if name != "version"}
    try:
        return {**rest, "version": hashlib.sha256(canonical_json(rest)).hexdigest()}
    except (ValueError, TypeError, RecursionError):
        return dict(fields)


def bundle(data: bytes) -> None:
    """A bundle of the given files, with a manifest that lists them rightly: no programs, so it is refused."""
    folder = _place("bundle")
    folder.mkdir()
    given = _fields(_described(data))
    contents = {
        name: _bytes(given.get(name, ""))
        for name in ("config.json", "weights.safetensors", "golden.safetensors", "programs/user.portable")
    }
    (folder / "programs").mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    listed = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    header = {"format": 1, "jax": "0", "kernel_abi": 2, **_fields(given.get("manifest")), "files": listed}
    (folder / MANIFEST).write_text(json.dumps(_with_version(header)))
    Bundle.load(folder)
    raise AssertionError("a bundle without programs was loaded")


def snapshot(data: bytes) -> None:
    """A snapshot with the given footer, rows and sections, whose hashes are right, or raw bytes."""
    path = _place("snapshot")
    given = _described(data)
    path.write_bytes(data if given is None else _snapshot_of(_fields(given)))
    verify = not _fields(given).get("hasty")
    read = open_row_file(path, verify=verify)
    assert read.keys.dtype == np.uint64
    if read.names is not None:
        assert len(read.names) == len(read.keys)
    for name in read.columns:
        assert len(read.column(name)) == len(read.keys)


def _snapshot_of(given: Mapping[str, Any]) -> bytes:
    rows, rest = _bytes(given.get("rows", "")), _bytes(given.get("rest", ""))
    whole = bytearray(b"AIFROWS2".ljust(ROWS_AT, b"\0") + rows)
    whole += b"\0" * (-len(whole) % ROWS_AT if rows else 0)
    blocks = _native.block_checksums(np.frombuffer(rows, np.uint8)) if rows else np.empty(0, np.uint64)
    footer = _fields(given.get("footer"))
    sections = footer.get("sections")
    if isinstance(sections, dict):
        contents = {name: blocks.tobytes() if name == "blocks" else _bytes(c) for name, c in sections.items()}
        footer["sections"] = {}
        for name, content in contents.items():
            whole += b"\0" * (-len(whole) % 64)
            digest = hashlib.sha256(content).hexdigest()
            entry = {"offset": len(whole), "bytes": len(content), "sha256": digest}
            footer["sections"][name] = {**entry, **_fields(_fields(given.get("entries")).get(name))}
            whole += content
    encoded = json.dumps(footer if "footer" not in given or footer else given["footer"]).encode()
    end = len(encoded).to_bytes(8, "little") + hashlib.sha256(encoded).digest()
    return bytes(whole + rest + encoded + end + b"AIFROWS2")


def change_log(data: bytes) -> None:
    """A log of the given records, whose checksums are right, or raw bytes: what is read is written again."""
    path = _place("log")
    given = _described(data)
    path.write_bytes(data if given is None else _log_of(given))
    changes = [change for change, _ in read_log(path, about=ABOUT)]
    copy = _place("copy")
    log = ChangeLog(copy, ABOUT)
    for change in changes:
        match change:
            case Rows(keys, columns, names):
                assert all(len(column) == len(keys) for column in columns.values())
                assert names is None or len(names) == len(keys)
                log.rows(keys, columns, names)
            case Deleted(keys):
                log.deleted(keys)
            case Reached(position):
                log.reached(position)
    log.close()
    again = [change for change, _ in read_log(copy, about=ABOUT)]
    kept = [change for change in changes if isinstance(change, (Rows, Deleted, Reached))]
    assert repr(again) == repr(kept), f"{again!r:.500} instead of {kept!r:.500}"


def _log_of(records: Any) -> bytes:
    log = b""
    for record in records if isinstance(records, list) else [records]:
        kind, body, synced = ([*record, 0, "", 0] if isinstance(record, list) else [record, "", 0])[:3]
        kind, synced = (int(value) & 2**32 - 1 if isinstance(value, int) else 1 for value in (kind, synced))
        content = _bytes(ABOUT.to_json() if body == "about" else body)
        head = struct.pack("<IQQ", kind, len(content), synced)
        log += struct.pack("<I", zlib.crc32(content, zlib.crc32(head))) + head + content
    return log


def parquet(data: bytes) -> None:
    """A file of changes with the given columns, each of a type and values, or raw bytes."""
    folder = _place("changes")
    folder.mkdir()
    given = _described(data)
    if given is None:
        (folder / "1.parquet").write_bytes(data)
    else:
        try:
            arrays = {name: pa.array(values, _TYPES.get(kind)) for name, (kind, values) in given.items()}
            pq.write_table(pa.table(arrays), folder / "1.parquet")
        except (pa.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
            return
    source = ParquetUpdates(folder, endless=False, rows=3)
    read, rows = None, 0
    while (deliveries := source.read(read, 0.0)) is not None:
        for delivery in deliveries:
            assert delivery.position > (read or ("", 0))
            read = delivery.position
            if isinstance(delivery.update, AifError):
                continue
            assert isinstance(delivery.update, (Upsert, Delete))
            rows += len(delivery.update.ids)
    assert rows <= 100_000


_TYPES: dict[Any, pa.DataType | None] = {
    "int": pa.int64(), "uint": pa.uint64(), "byte": pa.int8(), "text": pa.string(), "long": pa.large_string(),
    "view": pa.string_view(), "bytes": pa.binary(), "float": pa.float32(), "half": pa.float16(),
    "flag": pa.bool_(), "ints": pa.list_(pa.int64()), "texts": pa.list_(pa.string()),
    "floats": pa.list_(pa.float32()), "fixed": pa.list_(pa.float32(), 2), "many": pa.large_list(pa.float64()),
    "deep": pa.list_(pa.list_(pa.int64())), "code": pa.dictionary(pa.int32(), pa.string()),
    "day": pa.date32(), "time": pa.timestamp("us"), "exact": pa.decimal128(20, 2), "null": pa.null(),
    "pair": pa.struct([("a", pa.int64())]), "map": pa.map_(pa.string(), pa.int64()),
}  # fmt: skip


def retriever(data: bytes) -> None:
    """A saved retriever with the given notes, whose digests are right, and files of an earlier one."""
    folder = _place("retriever")
    made = _retriever()
    made.save(folder)
    notes, given = json.loads((folder / "retriever.json").read_bytes()), _described(data)
    if isinstance(given, dict):
        data = json.dumps({**notes, **given}).encode()
    (folder / "retriever.json").write_bytes(data)
    again = TwoTowerRetriever.load(folder, made.towers.model, {}.get)
    assert len(again.search(UserRecord(), 3)[0]) == 3


@functools.cache
def _retriever() -> TwoTowerRetriever:
    schema = Schema(item=(Categorical(name="item", encoder=Hashing(buckets=4)),), behaviour_types=("click",))
    model = build_model(ModelConfig(architecture="two_tower", width=4, content_width=1), schema)
    ids = np.arange(3, dtype=np.uint64)
    return TwoTowerRetriever.build(model, ItemRecords(ids, {"item": ids}), {}.get, candidates=3)


def saved_model(data: bytes) -> None:
    """A saved model with the given description and no weights, which is refused before a model is built."""
    if re.search(rb"[0-9]{5}|[eE][+]?[0-9]", data):  # a model of that size would be built
        return
    folder = _place("model")
    folder.mkdir()
    (folder / "model.json").write_bytes(data)
    (folder / "weights.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    load_model(folder)


def run_identity(data: bytes) -> None:
    """Two descriptions of runs: they differ in what is named, the same both ways, or in nothing."""
    given = _described(data)
    if not (isinstance(given, list) and len(given) == 2):
        return
    one, other = map(_fields, given)
    found = differing(one, other)
    assert found == sorted(found)
    assert not differing(one, one) or "NaN" in data.decode("utf-8", "replace")
    named = [{part: value for part, value in each.items() if value is not None} for each in (one, other)]
    if named[0] != named[1] and not found:  # then only defaults are left out
        assert {*one} & {*other} & {"model", "training"}
