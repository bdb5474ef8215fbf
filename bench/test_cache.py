"""Embedding cache: gathering a request's rows by key, against NumPy by known position and a dictionary."""

import numpy as np
import pytest

from aif_jax import _native

ROWS, WIDTH, N = 200_000, 128, 4096


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    keys = rng.permutation(np.arange(ROWS, dtype=np.uint64) * np.uint64(2_654_435_761))
    values = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    cache = _native.EmbeddingCache(_native.RowLayout([("row", "float32", (WIDTH,))]), initial_keys=ROWS)
    cache.upsert(keys, {"row": values})
    positions = rng.choice(ROWS, N, replace=False)
    return cache, keys, values, positions


@pytest.mark.benchmark(group="gather 4,096 rows of 512 bytes")
def test_cache_gather(benchmark, rows):
    cache, keys, values, positions = rows
    wanted = np.ascontiguousarray(keys[positions])
    out = {"row": np.empty((N, WIDTH), np.float32)}
    found_rows, found = cache.gather(wanted, out)
    assert found.all()
    np.testing.assert_array_equal(found_rows["row"], values[positions])
    benchmark(cache.gather, wanted, out)


@pytest.mark.benchmark(group="gather 4,096 rows of 512 bytes")
def test_numpy_take_by_position(benchmark, rows):
    _, _, values, positions = rows
    out = np.empty((N, WIDTH), np.float32)
    benchmark(np.take, values, positions, axis=0, out=out, mode="clip")
    np.testing.assert_array_equal(out, values[positions])


@pytest.mark.benchmark(group="gather 4,096 rows of 512 bytes")
def test_dictionary_and_stack(benchmark, rows):
    _, keys, values, positions = rows
    table = dict(zip(keys.tolist(), values, strict=True))
    wanted = keys[positions].tolist()

    def gather():
        return np.stack([table[key] for key in wanted])

    np.testing.assert_array_equal(benchmark(gather), values[positions])
