"""The directory of a bundle: files that vouch for each other, written whole or not at all.

`manifest.json` lists the size and the SHA-256 of every other file, and carries the SHA-256 of itself (without
that entry) as the bundle's version. Nothing in a bundle is ever unpickled or executed as Python.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from aif_jax.config import Precision, check_precision
from aif_jax.errors import BundleError

Stage = Literal["behaviour", "item", "user", "stage"]
Kind = Literal["native", "portable"]
STAGES: tuple[Stage, ...] = get_args(Stage)
KINDS: tuple[Kind, ...] = get_args(Kind)

FORMAT = 1
KERNEL_ABI = 2
"""Version of the custom calls' operands and meaning; a ``native`` program of another one is not run."""

MANIFEST = "manifest.json"
CONFIG, WEIGHTS, GOLDEN = "config.json", "weights.safetensors", "golden.safetensors"
_RESTORE = "copy the bundle again from where it was exported, or export it again"


def canonical_json(values: Any) -> bytes:
    """Return JSON bytes that depend on the values alone: sorted keys, no spaces, UTF-8."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def write_bundle_files(
    path: Path, files: Mapping[str, bytes], header: Mapping[str, Any], *, overwrite: bool
) -> str:
    """Write a bundle directory beside its place and move it there in one rename.

    Args:
        path: where the bundle shall be; parent directories that do not exist are made.
        files: contents by name; a name may hold one ``/``.
        header: what else the manifest says (jax version, kernel ABI).
        overwrite: replace a bundle that is there already. Between the two renames that this takes, a reader
            finds no bundle; it never finds half of one.

    Returns:
        The version: the SHA-256 of the manifest, in hexadecimal.

    Raises:
        BundleError: something is there already and ``overwrite`` is off, what is there is no bundle, or the
            directory cannot be made.
    """
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise BundleError(
                f"{path}: exists already; expected a new path. Choose another, or pass overwrite=True."
            )
        if not (path / MANIFEST).is_file():
            raise BundleError(
                f"{path}: is not a bundle (no {MANIFEST} in it), so it is not overwritten; "
                "choose another path, or remove it by hand."
            )
    manifest: dict[str, Any] = {
        "format": FORMAT,
        **header,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    version = hashlib.sha256(canonical_json(manifest)).hexdigest()
    manifest["version"] = version
    try:
        make_directory(path.parent)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be written ({error.strerror}: {error.filename}); expected a path under a "
            "directory that can be written to."
        ) from error
    try:
        for name, content in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
            target = scratch / name
            target.parent.mkdir(exist_ok=True)
            write_durably(target, content)
        scratch.chmod(0o755)
        for folder in {(scratch / name).parent for name in files} | {scratch}:
            sync_directory(folder)
        if path.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.replaced-", dir=path.parent))
            os.rename(path, aside / "bundle")
            try:
                os.rename(scratch, path)
            except BaseException:
                os.rename(aside / "bundle", path)
                aside.rmdir()
                raise
            sync_directory(path.parent)
            shutil.rmtree(aside)
        else:
            os.rename(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_directory(path.parent)
    return version


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: it is missing, unreadable, altered, or of another format.
    """
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(
            f"{file}: not found; expected the directory that export_bundle wrote. "
            f"Check the path, or {_RESTORE}."
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{path}: is a file; expected the directory that export_bundle wrote.") from None
    except ValueError as error:
        raise BundleError(f"{file}: is not JSON ({error}); {_RESTORE}.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{file}: has no list of files; {_RESTORE}.")
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{file}: has format {manifest.get('format')!r}, this release reads {FORMAT}; "
            "export the model again with this release, or load the bundle with the one that wrote it."
        )
    given = manifest.get("version")
    expected = hashlib.sha256(
        canonical_json({key: value for key, value in manifest.items() if key != "version"})
    ).hexdigest()
    if given != expected:
        raise BundleError(
            f"{file}: says version {given}, but its contents have the hash {expected}: "
            f"it was altered; {_RESTORE}."
        )
    return manifest


def read_verified(path: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """Read one file of a bundle and check it against the manifest.

    Raises:
        BundleError: the file is not listed, is missing, or has another size or hash than the manifest says.
    """
    file = Path(path) / name
    entry = manifest["files"].get(name)
    if entry is None:
        raise BundleError(
            f"{file}: is not in the manifest, which lists {sorted(manifest['files'])}; {_RESTORE}."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{file}: cannot be read ({error.strerror}), but the manifest lists it; {_RESTORE}."
        ) from error
    if len(content) != entry["bytes"]:
        raise BundleError(f"{file}: has {len(content)} bytes, expected {entry['bytes']}; {_RESTORE}.")
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise BundleError(f"{file}: has the SHA-256 {digest}, expected {entry['sha256']}; {_RESTORE}.")
    return content


def precision_of(description: Mapping[str, Any]) -> Precision:
    """Return the precision that a bundle's description names; older bundles, float32 all of them, name none.

    Raises:
        ConfigError: this release knows no such precision.
    """
    precision = description.get("precision", "float32")
    check_precision(precision)
    return precision


def write_durably(file: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def make_directory(path: Path) -> None:
    """Make a directory and its parents where they do not exist, and wait until the disk has them.

    Raises:
        OSError: the system refuses, or something else has the name of one of them.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)


def sync_directory(path: Path) -> None:
    """Wait until the disk has a directory's entries, where the system can say so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
