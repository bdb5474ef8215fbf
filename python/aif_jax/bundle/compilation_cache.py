"""Compiled programs kept on disk, so that the next process that loads a bundle compiles nothing.

An executable for a CPU is machine code for that CPU's features: on another one it may end the process with an
illegal instruction. So a cache has one folder for each kind of machine, named by a hash of all that the code
depends on (`machine_facts`), and several kinds may share one place.

JAX's own persistent cache is neither used nor touched: it is one for the whole process, it is asked only
after a program was read, traced and lowered (here a key needs none of it), and what its key says of a CPU is
not promised.

Whoever may write to a cache can run code in the processes that read it, so a folder that anyone may write to
is refused. Nothing is ever removed from a cache; it may be deleted at any time.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from aif_jax import _native, kernels, machine
from aif_jax.errors import ConfigError

VARIABLE = "AIF_JAX_COMPILATION_CACHE"
"""Environment variable that names a cache for every bundle that is loaded without one of its own."""
_MAGIC = b"aif_jax executable 1\n"
_FACTS = "machine.json"
_SUFFIX = ".executable"


@dataclasses.dataclass(slots=True)
class CacheCounts:
    """What a cache did for one bundle.

    Attributes:
        loaded: programs that were read, and not compiled.
        missing: programs that were not there.
        broken: entries that were there and could not be used; the program was compiled, the entry replaced.
        saved: programs that were written.
        not_saved: programs that could not be written.
        trouble: why the last one was broken or not saved; empty if none was.
    """

    loaded: int = 0
    missing: int = 0
    broken: int = 0
    saved: int = 0
    not_saved: int = 0
    trouble: str = ""


class CompilationCache:
    """Executables of one kind of machine in a directory. Safe to use from several threads and processes.

    Args:
        place: the directory that all kinds of machines share; made if absent.
        facts: all that machine code depends on, by name; see `machine_facts`.

    Raises:
        ConfigError: the place is no directory, cannot be made, belongs to another user, or is open to all.
    """

    def __init__(self, place: str | Path, facts: Mapping[str, str]):
        self.facts = dict(facts)
        self._digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        self.place = Path(place).expanduser()
        self.directory = self.place / f"{facts.get('backend', 'unknown')}-{self._digest[:20]}"
        self._counts = CacheCounts()
        self._counting = threading.Lock()
        for folder in (self.place, self.directory):
            _make_trusted(folder)
        described = self.directory / _FACTS
        if not described.exists():
            with contextlib.suppress(
                OSError
            ):  # for people only; a cache that cannot be written to still serves
                _write_whole(described, json.dumps(self.facts, indent=1, sort_keys=True).encode())

    def load(self, entry: str, in_tree: Any, out_tree: Any, run: Callable[[Any], Any]) -> Any | None:
        """Return an executable that was saved on this kind of machine, or ``None``; never raises.

        Args:
            entry: name of the program and its sizes.
            in_tree: structure of its arguments, as ``(args, kwargs)``.
            out_tree: structure of its results.
            run: runs it once: XLA may find only then that an executable lacks its code.
        """
        try:
            content = (self.directory / (entry + _SUFFIX)).read_bytes()
        except FileNotFoundError:
            self._count("missing")
            return None
        except OSError as error:
            self._count("broken", f"{entry}: {error}")
            return None
        head = len(_MAGIC)
        mark, payload = content[head : head + 32], content[head + 32 :]
        if not content.startswith(_MAGIC) or mark != self._mark(entry, payload):
            self._count(
                "broken", f"{entry}: the file is damaged, or was written for another program or machine"
            )
            return None
        try:
            compiled = _revived(payload, in_tree, out_tree, run)
        except Exception as error:  # whatever XLA refuses it with, the program can still be compiled
            self._count("broken", f"{entry}: {type(error).__name__}: {error}")
            return None
        self._count("loaded")
        return compiled

    def save(self, entry: str, compiled: Any, in_tree: Any, out_tree: Any, run: Callable[[Any], Any]) -> None:
        """Keep an executable under its name, whole or not at all; what prevents it is counted, never raised.

        Only one that can be read back and run is kept: XLA writes no code for an executable that was itself
        read from JAX's own persistent cache. The arguments are those of `load`.
        """
        try:
            payload, found_in, found_out = serialize_executable.serialize(compiled)
            if (found_in, found_out) != (in_tree, out_tree):
                raise ValueError(
                    f"it takes {found_in} and returns {found_out}, expected {in_tree} and {out_tree}"
                )
            _revived(payload, in_tree, out_tree, run)
            _write_whole(self.directory / (entry + _SUFFIX), _MAGIC + self._mark(entry, payload) + payload)
        except (
            Exception
        ) as error:  # a backend that cannot serialise, a full disk: the program is there and runs
            self._count("not_saved", f"{entry}: {type(error).__name__}: {error}")
        else:
            self._count("saved")

    def counts(self) -> CacheCounts:
        """Return what the cache did so far, as a copy."""
        with self._counting:
            return dataclasses.replace(self._counts)

    def stats(self) -> dict[str, Any]:
        """Return what the cache did so far, by name, and its ``directory``."""
        return {"directory": str(self.directory), **dataclasses.asdict(self.counts())}

    def size(self) -> tuple[int, int]:
        """Return the programs kept for this kind of machine and their bytes."""
        return _size(self.directory)

    def explain(self) -> str:
        """Say in words where the cache is and what it did."""
        counts = self.counts()
        text = (
            f"compilation cache {self.directory}: {counts.loaded} programs loaded, "
            f"{counts.missing} not there, {counts.saved} saved"
        )
        if counts.broken or counts.not_saved:
            text += f", {counts.broken} broken, {counts.not_saved} not saved; the last: {counts.trouble}"
        return text

    def _count(self, name: str, trouble: str = "") -> None:
        with self._counting:
            setattr(self._counts, name, getattr(self._counts, name) + 1)
            if trouble:
                self._counts.trouble = next(iter(trouble.splitlines()))[:300]

    def _mark(self, entry: str, payload: bytes) -> bytes:
        """Checksum of an entry's content, its name and its machine: a moved file is none either."""
        return hashlib.sha256(f"{self._digest}\0{entry}\0".encode() + payload).digest()


