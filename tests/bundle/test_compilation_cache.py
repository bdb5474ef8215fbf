"""Compiled programs on disk: no second compilation, none taken from another machine, damage survived."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.bundle.compilation_cache import CompilationCache, cache_size, machine_facts
from aif_jax.bundle.files import KERNEL_ABI
from aif_jax.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_cache_of_jax")

SERVE = """
import hashlib, json, sys
import jax, numpy as np
from aif_jax import EmbeddingCache, RowLayout
from aif_jax.bundle import Bundle, compilations, loads
from aif_jax.kernels import handle_operand

events = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **more: events.append(name) if "backend_compile" in name else None
)
bundle = Bundle.load(sys.argv[1], prefer=sys.argv[2])
rng = np.random.default_rng(0)

def draw(spec):
    if np.dtype(spec.dtype).kind == "f":
        return rng.normal(size=spec.shape).astype(spec.dtype)
    return rng.integers(0, 2, spec.shape).astype(spec.dtype)

rows = {operand.path: draw(operand.at({"m": 64})) for operand in bundle.signature("item").outputs}
cache = EmbeddingCache(RowLayout([(name, a.dtype.name, a.shape[1:]) for name, a in rows.items()]))
keys = np.arange(64, dtype=np.uint64)
cache.upsert(keys, rows)
digest = hashlib.sha256()
for stage, dims in (("user", {"b": 1, "l": 24}), ("stage", {"n": 32, "l": 24}), ("stage", {"n": 48, "l": 8})):
    given = {operand.path: draw(operand.at(dims)) for operand in bundle.signature(stage).inputs}
    if "index" in given:
        given |= {"index": handle_operand(cache), "missing": np.zeros(2, np.uint32),
                  "ids": keys.view(np.uint32).reshape(-1, 2)[:dims["n"]], "count": np.asarray(30, np.int32)}
    for path, output in sorted(bundle.call(stage, **dims)(given).items()):
        digest.update(path.encode() + np.asarray(output).tobytes())
counts = bundle.compilation_cache.counts()
print(json.dumps({
    "compiled": compilations(), "loaded": loads(), "events": len(events), "digest": digest.hexdigest(),
    "counts": {name: getattr(counts, name) for name in ("loaded", "missing", "broken", "saved", "not_saved")},
    "kind": bundle.kind, "trouble": counts.trouble, "explain": bundle.explain(),
    "untouched": jax.config.jax_compilation_cache_dir is None,
}))
"""


def serve(bundle: Bundle, place: Path, prefer: str = "native", **environment: str) -> dict[str, Any]:
    """Load the bundle in a new process and run it on the same random inputs each time."""
    ended = subprocess.run(
        [sys.executable, "-c", SERVE, str(bundle.path), prefer],
        env=os.environ | {"AIF_JAX_COMPILATION_CACHE": str(place)} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def entries(place: Path) -> list[Path]:
    return sorted(place.glob("*/*.executable"))


Filled = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def filled(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A cache that a process has filled with native or portable programs, and its report; only to be read."""

    @functools.cache
    def fill(prefer: str) -> tuple[Path, dict[str, Any]]:
        place = tmp_path_factory.mktemp("cache") / prefer
        return place, serve(tiny_bundle, place, prefer)

    return fill


@pytest.mark.parametrize("prefer", ["native", pytest.param("portable", marks=pytest.mark.thorough)])
def test_cache_second_process_compiles_nothing_with_same_results(
    tiny_bundle: Bundle, filled: Filled, prefer: str
) -> None:
    place, first = filled(prefer)
    compiled = first["compiled"]
    assert compiled >= 5  # one of each stage for the golden vectors, and at least one more
    assert first["loaded"] == 0
    assert first["counts"] == {
        "loaded": 0, "missing": compiled, "broken": 0, "saved": compiled, "not_saved": 0,
    }  # fmt: skip
    assert first["events"] >= compiled
    second = serve(tiny_bundle, place, prefer)
    assert (second["compiled"], second["loaded"], second["events"]) == (0, compiled, 0)
    assert second["digest"] == first["digest"]
    assert second["kind"] == prefer
    assert f"{compiled} programs loaded" in second["explain"]
    assert first["untouched"]
    assert second["untouched"]


