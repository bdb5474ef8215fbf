"""Rows of a cache from inside a compiled program: what NumPy would have gathered, or an error."""

import gc

import jax
import ml_dtypes
import numpy as np
import pytest

from aif_jax import kernels
from aif_jax._native import EmbeddingCache, RowLayout
from aif_jax.errors import ConfigError

COLUMNS = [
    ("h", "float32", (3,)),
    ("half", "bfloat16", (2, 2)),
    ("signature", "uint8", (5,)),
    ("bias", "float16", ()),
    ("category", "int32", (2,)),
    ("steps", "int8", (4,)),
    ("count", "uint32", ()),
]


def values(keys):
    """Columns that tell which key they are of."""
    rng = np.random.default_rng(0)
    columns = {}
    for name, dtype, shape in COLUMNS:
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        columns[name] = rng.integers(0, 100, (len(keys), *shape)).astype(kind)
    return columns


def halves(keys):
    return np.ascontiguousarray(keys, np.uint64).view(np.uint32).reshape(*np.shape(keys), 2)


@pytest.fixture
def layout():
    return RowLayout(COLUMNS)


@pytest.fixture
def cache(layout):
    return EmbeddingCache(layout)


# Which of them JAX raises depends on whether it runs a program at once or behind the caller's back.
PROGRAM_ERRORS = (jax.errors.JaxRuntimeError, ValueError)

# Above 2**32, so that a key cut to 32 bits would be another one's.
KEYS = np.asarray([5, 2**40 + 5, 2**63 + 9, 2**64 - 2], np.uint64)


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 3), (2, 1, 4)])
def test_gather_rows_returns_stored_columns_and_mask(cache, layout, shape):
    columns = values(KEYS)
    cache.upsert(KEYS, columns)
    rng = np.random.default_rng(1)
    pool = np.concatenate([KEYS, KEYS + np.uint64(1), np.asarray([0], np.uint64)])
    place = rng.integers(0, len(pool), shape)
    run = jax.jit(lambda handle, ids: kernels.gather_rows(handle, ids, layout))
    rows, found = run(kernels.handle_operand(cache), halves(pool[place]))
    np.testing.assert_array_equal(found, place < len(KEYS))
    assert set(rows) == set(columns)
    for name, column in columns.items():
        expected = column[np.minimum(place, len(KEYS) - 1)]
        expected[place >= len(KEYS)] = 0
        assert rows[name].dtype == column.dtype
        np.testing.assert_array_equal(np.asarray(rows[name]), expected)


def test_gather_rows_vmap_gathers_each_batch(cache, layout):
    cache.upsert(KEYS, values(KEYS))
    handle = kernels.handle_operand(cache)
    ids = halves(KEYS.reshape(2, 2))
    rows, found = jax.vmap(lambda ids: kernels.gather_rows(handle, ids, layout))(ids)
    assert found.shape == (2, 2)
    assert np.asarray(found).all()
    np.testing.assert_array_equal(rows["h"], values(KEYS)["h"].reshape(2, 2, 3))


def test_gather_rows_of_other_cache_compiles_nothing(cache, layout):
    other = EmbeddingCache(layout)
    cache.upsert(KEYS, values(KEYS))
    other.upsert(KEYS[:1], {name: column[:1] + column.dtype.type(1) for name, column in values(KEYS).items()})
    compiled = (
        jax.jit(lambda handle, ids: kernels.gather_rows(handle, ids, layout))
        .lower(kernels.handle_operand(cache), halves(KEYS))
        .compile()
    )
    rows, found = compiled(kernels.handle_operand(cache), halves(KEYS))
    assert np.asarray(found).all()
    swapped, swapped_found = compiled(kernels.handle_operand(other), halves(KEYS))
    assert np.asarray(swapped_found).tolist() == [True, False, False, False]
    np.testing.assert_array_equal(swapped["h"][0], rows["h"][0] + 1)
    # What the program reads is what the cache holds when it runs.
    cache.delete(KEYS[1:2])
    assert np.asarray(compiled(kernels.handle_operand(cache), halves(KEYS))[1]).tolist() == [
        True,
        False,
        True,
        True,
    ]


def test_gather_rows_of_no_cache_finds_nothing(layout):
    run = jax.jit(lambda handle, ids: kernels.gather_rows(handle, ids, layout))
    rows, found = run(np.zeros(2, np.uint32), halves(KEYS))
    assert not np.asarray(found).any()
    assert all(not np.asarray(column).astype(np.float32).any() for column in rows.values())


def test_gather_rows_of_dropped_cache_raises(layout):
    cache = EmbeddingCache(layout)
    cache.upsert(KEYS, values(KEYS))
    handle = kernels.handle_operand(cache)
    run = jax.jit(lambda handle, ids: kernels.gather_rows(handle, ids, layout))
    jax.block_until_ready(run(handle, halves(KEYS)))
    del cache
    gc.collect()
    with pytest.raises(PROGRAM_ERRORS, match="belongs to no living cache"):
        jax.block_until_ready(run(handle, halves(KEYS)))


@pytest.mark.parametrize(
    "columns",
    [
        COLUMNS[:-1],
        [("x", "float32", (3,)), *COLUMNS[1:]],
        [("h", "float32", (4,)), *COLUMNS[1:]],
        [("h", "int32", (3,)), *COLUMNS[1:]],
    ],
    ids=["fewer", "renamed", "reshaped", "retyped"],
)
def test_gather_rows_of_other_layout_is_refused(cache, columns):
    run = jax.jit(lambda handle, ids: kernels.gather_rows(handle, ids, RowLayout(columns)))
    with pytest.raises(PROGRAM_ERRORS, match="compile it with the layout of the cache"):
        jax.block_until_ready(run(kernels.handle_operand(cache), halves(KEYS)))


def test_gather_rows_bad_operands_are_refused(cache, layout):
    handle = kernels.handle_operand(cache)
    with pytest.raises(ConfigError, match="expected uint32"):
        kernels.gather_rows(handle, KEYS, layout)
    with pytest.raises(ConfigError, match="halves of 64-bit keys"):
        kernels.gather_rows(handle, np.zeros((4, 3), np.uint32), layout)
    with pytest.raises(ConfigError, match="see handle_operand"):
        kernels.gather_rows(np.zeros(3, np.uint32), halves(KEYS), layout)
