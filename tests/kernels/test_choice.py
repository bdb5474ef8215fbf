"""The choice of an implementation: the default, the ways to force one, and the errors when it cannot run."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from aif_jax import _native, kernels
from aif_jax.errors import ConfigError

ARRAYS = (
    np.zeros((2, 8), np.uint8),
    np.zeros((3, 8), np.uint8),
    np.zeros(3, np.int32),
    np.zeros(1, np.int32),
)


def lowered(**options):
    def run(*arrays):
        return kernels.simtier(*arrays, channels=1, kind="simhash", **options)

    return jax.jit(run).lower(*ARRAYS).as_text()


def in_a_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_auto_on_cpu_is_native():
    report = kernels.implementations()
    assert report["native"], report
    assert report["kernels"] == _native.chosen_kernels()
    assert report["cpu_features"] == _native.cpu_features()
    assert "aif_simtier" in lowered()


def test_use_forces_implementation_of_auto_calls():
    with kernels.use("reference"):
        assert "aif_simtier" not in lowered()
        assert "aif_simtier" in lowered(implementation="native")
        with kernels.use("native"):
            assert "aif_simtier" in lowered()
        assert "aif_simtier" not in lowered()
    assert "aif_simtier" in lowered()
    with pytest.raises(ConfigError, match="'fast'"), kernels.use("fast"):  # type: ignore[arg-type]
        pass


NEEDED = {
    "scalar": (),
    "avx2": ("avx2", "fma", "popcnt"),
    "avx_vnni": ("avx2", "fma", "popcnt", "avxvnni"),
    "avx512": ("avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512vpopcntdq"),
}
"""The features that the CPU needs for a level."""


@pytest.fixture(scope="module")
def by_level():
    """The kernels that a process names under each level: forks of one that has imported everything."""
    code = f"""
import os, warnings
from aif_jax import kernels
warnings.simplefilter("ignore")  # JAX warns of forks, for threads that are not there yet
for level in {list(NEEDED)}:
    if not os.fork():
        os.environ["AIF_JAX_KERNELS"] = level
        try:
            said = kernels.implementations()["kernels"]["simtier"]
        except Exception as error:
            said = error
        print(level, said, flush=True)
        os._exit(0)
    os.wait()
"""
    result = in_a_new_process(code)
    assert result.returncode == 0, result.stderr
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


@pytest.mark.parametrize("level", NEEDED)
def test_environment_forces_kernel_level_or_is_refused(by_level, level):
    if all(_native.cpu_features()[feature] for feature in NEEDED[level]):
        assert by_level[level] == level
    else:
        assert f"this CPU lacks kernels '{level}'" in by_level[level].replace('"', "'")


def test_environment_with_unknown_kernels_is_refused():
    result = in_a_new_process("from aif_jax import kernels; kernels.register()", AIF_JAX_KERNELS="sse9")
    assert result.returncode == 1
    assert "aif_jax.errors.ConfigError" in result.stderr
    assert "possible here: scalar" in result.stderr


def test_kernels_refused_by_xla_fall_back_to_reference():
    code = """
import jax, numpy as np
from aif_jax import kernels
from aif_jax.errors import ConfigError

def refuse(*args, **kwargs):
    raise RuntimeError("no such version")

jax.ffi.register_ffi_target = refuse
report = kernels.implementations()
assert not report["native"] and "no such version" in report["reason"], report
zeros = np.zeros((2, 8), np.uint8)
arrays = (zeros, zeros, np.zeros(2, np.int32), np.asarray([64], np.int32))
counts = kernels.simtier(*arrays, channels=1, kind="simhash")
assert counts.tolist() == [[[0, 2]], [[0, 2]]], counts
try:
    kernels.simtier(*arrays, channels=1, kind="simhash", implementation="native")
except ConfigError as error:
    assert "no such version" in str(error)
else:
    raise SystemExit("native ran without its kernels")
"""
    result = in_a_new_process(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_kernels_called_from_many_threads_do_not_deadlock(threads):
    # The kernels share work with XLA's own pool, on whose threads they may be running themselves.
    code = f"""
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{threads}])
import concurrent.futures, faulthandler
faulthandler.dump_traceback_later(90, exit=True)
import jax, numpy as np
from aif_jax import EmbeddingCache, RowLayout, kernels, machine
assert kernels.register()
pool = machine.thread_names()[machine.XLA_POOL_THREAD]
assert pool == machine.xla_pool_size() == {threads}, pool
rng = np.random.default_rng(0)
cache = EmbeddingCache(RowLayout([("h", "float32", (64,))]))
keys, rows = np.arange(1, 4097, dtype=np.uint64), rng.normal(size=(4096, 64)).astype(np.float32)
cache.upsert(keys, {{"h": rows}})
handle, ids = kernels.handle_operand(cache), keys.view(np.uint32).reshape(-1, 2)
cand = rng.integers(0, 256, (4096, 32), dtype=np.uint8)
seq = rng.integers(0, 256, (512, 32), dtype=np.uint8)
table = rng.normal(size=(64, 16, 64)).astype(np.float32)
channel, edges = np.zeros(512, np.int32), np.asarray([120, 128, 136], np.int32)
none, count = np.zeros(2, np.uint32), np.asarray(4096, np.int32)

@jax.jit
def run(cand):
    counts = [kernels.simtier(x, seq, channel, edges, channels=1, kind="simhash") for x in (cand, cand[::-1])]
    gathered, found = kernels.gather_rows(handle, ids, cache.layout)
    operands = kernels.Operands(shared=table[0, 0], layers=((table[0].T, table[0, 0, :16]),))
    ranked = kernels.cached_interaction(handle, none, ids, count, operands, kernels.Form())
    return *counts, kernels.table_sum(table, cand, bits=4), gathered["h"], found, *ranked

expected = jax.tree.map(np.asarray, run(cand))
with kernels.use("reference"):
    simtier = kernels.simtier(cand, seq, channel, edges, channels=1, kind="simhash")
    table_sum = kernels.table_sum(table, cand, bits=4)
np.testing.assert_array_equal(expected[0], simtier)
np.testing.assert_array_equal(expected[2], table_sum)
np.testing.assert_array_equal(expected[3], rows)
assert expected[4].all() and (expected[6] == 3).all()
logits = np.maximum(rows + table[0, 0], 0) @ table[0].T + table[0, 0, :16]
np.testing.assert_allclose(expected[5], logits, rtol=1e-4, atol=1e-4)

def call(i):
    for _ in range(25):
        for got, wanted in zip(run(cand), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    return 25

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(call, range(4))))
"""
    result = in_a_new_process(code, NPROC=str(threads))
    assert result.stdout.strip() == "100", result.stderr