def test_cache_damaged_entries_are_counted_and_replaced(
    tiny_bundle: Bundle, filled: Filled, tmp_path: Path
) -> None:
    whole, first = filled("native")
    place = shutil.copytree(whole, tmp_path / "cache")
    truncated, flipped, emptied, swapped, *_ = kept = entries(place)
    truncated.write_bytes(truncated.read_bytes()[:-100])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(bytes(content))
    emptied.write_bytes(b"")
    shutil.copyfile(kept[-1], swapped)
    second = serve(tiny_bundle, place)
    assert second["counts"] == {
        "loaded": first["compiled"] - 4, "missing": 0, "broken": 4, "saved": 4, "not_saved": 0,
    }  # fmt: skip
    assert second["compiled"] == 4
    assert second["digest"] == first["digest"]
    assert "4 broken" in second["explain"]
    assert "damaged" in second["trouble"]
    third = serve(tiny_bundle, place)
    assert (third["compiled"], third["counts"]["broken"]) == (0, 0)


@pytest.mark.thorough
def test_cache_is_shared_by_processes_started_together(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as starting:
        first, second = starting.map(lambda _: serve(tiny_bundle, tmp_path / "cache"), range(2))
    third = serve(tiny_bundle, tmp_path / "cache")
    assert third["compiled"] == 0
    assert first["digest"] == second["digest"] == third["digest"]
    assert [run["counts"]["broken"] for run in (first, second, third)] == [0, 0, 0]


@pytest.mark.thorough
def test_cache_beside_jax_cache_keeps_only_usable_programs(tiny_bundle: Bundle, tmp_path: Path) -> None:
    jax_cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first = serve(tiny_bundle, tmp_path / "first", **jax_cache)
    assert first["counts"]["saved"] == first["compiled"]
    second = serve(tiny_bundle, tmp_path / "second", **jax_cache)
    assert second["digest"] == first["digest"]
    assert second["kind"] == "native"
    # Kept or not as this XLA can: what is kept serves the next process.
    third = serve(tiny_bundle, tmp_path / "second")
    assert third["loaded"] == second["counts"]["saved"]
    assert third["counts"]["broken"] == 0
    assert (third["digest"], third["kind"]) == (first["digest"], "native")


@pytest.mark.thorough
def test_cache_with_other_threads_or_flags_is_not_used(
    tiny_bundle: Bundle, filled: Filled, tmp_path: Path
) -> None:
    whole, first = filled("native")
    place = shutil.copytree(whole, tmp_path / "cache")
    more_flags = f"{os.environ['XLA_FLAGS']} --xla_cpu_max_isa=AVX2"
    with ThreadPoolExecutor(2) as starting:
        other = starting.submit(serve, tiny_bundle, place, PJRT_NPROC="3")
        flags = starting.submit(serve, tiny_bundle, place, XLA_FLAGS=more_flags)
    assert other.result()["loaded"] == 0
    assert flags.result()["loaded"] == 0
    machines, programs, size = cache_size(place)
    assert (machines, programs) == (3, 3 * first["compiled"])
    assert size > 1000 * programs


# One executable, so that what each check refuses is seen without a process each.


def double(x: jax.Array) -> tuple[jax.Array]:
    return (x * 2,)


def compiled() -> Any:
    return jax.jit(double).lower(np.ones(3, np.float32)).compile()


def run(executable: Any) -> None:
    np.testing.assert_array_equal(executable(np.ones(3, np.float32))[0], np.full(3, 2.0, np.float32))


IN_TREE = jax.tree.structure(((0,), {}))
OUT_TREE = jax.tree.structure((0,))


def kept(place: Path) -> CompilationCache:
    cache = CompilationCache(place, machine_facts(kernel_abi=KERNEL_ABI))
    cache.save("double", compiled(), IN_TREE, OUT_TREE, run)
    assert cache.counts().saved == 1, cache.explain()
    return cache


@pytest.mark.parametrize(
    "name", ["features", "model", "jaxlib", "kernels", "kernel_abi", "backend", "xla_pool"]
)
def test_cache_of_other_machine_is_not_used(tmp_path: Path, name: str) -> None:
    here = kept(tmp_path)
    facts = machine_facts(kernel_abi=KERNEL_ABI)
    there = CompilationCache(tmp_path, facts | {name: facts[name] + " other"})
    assert there.directory != here.directory
    assert there.load("double", IN_TREE, OUT_TREE, run) is None
    assert there.counts().missing == 1
    # Not even when somebody copies the folder to the name that this machine looks under.
    shutil.copytree(here.directory, there.directory, dirs_exist_ok=True)
    assert there.load("double", IN_TREE, OUT_TREE, run) is None
    assert there.counts().broken == 1
    assert "another program or machine" in there.explain()
    assert here.load("double", IN_TREE, OUT_TREE, run) is not None


def test_cache_entry_that_xla_refuses_is_counted(tmp_path: Path) -> None:
    cache = kept(tmp_path)
    mark = cache._mark("double", b"not an executable")
    (entry,) = entries(tmp_path)
    head = entry.read_bytes()[: -len(entry.read_bytes().split(b"\n", 1)[1])]
    entry.write_bytes(head + mark + b"not an executable")
    assert cache.load("double", IN_TREE, OUT_TREE, run) is None
    assert cache.counts().broken == 1
    assert "UnpicklingError" in cache.explain()


def test_cache_executable_that_does_not_run_is_not_used(tmp_path: Path) -> None:
    def fails(executable: Any) -> None:
        raise jax.errors.JaxRuntimeError("NOT_FOUND: Function multiply not found")

    cache = kept(tmp_path)
    assert cache.load("double", IN_TREE, OUT_TREE, fails) is None
    assert cache.counts().broken == 1
    cache.save("other", compiled(), IN_TREE, OUT_TREE, fails)
    assert cache.counts().not_saved == 1
    assert len(entries(tmp_path)) == 1
    assert "Function multiply not found" in cache.explain()


def test_cache_failed_save_is_counted(tmp_path: Path) -> None:
    cache = CompilationCache(tmp_path / "cache", machine_facts(kernel_abi=KERNEL_ABI))
    shutil.rmtree(cache.directory)
    cache.save("double", compiled(), IN_TREE, OUT_TREE, run)
    assert cache.counts().not_saved == 1
    assert "WriteError" in cache.explain()
    assert "No such file" in cache.explain()
    cache = kept(tmp_path / "cache")
    cache.save("double", compiled(), IN_TREE, IN_TREE, run)
    assert cache.counts().not_saved == 1
    assert not list(cache.directory.glob(".*partial*"))


def test_cache_removes_what_killed_processes_left(tmp_path: Path) -> None:
    cache = kept(tmp_path / "cache")
    left = cache.directory / ".double.executable.partial-0123abcd"
    left.write_bytes(b"half")
    kept(tmp_path / "cache")
    assert not left.exists()


def test_cache_in_untrusted_directory_is_refused(tmp_path: Path) -> None:
    facts = machine_facts(kernel_abi=KERNEL_ABI)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod o-w"):
        CompilationCache(open_to_all, facts)
    a_file = tmp_path / "file"
    a_file.write_text("here")
    with pytest.raises(ConfigError, match="is not a directory"):
        CompilationCache(a_file, facts)
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        os.chown(foreign, 12345, -1)
        with pytest.raises(ConfigError, match="belongs to user 12345"):
            CompilationCache(foreign, facts)


def test_load_compilation_cache_argument_overrides_environment(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIF_JAX_COMPILATION_CACHE", str(tmp_path / "named"))
    named = Bundle.load(tiny_bundle.path).compilation_cache
    given = Bundle.load(tiny_bundle.path, compilation_cache=tmp_path / "given").compilation_cache
    assert named is not None
    assert given is not None
    assert (named.place, given.place) == (tmp_path / "named", tmp_path / "given")
    monkeypatch.delenv("AIF_JAX_COMPILATION_CACHE")
    assert Bundle.load(tiny_bundle.path).compilation_cache is None
