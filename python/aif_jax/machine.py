"""Resources of the machine that this process may use: CPU, cores, quotas, memory, huge pages, threads.

Facts are read from ``/proc`` and ``/sys`` on Linux; a fact that the system does not report is ``None`` or
empty, never an error. Every reader takes the folder under which it looks, ``/`` by default.
"""

import contextlib
import dataclasses
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/")
XLA_POOL_THREAD = "tf_XLAEigen"
"""Name of the threads in the pool that all programs on XLA's CPU backend share (jaxlib 0.8 to 0.10)."""
_NO_LIMIT_BYTES = 2**60
"""cgroup v1 writes "no limit" as a number near 2^63."""
_MAX_USEFUL_CORES = 8
"""Cores beyond which more programs in flight bring nothing, because each uses the whole pool."""


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes; ``None`` where it is unknown.

    Attributes:
        total: of the machine.
        available: of the machine, without swapping.
        limit: of this process's control group; ``None`` also if there is no limit.
        used: by the control group that has the limit.
    """

    total: int | None = None
    available: int | None = None
    limit: int | None = None
    used: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class HugePages:
    """Huge pages, as far as the system reports them.

    Attributes:
        transparent: ``always``, ``madvise`` or ``never``; ``None`` if unknown.
        free: unused explicit huge pages.
        page_bytes: size of an explicit huge page.
    """

    transparent: str | None = None
    free: int | None = None
    page_bytes: int | None = None


def cpu_model(root: Path = ROOT) -> str:
    """Return the CPU's name; the architecture where no name is known."""
    fields = _fields(_read(root / "proc/cpuinfo"))
    named = fields.get("model name") or fields.get("Model")
    if named is None and "CPU part" in fields:
        parts = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part")
        named = "arm " + " ".join(fields.get(part, "?") for part in parts)
    return named or platform.processor() or platform.machine() or "unknown"


def cpu_flags(root: Path = ROOT) -> tuple[str, ...]:
    """Return the CPU's features that the system lists, sorted; empty if it lists none."""
    fields = _fields(_read(root / "proc/cpuinfo"))
    return tuple(sorted(set((fields.get("flags") or fields.get("Features") or "").split())))


