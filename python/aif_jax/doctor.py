"""Checks of the environment of an engine, for operators, logs and bug reports.

Every check is a plain function that takes facts and returns a `Check`; `check_environment` collects the
facts. A fact that the system does not report is shown as unknown.
"""

import dataclasses
import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from aif_jax import _native, extras, kernels, machine
from aif_jax.bundle.compilation_cache import VARIABLE, cache_size, open_cache
from aif_jax.bundle.files import KERNEL_ABI
from aif_jax.errors import AifError
from aif_jax.serving.config import EngineConfig

Status = Literal["ok", "note", "problem"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PACKAGES = ("aif_jax", "jax", "jaxlib", "flax", "numpy")
_UNKNOWN = "This system does not report it; nothing to do unless memory or time is short."
_LOW_BYTES = 2**30


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the check.
        status: ``ok``; ``note``, worth knowing or faster if changed; ``problem``, wrong or much slower.
        found: the finding, in words.
        advice: remedy; empty if the status is ``ok``.
        facts: the finding, as JSON-serialisable values.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the check as JSON-serialisable values."""
        return dataclasses.asdict(self)


def check_environment(config: EngineConfig | None = None, *, root: Path = machine.ROOT) -> list[Check]:
    """Check the environment of an engine in this process.

    It initialises JAX's backend, runs each native kernel once, and takes a second or two.

    Args:
        config: the engine's settings, of which the threads matter.
        root: where ``proc`` and ``sys`` are looked for.

    Returns:
        The checks; nothing that is missing or wrong raises an error.
    """
    config = config or EngineConfig()
    backend = _backend_check()
    kernel_checks = [_features_check(machine.cpu_model(root)), *_kernel_checks()]
    # After the backend was made, so that its pool can be counted.
    running = machine.thread_names(root)[machine.XLA_POOL_THREAD]
    return [
        versions_check(_versions(), _lowest_jax()),
        backend,
        *kernel_checks,
        threads_check(
            cores=machine.cores(),
            quota=machine.cpu_quota(root),
            pool=running or machine.xla_pool_size(),
            pool_counted=bool(running),
            compute_threads=config.threads.compute,
            blocking_threads=config.threads.blocking,
        ),
        libraries_check({name: os.environ.get(name) for name in THREAD_VARIABLES}, machine.cores()),
        memory_check(machine.memory(root)),
        huge_pages_check(machine.huge_pages(root)),
        compilation_cache_check(os.environ.get(VARIABLE, "")),
        extras_check({name: extras.versions(name) for name in extras.EXTRAS}),
    ]


def worst(checks: list[Check]) -> Status:
    """Return the worst status of some checks."""
    found = {check.status for check in checks}
    return "problem" if "problem" in found else "note" if "note" in found else "ok"


# -- judgements -----------------------------------------------------------------------------------


def versions_check(versions: Mapping[str, str | None], lowest_jax: str | None) -> Check:
    """Judge the installed versions.

    Args:
        versions: by package and ``python``; ``None`` for one that is not installed.
        lowest_jax: the lowest jax that this release supports; ``None`` if that is not known.
    """
    found = ", ".join(f"{name} {version or 'unknown'}" for name, version in versions.items())
    facts = {**versions, "lowest_jax": lowest_jax}
    have, need = _numbers(versions.get("jax")), _numbers(lowest_jax)
    if have and need and have < need:
        advice = f"This release needs jax {lowest_jax} or newer; run: pip install 'jax>={lowest_jax}'"
        return Check("versions", "problem", found, advice, facts)
    if not have or not need:
        advice = (
            "Install aif_jax with pip, so that its metadata names the jax it needs; this one may be too old."
        )
        return Check("versions", "note", found, advice, facts)
    return Check("versions", "ok", f"{found}; jax {lowest_jax} or newer is supported", facts=facts)


def kernels_check(report: Mapping[str, Any], backend: str, forced: str | None) -> Check:
    """Judge the kernels that run.

    Args:
        report: from `aif_jax.kernels.implementations`.
        backend: JAX's default backend.
        forced: value of ``AIF_JAX_KERNELS``.
    """
    chosen = ", ".join(f"{name} {level}" for name, level in sorted(report["kernels"].items()))
    facts = {"backend": backend, "forced": forced, **{n: report[n] for n in ("native", "reason", "kernels")}}
    if not report["native"]:
        advice = "The slower reference runs instead; use a supported jaxlib, and report the reason."
        return Check("kernels", "problem", report["reason"], advice, facts)
    found = f"{chosen}: {report['reason']}"
    if forced:
        advice = f"AIF_JAX_KERNELS={forced} forces these; unset it to let the CPU's best be chosen."
        return Check("kernels", "note", found, advice, facts)
    if "scalar" in report["kernels"].values():
        advice = "Serve on a CPU with AVX2, better AVX-512, where the same scores take less time."
        return Check("kernels", "note", f"{found}; this CPU has none of the faster ones", advice, facts)
    if backend != "cpu":
        found += f"; programs on {backend} use the reference, since these run on a CPU"
    return Check("kernels", "ok", f"{found}; the best that this CPU has", facts=facts)


def agreement_check(complaints: Mapping[str, str]) -> Check:
    """Judge the findings of `aif_jax.kernels.self_check`."""
    wrong = {name: text for name, text in complaints.items() if text}
    facts = {"kernels": dict(complaints)}
    if wrong:
        found = "; ".join(f"{name}: {text}" for name, text in wrong.items())
        advice = (
            "Serve with Bundle.load(prefer='portable') until this is fixed, try AIF_JAX_KERNELS=scalar, and "
            "report it."
        )
        return Check("kernels agree", "problem", found, advice, facts)
    return Check("kernels agree", "ok", f"{', '.join(complaints)} agree with their references", facts=facts)


def threads_check(
    *,
    cores: int,
    quota: float | None,
    pool: int,
    compute_threads: int,
    blocking_threads: int,
    pool_counted: bool = True,
) -> Check:
    """Judge the number of threads that compute against the cores.

    All programs of a process share XLA's one pool, whoever calls them; the threads that call work too, while
    they wait for it. So at most ``pool + compute_threads`` are busy with programs at once, not their product.

    Args:
        cores: that the process may run on.
        quota: cores' worth of time that its control group may use; ``None`` for all.
        pool: threads of XLA's pool.
        compute_threads: of the engine.
        blocking_threads: of the engine; they wait for others most of the time.
        pool_counted: the pool was counted; otherwise its size is expected from the environment variables.
    """
    usable = machine.usable_cores(cores, quota)
    whole, max_in_flight = max(1, math.floor(usable)), machine.programs_in_flight(usable)
    busy = pool + compute_threads
    limit = "no quota" if quota is None else f"a quota of {quota:g}"
    found = (
        f"{cores} cores with {limit}; XLA's pool has {pool} threads{'' if pool_counted else ' (expected)'}, "
        f"shared by all programs; the engine has {compute_threads} compute and {blocking_threads} blocking "
        f"threads: at most {busy} threads compute at once"
    )
    facts = {
        "cores": cores, "quota": quota, "usable_cores": usable, "xla_pool": pool,
        "xla_pool_counted": pool_counted, "compute_threads": compute_threads,
        "blocking_threads": blocking_threads, "busy_at_most": busy,
    }  # fmt: skip
    advice = []
    if pool > math.ceil(usable):
        advice.append(
            f"XLA's pool is larger than the {usable:g} cores it gets, so its threads take turns"
            + (" and the quota stops them all" if quota is not None and quota < cores else "")
            + f"; start the process with NPROC={whole} in its environment"
        )
    if compute_threads > max_in_flight:
        advice.append(f"configure EngineConfig(threads=Threads(compute={max_in_flight}))")
    if not advice:
        return Check("threads", "ok", found, facts=facts)
    status: Status = "problem" if pool >= 2 * math.ceil(usable) else "note"
    text = "; ".join(advice) + "."
    return Check("threads", status, found, text[0].upper() + text[1:], facts)


def libraries_check(variables: Mapping[str, str | None], cores: int) -> Check:
    """Judge the thread counts set for numerical libraries, whose threads start when NumPy is imported."""
    found = ", ".join(f"{name} {value or 'unset'}" for name, value in variables.items())
    facts = {"variables": dict(variables)}
    large = [name for name, value in variables.items() if value and value.isdigit() and int(value) > cores]
    if large:
        advice = f"Set {', '.join(large)} to at most {cores}, the cores that this process may use."
        return Check("library threads", "note", found, advice, facts)
    return Check("library threads", "ok", found, facts=facts)


def memory_check(memory: machine.Memory) -> Check:
    """Judge the memory left, of the machine and of the control group."""
    facts = dataclasses.asdict(memory)
    found = f"{_bytes(memory.total)} in all, {_bytes(memory.available)} available, "
    found += "no limit" if memory.limit is None else f"limited to {_bytes(memory.limit)}"
    if memory.total is None:
        return Check("memory", "note", found, _UNKNOWN, facts)
    rooms = [memory.available]
    if memory.limit is not None and memory.used is not None:
        rooms.append(memory.limit - memory.used)
        found += f" of which {_bytes(memory.used)} are used"
    if any(room is not None and room < _LOW_BYTES for room in rooms):
        advice = "Less than 1 GiB is left: give the process more, or make index and user-state cache smaller."
        return Check("memory", "note", found, advice, facts)
    return Check("memory", "ok", found, facts=facts)


def huge_pages_check(pages: machine.HugePages) -> Check:
    """Judge the huge pages that the embedding cache can get."""
    facts = dataclasses.asdict(pages)
    free = "unknown" if pages.free is None else f"{pages.free} free of {_bytes(pages.page_bytes)} each"
    found = f"transparent: {pages.transparent or 'unknown'}; explicit: {free}"
    if pages.transparent is None:
        return Check("huge pages", "note", found, _UNKNOWN, facts)
    if pages.transparent == "never":
        advice = (
            "Look-ups in large item indexes are slower without; as root: "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
        return Check("huge pages", "note", found, advice, facts)
    return Check("huge pages", "ok", found, facts=facts)


def compilation_cache_check(place: str) -> Check:
    """Judge the persistent compilation cache.

    Args:
        place: where it is; empty for none.
    """
    name = "compilation cache"
    jax_cache = jax.config.values.get("jax_compilation_cache_dir")
    facts: dict[str, Any] = {"place": place or None, "jax_cache": jax_cache}
    if not place:
        advice = f"Set {VARIABLE} to a directory, and the next process that loads a bundle compiles nothing."
        return Check(name, "note", "off", advice, facts)
    if not Path(place).expanduser().exists():
        return Check(name, "ok", f"{place}, which the first bundle that is loaded will make", facts=facts)
    try:
        cache = open_cache(place, kernel_abi=KERNEL_ABI)
        machines, programs, size = cache_size(place)
    except (AifError, OSError, RuntimeError) as error:
        return Check(name, "problem", f"{place} cannot be used", str(error), facts)
    here, here_bytes = cache.size() if cache else (0, 0)
    facts |= {"machines": machines, "programs": programs, "bytes": size, "programs_here": here}
    facts |= {"bytes_here": here_bytes, "directory": str(cache.directory) if cache else None}
    found = (
        f"{place}: {here} programs ({_bytes(here_bytes)}) for this machine, {programs} ({_bytes(size)}) for "
        f"{machines} kinds of machine"
    )
    if jax_cache:
        advice = "JAX's own cache is on as well; one of the two is enough: unset JAX_COMPILATION_CACHE_DIR."
        return Check(name, "note", found, advice, facts)
    return Check(name, "ok", found, facts=facts)


def extras_check(found: Mapping[str, Mapping[str, str | None]]) -> Check:
    """List the extras; none is needed to serve, so an absent one is no fault.

    Args:
        found: version of each distribution by extra; ``None`` for one that is not installed.
    """
    lines = []
    for name, versions in found.items():
        have = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        absent = ", ".join(package for package, version in versions.items() if not version)
        state = have + (f"; missing: {absent}" if have and absent else "") if have else "not installed"
        lines.append(f"{name} ({extras.EXTRAS[name].purpose}): {state}")
    if any(None in versions.values() for versions in found.values()):
        lines.append("to add one: pip install 'aif_jax[NAME]'")
    facts = {name: {"for": extras.EXTRAS[name].purpose, "versions": dict(v)} for name, v in found.items()}
    return Check("extras", "ok", "\n".join(lines), facts=facts)


# -- facts ----------------------------------------------------------------------------------------


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    versions["aif_jax"] = _native.__version__
    return versions


def _lowest_jax() -> str | None:
    try:
        needed = importlib.metadata.requires("aif_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    bounds = [found[1] for line in needed if (found := re.match(r"jax\s*\(?>=\s*([0-9.]+)", line))]
    return bounds[0] if bounds else None


def _backend_check() -> Check:
    try:
        devices = [f"{device.device_kind} {device.id}" for device in jax.devices()]
        backend = jax.default_backend()
    except RuntimeError as error:
        advice = "JAX has no backend; check JAX_PLATFORMS and the installation of jaxlib."
        return Check("backend", "problem", str(error), advice)
    return Check(
        "backend", "ok", f"{backend}: {', '.join(devices)}", facts={"backend": backend, "devices": devices}
    )


def _features_check(model: str) -> Check:
    features = _native.cpu_features()
    have, lack = ([n for n, has in features.items() if has is wanted] for wanted in (True, False))
    found = f"{model}; has {', '.join(have) or 'none'} of what the kernels use"
    if lack:
        found += f", lacks {', '.join(lack)}"
    return Check("CPU", "ok", found, facts={"model": model, "features": features})


def _kernel_checks() -> list[Check]:
    forced = os.environ.get("AIF_JAX_KERNELS")
    try:
        report = kernels.implementations()
        backend = jax.default_backend()
    except AifError as error:
        advice = "Unset AIF_JAX_KERNELS, or set it to kernels that this CPU has."
        return [Check("kernels", "problem", str(error), advice, {"forced": forced})]
    except RuntimeError as error:
        return [Check("kernels", "problem", str(error), "Make JAX's backend work first.", {"forced": forced})]
    checks = [kernels_check(report, backend, forced)]
    if report["native"]:
        checks.append(agreement_check(kernels.self_check()))
    return checks


def _numbers(version: str | None) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:.1f} {unit}"
    return f"{size} bytes"
