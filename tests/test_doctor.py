"""Judgements of the environment, from made-up facts."""

from pathlib import Path

import pytest

from aif_jax import machine
from aif_jax.doctor import (
    Check,
    agreement_check,
    check_environment,
    compilation_cache_check,
    extras_check,
    huge_pages_check,
    kernels_check,
    libraries_check,
    memory_check,
    threads_check,
    versions_check,
    worst,
)
from aif_jax.serving import EngineConfig, Threads

GIB = 2**30


NATIVE = {"native": True, "reason": "registered", "kernels": {"simtier": "avx2"}, "cpu_features": {}}


def threads(**facts: object) -> Check:
    given = {"cores": 8, "quota": None, "pool": 8, "compute_threads": 2, "blocking_threads": 8} | facts
    return threads_check(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "status", "advice"),
    [
        ({}, "ok", ""),
        ({"quota": 8.0}, "ok", ""),
        ({"pool": 10}, "note", "NPROC=8"),
        ({"pool": 16}, "problem", "NPROC=8"),
        # A pod of a large node: the pool is made for the node's cores.
        (
            {"cores": 64, "pool": 64, "quota": 4.0},
            "problem",
            "quota stops them all; start the process with NPROC=4",
        ),
        ({"cores": 64, "pool": 4, "quota": 4.0}, "ok", ""),
        ({"quota": 2.5, "pool": 3}, "ok", ""),
        ({"quota": 0.5, "pool": 1, "compute_threads": 1}, "ok", ""),
        ({"cores": 1, "pool": 1, "compute_threads": 3}, "note", "Threads(compute=2)"),
        ({"compute_threads": 9}, "ok", ""),
        ({"compute_threads": 10}, "note", "Threads(compute=9)"),
        ({"cores": 64, "pool": 64, "compute_threads": 10}, "note", "Threads(compute=9)"),
    ],
)
def test_threads_check_pool_and_threads_are_compared_with_cores(
    facts: dict[str, object], status: str, advice: str
) -> None:
    check = threads(**facts)
    assert check.status == status
    assert advice in check.advice
    assert (check.status == "ok") == (check.advice == "")


def test_engine_config_default_compute_threads_follow_machine() -> None:
    assert EngineConfig().threads.compute == machine.default_compute_threads() >= 2
    assert EngineConfig(threads=Threads(compute=1)).threads.compute == 1


def test_threads_check_busy_threads_are_pool_and_callers() -> None:
    check = threads(pool=6, compute_threads=3)
    assert check.facts["busy_at_most"] == 9
    assert "at most 9 threads" in check.found
    assert "expected" in threads(pool_counted=False).found


def test_versions_check_older_than_lowest_is_a_problem() -> None:
    def status(jax: str | None, lowest: str | None) -> str:
        return versions_check({"python": "3.12", "jax": jax}, lowest).status

    assert status("0.8.0", "0.8.0") == status("0.10.2", "0.8.0") == status("0.8.1.dev5", "0.8.0") == "ok"
    assert status("0.7.9", "0.8.0") == "problem"
    assert status(None, "0.8.0") == status("0.8.0", None) == "note"
    assert "'jax>=0.8.0'" in versions_check({"jax": "0.7"}, "0.8.0").advice


def test_kernels_check_judges_native_forced_and_refused_kernels() -> None:
    assert kernels_check(NATIVE, "cpu", None).status == "ok"
    assert "reference" in kernels_check(NATIVE, "gpu", None).found
    forced = kernels_check(NATIVE, "cpu", "avx2")
    assert (forced.status, "unset it" in forced.advice) == ("note", True)
    assert kernels_check({**NATIVE, "kernels": {"simtier": "scalar"}}, "cpu", None).status == "note"
    refused = kernels_check({**NATIVE, "native": False, "reason": "XLA refused"}, "cpu", None)
    assert (refused.status, refused.found) == ("problem", "XLA refused")


