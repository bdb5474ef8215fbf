"""Memory that the cache lends, and snapshots."""

import gc
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax._native import EmbeddingCache, RowLayout
from aif_jax.errors import RequestError

WIDTH = 64


def make(**options) -> EmbeddingCache:
    return EmbeddingCache(RowLayout([("row", "float32", (WIDTH,)), ("count", "int32", ())]), **options)


def fill(cache: EmbeddingCache, keys: np.ndarray, version: int = 0) -> None:
    values = keys.astype(np.float32) + version
    cache.upsert(keys, {"row": np.repeat(values[:, None], WIDTH, 1), "count": keys.astype(np.int32)})


def base_of(array: np.ndarray) -> object:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


class TestLoans:
    def test_loans_memory_is_reused_only_after_last_array_is_gone(self):
        cache = make()
        keys = np.arange(4096, dtype=np.uint64)
        fill(cache, keys)
        first, _ = cache.gather(keys)
        place = first["row"].__array_interface__["data"][0]
        assert place % 64 == 0
        assert base_of(first["row"]) is not None
        part = first["row"][10:20, 3]
        del first
        gc.collect()
        second, _ = cache.gather(keys)
        assert second["row"].__array_interface__["data"][0] != place, "a view still holds the memory"
        assert cache.memory_usage()["pooled_bytes"] == 0
        np.testing.assert_array_equal(part, keys[10:20])
        del part, second
        gc.collect()
        assert cache.memory_usage()["pooled_bytes"] > 0
        third, _ = cache.gather(keys[:4000].copy())
        assert third["row"].flags.writeable
        np.testing.assert_array_equal(third["count"], keys[:4000])

    def test_loans_outlive_their_cache(self):
        cache = make()
        keys = np.arange(4096, dtype=np.uint64)
        fill(cache, keys)
        columns, _ = cache.gather(keys)
        del cache
        gc.collect()
        np.testing.assert_array_equal(columns["row"][:, 0], keys)

    def test_loans_batch_that_jax_still_reads_is_not_overwritten(self):
        """Programs run after the call that starts them returns: a buffer that came back too early shows."""
        cache = make()
        keys = np.arange(8192, dtype=np.uint64)
        fill(cache, keys)

        @jax.jit
        def slow_sum(rows):
            # Work enough that the next gathers come while this one reads.
            mixed = rows
            for _ in range(6):
                mixed = jnp.sin(mixed) * 0 + rows
            return mixed.sum(axis=1)

        slow_sum(jnp.zeros((4096, WIDTH))).block_until_ready()
        places, results, aliased = set(), [], 0
        rng = np.random.default_rng(0)
        for _ in range(60):
            asked = rng.permutation(keys)[:4096]
            columns, found = cache.gather(asked)
            assert found.all()
            place = columns["row"].__array_interface__["data"][0]
            places.add(place)
            on_device = jax.device_put(columns["row"])
            aliased += on_device.unsafe_buffer_pointer() == place
            results.append((asked, slow_sum(on_device)))
            del columns, on_device
        assert aliased > 50, "JAX is to take the memory without a copy, or this test shows nothing"
        for asked, result in results:
            np.testing.assert_allclose(np.asarray(result), asked.astype(np.float32) * WIDTH, rtol=1e-6)
        assert len(places) < 60, "memory does come back"


def test_snapshot_while_others_write_is_of_one_moment():
    cache = make()
    keys = np.arange(5000, dtype=np.uint64)
    fill(cache, keys)
    stop = threading.Event()

    def write() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            # So few rows are published in one turn at the table, so no snapshot falls between them.
            fill(cache, keys[:64], version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            got, columns, ages_s = cache.snapshot()
            order = np.argsort(got)
            np.testing.assert_array_equal(got[order], keys)
            versions = (columns["row"][order, 0] - keys.astype(np.float32))[:64]
            assert len(set(versions.tolist())) == 1
            np.testing.assert_array_equal(columns["count"][order], keys)
            assert ages_s.dtype == np.float32
            assert (ages_s >= 0).all()
    finally:
        stop.set()
        writer.join()


def test_snapshot_of_empty_cache_has_empty_columns():
    keys, columns, ages_s = make().snapshot()
    assert keys.shape == ages_s.shape == columns["count"].shape == (0,)
    assert columns["row"].shape == (0, WIDTH)


@pytest.mark.parametrize(
    "options", [{"huge_pages": False}, {"prefault": True}, {"huge_pages": False, "prefault": True}]
)
def test_cache_page_options_change_no_result(options):
    cache = make(initial_keys=30_000, **options)
    keys = np.arange(30_000, dtype=np.uint64) << np.uint64(40)
    cache.upsert(
        keys, {"row": np.ones((len(keys), WIDTH), np.float32), "count": np.arange(len(keys), dtype=np.int32)}
    )
    columns, found = cache.gather(keys[::-1].copy())
    assert found.all()
    np.testing.assert_array_equal(columns["count"], np.arange(len(keys))[::-1])


def test_cache_unaligned_keys_are_refused_with_the_fix():
    raw = np.zeros(8 * 4 + 1, np.uint8)
    with pytest.raises(RequestError, match="multiple of 8"):
        make().gather(raw[1:].view(np.uint64))
