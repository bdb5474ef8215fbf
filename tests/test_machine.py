"""Facts read from /proc and /sys of made-up systems; a missing one is unknown, never an error."""

import os
from pathlib import Path

import pytest

from aif_jax import machine

CPUINFO = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: Some CPU 9000
flags\t\t: fpu avx2 avx512f

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


MEMINFO = """MemTotal:       24684084 kB
MemAvailable:   22309000 kB
HugePages_Total:       8
HugePages_Free:        3
Hugepagesize:       2048 kB
"""


def system(root: Path, **files: str) -> Path:
    """Write files of a made-up system; ``__`` in a name stands for a folder."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_cpu_model_and_flags_are_those_of_first_processor(tmp_path: Path) -> None:
    system(tmp_path, proc__cpuinfo=CPUINFO)
    assert machine.cpu_model(tmp_path) == "Some CPU 9000"
    assert machine.cpu_flags(tmp_path) == ("avx2", "avx512f", "fpu")
    identity = machine.identity(tmp_path)
    assert identity["features"] == "avx2 avx512f fpu"
    assert identity["model"] == "Some CPU 9000 25 17"


def test_cpu_model_arm_without_name_is_named_by_parts(tmp_path: Path) -> None:
    parts = "CPU implementer : 0x41\nCPU architecture: 8\nCPU variant : 0x1\nCPU part : 0xd40\n"
    system(tmp_path, proc__cpuinfo=parts + "Features : asimd sve\n")
    assert machine.cpu_model(tmp_path) == "arm 0x41 8 0x1 0xd40"
    assert machine.cpu_flags(tmp_path) == ("asimd", "sve")


def test_memory_and_huge_pages_are_read_from_proc(tmp_path: Path) -> None:
    system(
        tmp_path,
        proc__meminfo=MEMINFO,
        sys__kernel__mm__transparent_hugepage__enabled="always madvise [never]\n",
    )
    memory = machine.memory(tmp_path)
    assert (memory.total, memory.available) == (24_684_084 * 1024, 22_309_000 * 1024)
    assert (memory.limit, memory.used) == (None, None)
    assert machine.huge_pages(tmp_path) == machine.HugePages("never", 3, 2 * 2**20)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("nonsense", None), ("100000 0", None)],
)
def test_cpu_quota_cgroup_2_is_read(tmp_path: Path, text: str, cores: float | None) -> None:
    system(tmp_path, proc__self__cgroup="0::/pod/box\n", sys__fs__cgroup__pod__box__cpu_DOT_max=text)
    assert machine.cpu_quota(tmp_path) == cores


def test_cpu_quota_tightest_parent_counts(tmp_path: Path) -> None:
    system(
        tmp_path,
        proc__self__cgroup="0::/pod/box\n",
        sys__fs__cgroup__pod__box__cpu_DOT_max="max 100000",
        sys__fs__cgroup__pod__cpu_DOT_max="200000 100000",
        sys__fs__cgroup__cpu_DOT_max="300000 100000",
        sys__fs__cgroup__pod__box__memory_DOT_max=str(3 * 2**30),
        sys__fs__cgroup__pod__box__memory_DOT_current=str(2**30),
        sys__fs__cgroup__pod__memory_DOT_max="max",
    )
    assert machine.cpu_quota(tmp_path) == 2.0
    memory = machine.memory(tmp_path)
    assert (memory.limit, memory.used) == (3 * 2**30, 2**30)


@pytest.mark.parametrize(("quota", "cores"), [("50000", 0.5), ("-1", None)])
def test_cpu_quota_cgroup_1_is_read(tmp_path: Path, quota: str, cores: float | None) -> None:
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct/pod"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000")
    system(
        tmp_path,
        proc__self__cgroup="7:cpu,cpuacct:/pod\n5:memory:/pod\n0::/\n",
        sys__fs__cgroup__memory__pod__memory_DOT_limit_in_bytes="9223372036854771712",
    )
    assert machine.cpu_quota(tmp_path) == cores
    assert machine.memory(tmp_path).limit is None


def test_cpu_quota_in_container_without_host_path_is_read(tmp_path: Path) -> None:
    system(
        tmp_path,
        proc__self__cgroup="0::/../../kubepods/other\n4:memory:/docker/0123\n",
        sys__fs__cgroup__cpu_DOT_max="400000 100000",
        sys__fs__cgroup__memory__memory_DOT_limit_in_bytes=str(2**29),
    )
    assert machine.cpu_quota(tmp_path) == 4.0
    assert machine.memory(tmp_path).limit == 2**29


def test_machine_without_proc_is_unknown(tmp_path: Path) -> None:
    assert machine.cpu_model(tmp_path)
    assert machine.cpu_flags(tmp_path) == ()
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory(tmp_path) == machine.Memory()
    assert machine.huge_pages(tmp_path) == machine.HugePages()
    assert not machine.thread_names(tmp_path)
    # Without features, machine code must not be taken for another host's.
    assert "of host" in machine.identity(tmp_path)["features"]


def test_xla_pool_size_follows_environment() -> None:
    assert machine.xla_pool_size({}) == machine.cores() >= 1
    assert machine.xla_pool_size({"NPROC": "3"}) == 3
    assert machine.xla_pool_size({"NPROC": "3", "PJRT_NPROC": "5"}) == 5
    assert machine.xla_pool_size({"NPROC": "many", "PJRT_NPROC": ""}) == machine.cores()
    assert machine.cores() <= (os.cpu_count() or 1)


def test_programs_in_flight_are_one_more_than_usable_cores() -> None:
    machines = ((1, None), (2, None), (64, 2.5), (64, None), (4, 0.5))
    assert [machine.programs_in_flight(machine.usable_cores(*given)) for given in machines] == [2, 3, 3, 9, 2]
    assert machine.default_compute_threads() >= 2