def cores() -> int:
    """Return the number of cores that this process may run on, by its affinity; quotas are ignored."""
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the quota of the control group in cores, the smallest of its parents'; ``None`` without one."""
    quotas = [_quota_v2(_read(folder / "cpu.max")) for folder in _groups(root, "")]
    quotas += [
        _quota_v1(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
        for folder in _groups(root, "cpu")
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory(root: Path = ROOT) -> Memory:
    """Return the memory of the machine, and the part of it that this process may use."""
    lines = _fields(_read(root / "proc/meminfo"))
    limits = [
        (limit, _whole(_read(folder / used_file)))
        for controller, limit_file, used_file in (
            ("", "memory.max", "memory.current"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        )
        for folder in _groups(root, controller)
        if (limit := _whole(_read(folder / limit_file))) is not None and limit < _NO_LIMIT_BYTES
    ]
    limit, used = min(limits, key=lambda entry: entry[0], default=(None, None))
    return Memory(_kilobytes(lines, "MemTotal"), _kilobytes(lines, "MemAvailable"), limit, used)


def huge_pages(root: Path = ROOT) -> HugePages:
    """Return the huge pages of the system."""
    modes = (_read(root / "sys/kernel/mm/transparent_hugepage/enabled") or "").split()
    chosen = [mode.strip("[]") for mode in modes if mode.startswith("[")]
    lines = _fields(_read(root / "proc/meminfo"))
    free = _whole(lines.get("HugePages_Free"))
    return HugePages(chosen[0] if chosen else None, free, _kilobytes(lines, "Hugepagesize"))


def thread_names(root: Path = ROOT) -> Counter[str]:
    """Return the threads of this process by name; empty if the system does not report them."""
    names: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for thread in (root / "proc/self/task").iterdir():
            if name := (_read(thread / "comm") or "").strip():
                names[name] += 1
    return names


def xla_pool_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of threads of XLA's CPU pool, if its backend is made in this environment.

    ``PJRT_NPROC``, else ``NPROC``, else the cores of the affinity; a quota is ignored (measured with jaxlib
    0.8.0 and 0.10.2). Once the backend is made, count `XLA_POOL_THREAD` in `thread_names` instead.
    """
    for name in ("PJRT_NPROC", "NPROC"):
        if (threads := _whole(environment.get(name))) is not None and threads > 0:
            return threads
    return cores()


# -- thread budget --------------------------------------------------------------------------------
#
# Three groups of threads compute: XLA's pool, which all programs of the process share and which is sized by
# the cores (or NPROC); the engine's compute threads, each of which holds one program in flight and works
# while it waits for the pool; and callers, who take the place of a compute thread while they rank. One
# program more in flight than there are cores keeps them busy while another's Python waits for the
# interpreter: on two cores, three in flight served 8 % more requests than two with no worse latency under
# light load, and four served 15 % more with a worse one.


def usable_cores(cores: int, quota: float | None) -> float:
    """Return the cores that a process can use: those it may run on, within its group's quota."""
    return float(cores) if quota is None else min(float(cores), quota)


def programs_in_flight(usable: float) -> int:
    """Return the number of compute threads for a number of usable cores."""
    return min(max(1, math.floor(usable)), _MAX_USEFUL_CORES) + 1


def default_compute_threads() -> int:
    """Return the number of compute threads for this process."""
    return programs_in_flight(usable_cores(cores(), cpu_quota()))


# -- identity -------------------------------------------------------------------------------------


def identity(root: Path = ROOT) -> dict[str, str]:
    """Return the facts that machine code for this CPU depends on, by name: architecture, model, features.

    Where the system does not list the CPU's features, the host's name stands in for them.
    """
    flags = cpu_flags(root)
    fields = _fields(_read(root / "proc/cpuinfo"))
    return {
        "system": sys.platform,
        "architecture": platform.machine(),
        # Virtual machines give different processors one name; compilers choose by family and model.
        "model": " ".join([cpu_model(root), fields.get("cpu family", ""), fields.get("model", "")]).strip(),
        "features": " ".join(flags) if flags else f"unknown, of host {platform.node()}",
    }


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and its parents, those that exist.

    Args:
        root: folder under which to look.
        controller: of version 1; the empty name is version 2.
    """
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(",") or (not controller and number != "0"):
            continue
        # In a container the path may be the host's, of which only the root can be seen here.
        mounts = ("", "unified") if not controller else (controllers, controller)
        for mount in dict.fromkeys(mounts):
            base = root / "sys/fs/cgroup" / mount
            inner = Path(path.strip().lstrip("/"))
            if ".." in inner.parts:
                inner = Path()
            for folder in (base / inner, *(base / parent for parent in inner.parents)):
                if folder.is_dir():
                    yield folder


def _quota_v2(text: str | None) -> float | None:
    words = (text or "").split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_v1(quota: str | None, period: str | None) -> float | None:
    return _ratio(quota or "", period or "")


def _ratio(quota: str, period: str) -> float | None:
    """Return quota over period, both in microseconds; ``max`` and -1 mean no limit."""
    time, whole = _whole(quota), _whole(period)
    return time / whole if time is not None and whole and time > 0 else None


def _kilobytes(lines: Mapping[str, str], name: str) -> int | None:
    number = _whole(lines.get(name, "").removesuffix("kB"))
    return None if number is None else number * 1024


def _whole(text: str | None) -> int | None:
    try:
        return int((text or "").strip())
    except ValueError:
        return None


def _fields(text: str | None) -> dict[str, str]:
    """Parse lines ``name: value``; the first wins where a name repeats."""
    fields: dict[str, str] = {}
    for line in (text or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


IDLE_RATIO = 5.0
"""Idle time after a piece of background work, in multiples of the time that it took."""


@contextlib.contextmanager
def throttled() -> Iterator[None]:
    """Do a piece of background work, then sleep five times as long as it took: requests keep the cores.

    A low priority would be worse: while a thread of low priority holds the GIL, all others wait for it.
    """
    began_s = time.perf_counter()
    yield
    time.sleep(IDLE_RATIO * (time.perf_counter() - began_s))
