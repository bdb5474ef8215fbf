"""The directory of a bundle: its files, checked against a manifest, written whole or not at all.

`manifest.json` lists the size and the SHA-256 of every other file, and carries the SHA-256 of itself (without
that entry) as the bundle's version. Nothing in a bundle is ever unpickled or executed as Python.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, get_args

from aif_jax.checks import well_formed
from aif_jax.errors import BundleError, WriteError
from aif_jax.features.content_space import CONTENT_SPACE
from aif_jax.files import foreign_names, read_file, write_directory
from aif_jax.strict_json import shortened

Stage = Literal["behaviour", "item", "user", "stage", "extend"]
ProgramKind = Literal["native", "portable"]
STAGES: tuple[Stage, ...] = ("behaviour", "item", "user", "stage")
"""Those of every bundle."""
EXTEND: Stage = "extend"
"""That of a model which keeps columns of behaviours, see `ServedModel.extend`."""
KINDS: tuple[ProgramKind, ...] = get_args(ProgramKind)

FORMAT = 2
KERNEL_ABI = 3
"""Version of the custom calls' operands and meaning; a ``native`` program of another version is not run."""

MANIFEST = "manifest.json"
CONFIG, WEIGHTS, GOLDEN = "config.json", "weights.safetensors", "golden.safetensors"
_NAMES = {
    MANIFEST,
    CONFIG,
    WEIGHTS,
    GOLDEN,
    CONTENT_SPACE,
    *(f"programs/{stage}.{kind}" for stage in (*STAGES, EXTEND) for kind in KINDS),
}
"""Files that a bundle may hold."""
_ATTEMPTS = 3
"""Attempts to read a bundle that is replaced meanwhile."""
_T = TypeVar("_T")
_RESTORE = "copy the bundle again from where it was exported, or export it again"


def stages(*, extends: bool) -> tuple[Stage, ...]:
    """Return the stages of a bundle, with or without `EXTEND`."""
    return (*STAGES, EXTEND) if extends else STAGES


def canonical_json(values: Any) -> bytes:
    """Return JSON bytes that depend on the values alone: sorted keys, no spaces, UTF-8."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def write_bundle_files(
    path: Path,
    files: Mapping[str, bytes],
    header: Mapping[str, Any],
    prove: Callable[[Path], _T],
    *,
    overwrite: bool,
) -> _T:
    """Write a bundle directory, whole or not at all.

    Args:
        path: of the bundle; parent directories that do not exist are made.
        files: contents by name; a name may hold one ``/``.
        header: what else the manifest holds (jax version, kernel ABI).
        prove: loads the new bundle from the path that it is given, before it gets its name.
        overwrite: replace a bundle that is there already; see `aif_jax.files.replace_directory`.

    Returns:
        The result of ``prove``.

    Raises:
        BundleError: something is there already and ``overwrite`` is off, what is there is not a bundle or
            holds other files too, the new bundle does not load, or the directory cannot be written. What was
            there is as it was.
    """
    path = Path(path)
    check_replaceable(path, overwrite=overwrite)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        **header,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    manifest["version"] = hashlib.sha256(canonical_json(manifest)).hexdigest()

    def proven(scratch: Path) -> _T:
        try:
            return prove(scratch)
        except BundleError as error:
            raise BundleError(
                f"{path}: is not written, and what was there is as it was: the new bundle does not load: "
                f"{error}"
            ) from error

    try:
        return write_directory(path, {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}, proven)
    except WriteError as error:
        raise BundleError(str(error)) from error


def check_replaceable(path: Path, *, overwrite: bool) -> None:
    """Check that a bundle may be written to a path.

    Raises:
        BundleError: something is there already and ``overwrite`` is off, or it is not a bundle, or it holds
            files that no bundle has.
    """
    if not path.exists():
        return
    if not overwrite:
        raise BundleError(
            f"{path}: exists already; expected a new path. Choose another, or pass overwrite=True."
        )
    try:
        listed = json.loads(read_file(path / MANIFEST))["files"]
        known = _NAMES | set(listed)
    except (OSError, ValueError, LookupError, TypeError):
        raise BundleError(
            f"{path}: is not a bundle (no {MANIFEST} of one in it), so it is not overwritten; "
            "choose another path, or remove it by hand."
        ) from None
    if foreign := foreign_names(path, known):
        raise BundleError(
            f"{path}: holds {', '.join(foreign[:3])}{' and more' if len(foreign) > 3 else ''} beside the "
            "bundle, so it is not overwritten, which would delete that; move it elsewhere, or choose another "
            "path."
        )


def read_bundle_files(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read and check a bundle's manifest and all its files; again if it was replaced meanwhile.

    Returns:
        The manifest, and the contents by name.

    Raises:
        BundleError: one of them is missing, unreadable or altered.
    """
    manifest = read_manifest(path)
    for _ in range(_ATTEMPTS):
        try:
            return manifest, {name: read_verified(path, manifest, name) for name in manifest["files"]}
        except BundleError:
            before, manifest = manifest, read_manifest(path)
            if before == manifest:
                raise
    raise BundleError(f"{path}: is replaced faster than it can be read; load it when that has ended.")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: it is missing, unreadable, altered, or of another format.
    """
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(read_file(file))
    except FileNotFoundError:
        raise BundleError(
            f"{file}: not found; expected the directory that export_bundle wrote. "
            f"Check the path, or {_RESTORE}."
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{path}: is a file; expected the directory that export_bundle wrote.") from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); {_RESTORE}.") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: is not JSON ({error}); {_RESTORE}.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{file}: has no list of files; {_RESTORE}.")
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{file}: has format {shortened(repr(manifest.get('format')))}, this release (aif_jax "
            f"{importlib.metadata.version('aif_jax')}) reads {FORMAT}; export the model again with this "
            "release, or load the bundle with the one that wrote it."
        )
    for name, entry in manifest["files"].items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise BundleError(f"{file}: lists {shortened(name)!r}, which is no name in a bundle; {_RESTORE}.")
        if not isinstance(entry, dict) or [type(entry.get(key)) for key in ("bytes", "sha256")] != [int, str]:
            raise BundleError(f"{file}: lists no size and hash of {shortened(name)!r}; {_RESTORE}.")
    given = manifest.get("version")
    rest = {key: value for key, value in manifest.items() if key != "version"}
    with well_formed(file, BundleError, _RESTORE):
        expected = hashlib.sha256(canonical_json(rest)).hexdigest()
    if given != expected:
        raise BundleError(
            f"{file}: says version {shortened(repr(given))}, but its contents have the hash {expected}: "
            f"it was altered; {_RESTORE}."
        )
    return manifest


def read_verified(path: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """Read one file of a bundle and check it against the manifest.

    Raises:
        BundleError: the file is not listed, is missing, or has another size or hash than the manifest lists.
    """
    file = Path(path) / name
    entry = manifest["files"].get(name)
    if entry is None:
        raise BundleError(
            f"{file}: is not in the manifest, which lists {sorted(manifest['files'])}; {_RESTORE}."
        )
    try:
        content = read_file(file)
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
