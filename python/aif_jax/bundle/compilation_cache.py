"""Cache of compiled programs on disk, so that the next process that loads a bundle compiles nothing.

An executable for a CPU is machine code for that CPU's features: on another one it may end the process with an
illegal instruction. So a cache has one folder for each kind of machine, named by a hash of all that the code
depends on (`machine_facts`), and several kinds may share one place.

JAX's own persistent cache is neither used nor changed: it is one for the whole process, it is consulted only
after a program was read, traced and lowered (here a key needs none of this), and its key does not promise to
cover a CPU's features.

Anyone who may write to a cache can run code in the processes that read it, so a folder that is writable for
everybody is refused. Nothing is ever removed from a cache; it may be deleted at any time.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from aif_jax import _native, kernels, machine
from aif_jax.errors import ConfigError
from aif_jax.files import read_file, remove_leftovers, write_atomic

VARIABLE = "AIF_JAX_COMPILATION_CACHE"
"""Environment variable that names a cache for every bundle that is loaded without one of its own."""
_MAGIC = b"aif_jax executable 1\n"
_FACTS = "machine.json"
_SUFFIX = ".executable"


@dataclasses.dataclass(slots=True)
class CacheCounts:
    """Counts of a cache for one bundle.

    Attributes:
        loaded: programs that were read, and not compiled.
        missing: programs that were not there.
        broken: entries that could not be used; the program was compiled, the entry replaced.
        saved: programs that were written.
        not_saved: programs that could not be written.
        trouble: reason why the last one was broken or not saved; empty if none was.
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
        ConfigError: the place is not a directory, cannot be made, belongs to another user, or is writable for
            everybody.
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
        remove_leftovers(self.directory)
        described = self.directory / _FACTS
        if not described.exists():
            # For people only; a cache that cannot be written to still serves.
            with contextlib.suppress(OSError):
                write_atomic(described, json.dumps(self.facts, indent=1, sort_keys=True), mode=0o644)

    def load(self, entry: str, in_tree: Any, out_tree: Any, run: Callable[[Any], Any]) -> Any | None:
        """Return an executable that was saved on this kind of machine, or ``None``; never raises.

        Args:
            entry: name of the program and its sizes.
            in_tree: structure of its arguments, as ``(args, kwargs)``.
            out_tree: structure of its results.
            run: runs it once: XLA may find only then that an executable lacks its code.
        """
        try:
            content = read_file(self.directory / (entry + _SUFFIX))
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
        except Exception as error:  # any refusal by XLA: the program can still be compiled
            self._count("broken", f"{entry}: {type(error).__name__}: {error}")
            return None
        self._count("loaded")
        return compiled

    def save(self, entry: str, compiled: Any, in_tree: Any, out_tree: Any, run: Callable[[Any], Any]) -> None:
        """Keep an executable under its name, whole or not at all; an error is counted, never raised.

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
            content = _MAGIC + self._mark(entry, payload) + payload
            write_atomic(self.directory / (entry + _SUFFIX), content, mode=0o644)
        # A backend that cannot serialise, a full disk: the program is there and runs.
        except Exception as error:
            self._count("not_saved", f"{entry}: {type(error).__name__}: {error}")
        else:
            self._count("saved")

    def counts(self) -> CacheCounts:
        """Return the counts so far, as a copy."""
        with self._counting:
            return dataclasses.replace(self._counts)

    def stats(self) -> dict[str, Any]:
        """Return the counts so far, by name, and its ``directory``."""
        return {"directory": str(self.directory), **dataclasses.asdict(self.counts())}

    def size(self) -> tuple[int, int]:
        """Return the number of programs kept for this kind of machine, and their bytes."""
        return _size(self.directory)

    def explain(self) -> str:
        """Return in words the place of the cache and its counts."""
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
        """Return the checksum of an entry's content, name and machine: a moved file does not match."""
        return hashlib.sha256(f"{self._digest}\0{entry}\0".encode() + payload).digest()


def machine_facts(*, kernel_abi: int) -> dict[str, str]:
    """Return the facts that machine code of a program depends on, besides the program and its sizes.

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
    """Return the cache at a place, or at the one that `VARIABLE` names; ``None`` if neither is given.

    Raises:
        ConfigError: the place cannot be a cache; see `CompilationCache`.
    """
    place = os.environ.get(VARIABLE, "") if place is None else place
    return CompilationCache(place, machine_facts(kernel_abi=kernel_abi)) if str(place) else None


def cache_size(place: str | Path) -> tuple[int, int, int]:
    """Return the number of kinds of machines that share a cache, of their programs, and of the bytes."""
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
            f"compilation cache: {folder} is not a directory and cannot be made one ({error.strerror}); name "
            f"another place, or none (unset {VARIABLE})."
        ) from error
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"compilation cache: {folder} belongs to user {found.st_uid}, expected user {os.geteuid()} or "
            "root: anyone who writes to it can run code in this process. Name another place, or change its "
            "owner."
        )
    if found.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"compilation cache: everybody may write to {folder}, and anyone who does can run code in "
            f"this process; run: chmod o-w {folder}"
        )
