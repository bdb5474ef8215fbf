"""Tests run with a strict JAX: what would be a silent conversion in production is an error here."""

import gc
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from aif_jax import machine

jax.config.update("jax_numpy_dtype_promotion", "strict")

pytest_plugins = ("support.served",)

QUICK_TO_COMPILE = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
)
"""XLA's older emitters, without LLVM's optimisations, compile in a quarter of the time; programs run slower.

Code in one part costs a quarter less than in parts for several threads, which the workers keep busy anyway.
"""

LONGEST = ("cli/test_demo", "test_readme", "cli/test_commands", "stress/test_faults", "training/test_loop")
"""Files that take minutes: begun first, so that no worker is left alone with one."""


def pytest_configure() -> None:
    """Compile quickly, unless `XLA_FLAGS` says how. Before any test module is imported."""
    if "XLA_FLAGS" in os.environ:
        return
    # An XLA that does not know a flag ends its process.
    tried = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE},
        capture_output=True,
        check=False,
    )
    os.environ["XLA_FLAGS"] = QUICK_TO_COMPILE if tried.returncode == 0 else ""


@pytest.fixture(scope="session", autouse=True)
def compile_once(pytestconfig: pytest.Config) -> None:
    """Keep compiled programs for all workers and for the next test run; ``--cache-clear`` removes them.

    JAX names an entry by program, flags and version, so that no change of the sources makes one wrong. Its
    name says nothing of the CPU, so every kind of machine has a folder of its own.
    """
    if not hasattr(pytestconfig, "cache"):  # -p no:cacheprovider
        return
    kind = hashlib.sha256(repr(machine.identity()).encode()).hexdigest()[:12]
    folder = pytestconfig.cache.mkdir(f"compiled-{kind}")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def no_cache_of_jax() -> Iterator[None]:
    """No compilation cache of JAX, as users have it. XLA cannot serialise a program that came from one."""
    before = jax.config.jax_compilation_cache_dir
    for folder in (None, before):
        jax.config.update("jax_compilation_cache_dir", folder)
        reset_cache()
        if folder is None:
            yield


_SYNC = {call: getattr(os, call) for call in ("fsync", "fdatasync") if hasattr(os, call)}


@pytest.fixture(scope="session", autouse=True)
def write_without_sync() -> Iterator[None]:
    """Leave out the waits for the disk: no test cuts the power. Tests of the order of writes patch these."""
    with pytest.MonkeyPatch.context() as patch:
        for call in _SYNC:
            patch.setattr(os, call, lambda _: None)
        yield


@pytest.fixture
def with_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits for the disk, for what depends on pages that are written."""
    for call, real in _SYNC.items():
        monkeypatch.setattr(os, call, real)


def pytest_collection_finish() -> None:
    """Keep a million objects of imported modules out of every full garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases",
        type=int,
        metavar="N",
        help="of every test with parameters, run N cases at most: the first, the last and some between",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    at_most = config.getoption("--cases")
    if at_most is not None:
        _sample(config, items, at_most)
    items.sort(key=lambda item: not any(f"{name}.py::" in item.nodeid for name in LONGEST))


def _sample(config: pytest.Config, items: list[pytest.Item], at_most: int) -> None:
    """Leave `at_most` cases of each test, spread over all."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = set()
    for cases in tests.values():
        n = min(at_most, len(cases))
        kept.update(cases[i * (len(cases) - 1) // max(n - 1, 1)] for i in range(n))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