def machine_facts(*, kernel_abi: int) -> dict[str, str]:
    """Return what machine code of a program depends on, the program and its sizes aside.

    Initialises JAX's backend and registers the kernels.

    Args:
        kernel_abi: version of the custom calls.

    Raises:
        ConfigError: the environment variable ``AIF_JAX_KERNELS`` names kernels that this CPU cannot run.
    """
    device = _device()
    levels = kernels.implementations()["kernels"]
    options = ("jax_enable_x64", "jax_disable_most_optimizations", "jax_default_matmul_precision")
    return {
        **machine.identity(),
        "aif_jax": _native.__version__,
        "kernel_abi": str(kernel_abi),
        "kernels": " ".join(f"{name}={level}" for name, level in sorted(levels.items())),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "backend": device.platform,
        "backend_version": str(device.client.platform_version),
        "device": f"{device.device_kind}, {device.id} of {len(jax.devices())}",
        # XLA divides work among the threads that it will have.
        "xla_pool": str(machine.xla_pool_size()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_options": " ".join(f"{name}={jax.config.values.get(name)}" for name in options),
    }


def open_cache(place: str | Path | None, *, kernel_abi: int) -> CompilationCache | None:
    """Return the cache at a place, or at the one that `VARIABLE` names; ``None`` if neither says where.

    Raises:
        ConfigError: the place cannot be a cache; see `CompilationCache`.
    """
    place = os.environ.get(VARIABLE, "") if place is None else place
    return CompilationCache(place, machine_facts(kernel_abi=kernel_abi)) if str(place) else None


def cache_size(place: str | Path) -> tuple[int, int, int]:
    """Return how many kinds of machines share a cache, how many programs they keep, and the bytes."""
    place = Path(place).expanduser()
    folders = [folder for folder in place.iterdir() if (folder / _FACTS).is_file()] if place.is_dir() else []
    sizes = [_size(folder) for folder in folders]
    return len(folders), sum(count for count, _ in sizes), sum(size for _, size in sizes)


def _size(folder: Path) -> tuple[int, int]:
    sizes = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def _revived(payload: bytes, in_tree: Any, out_tree: Any, run: Callable[[Any], Any]) -> Any:
    compiled = serialize_executable.deserialize_and_load(
        payload, in_tree, out_tree, execution_devices=[_device()]
    )
    run(compiled)
    return compiled


def _device() -> Any:
    chosen = jax.config.values.get("jax_default_device")
    return chosen if isinstance(chosen, jax.Device) else jax.devices()[0]


def _make_trusted(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ConfigError(
            f"compilation cache: {folder} is no directory and cannot be made one ({error.strerror}); name "
            f"another place, or none (unset {VARIABLE})."
        ) from error
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"compilation cache: {folder} belongs to user {found.st_uid}, expected user {os.geteuid()} or "
            "root: who writes to it can run code in this process. Name another place, or change its owner."
        )
    if found.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"compilation cache: anyone may write to {folder}, and who writes to it can run code in this "
            f"process; run: chmod o-w {folder}"
        )


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there: readers see all of it or none."""
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