def test_agreement_check_differing_kernel_is_a_problem() -> None:
    assert agreement_check({"simtier": "", "table_sum": ""}).status == "ok"
    wrong = agreement_check({"simtier": "", "table_sum": "differs"})
    assert wrong.status == "problem"
    assert wrong.found == "table_sum: differs"
    assert "portable" in wrong.advice


def test_libraries_check_more_threads_than_cores_is_noted() -> None:
    assert libraries_check({"OMP_NUM_THREADS": None, "MKL_NUM_THREADS": "4"}, 4).status == "ok"
    check = libraries_check({"OMP_NUM_THREADS": "16", "MKL_NUM_THREADS": "4"}, 4)
    assert (check.status, "OMP_NUM_THREADS" in check.advice) == ("note", True)
    assert "MKL" not in check.advice


def test_memory_check_little_memory_is_noted() -> None:
    def status(*sizes: int | None) -> str:
        return memory_check(machine.Memory(*sizes)).status

    assert status(16 * GIB, 8 * GIB) == status(16 * GIB, 8 * GIB, 4 * GIB, GIB) == "ok"
    assert status(16 * GIB, GIB // 2) == "note"
    assert status(16 * GIB, 8 * GIB, 4 * GIB, 4 * GIB - 5) == "note"
    assert "unknown" in memory_check(machine.Memory()).found


def test_huge_pages_check_never_is_noted() -> None:
    assert huge_pages_check(machine.HugePages("madvise", 0, 2**21)).status == "ok"
    never = huge_pages_check(machine.HugePages("never", 0, 2**21))
    assert (never.status, "echo madvise" in never.advice) == ("note", True)
    assert "unknown" in huge_pages_check(machine.HugePages()).found


@pytest.mark.usefixtures("no_cache_of_jax")
def test_compilation_cache_check_open_folder_is_a_problem(tmp_path: Path) -> None:
    assert compilation_cache_check("").status == "note"
    absent = compilation_cache_check(str(tmp_path / "absent"))
    assert absent.status == "ok"
    assert not (tmp_path / "absent").exists()
    place = tmp_path / "place"
    place.mkdir()
    kept = compilation_cache_check(str(place))
    assert (kept.status, kept.facts["programs"]) == ("ok", 0)
    place.chmod(0o777)
    refused = compilation_cache_check(str(place))
    assert (refused.status, "chmod o-w" in refused.advice) == ("problem", True)


def test_extras_check_tells_installed_and_missing() -> None:
    found: dict[str, dict[str, str | None]] = {
        "train": {"optax": "0.2.5", "grain": None}, "ray": {"ray": None}, "redis": {"redis": "6.1"},
    }  # fmt: skip
    check = extras_check(found)
    lines = check.found.splitlines()
    assert "): optax 0.2.5; missing: grain" in lines[0]
    assert lines[1].endswith("): not installed")
    assert lines[2].endswith("): redis 6.1")
    assert "pip install 'aif_jax[NAME]'" in lines[3]
    assert (check.status, check.facts["ray"]["versions"]) == ("ok", {"ray": None})


def test_worst_of_checks_is_the_worst_status() -> None:
    checks = [Check("a", "ok", ""), Check("b", "note", "", "do"), Check("c", "problem", "", "do")]
    assert [worst(checks[:n]) for n in (1, 2, 3)] == ["ok", "note", "problem"]


def test_check_environment_here_and_without_proc_gives_every_check(tmp_path: Path) -> None:
    for root in (machine.ROOT, tmp_path):
        checks = {check.name: check for check in check_environment(root=root)}
        assert set(checks) == {
            "versions", "backend", "CPU", "kernels", "kernels agree", "threads", "library threads", "memory",
            "huge pages", "compilation cache", "extras",
        }  # fmt: skip
        assert checks["kernels agree"].status == "ok", checks["kernels agree"]
        assert all((check.status == "ok") == (check.advice == "") for check in checks.values())
    assert "unknown" in checks["memory"].found
    assert "unknown" in checks["huge pages"].found
