"""The embedding cache: layouts, rows, bounds, expiry, threads."""

import gc
import pickle
import threading

import jax
import ml_dtypes
import numpy as np
import pytest

from aif_jax._native import EmbeddingCache, RowLayout, distinct, hash_strings
from aif_jax.errors import ConfigError, LayoutError, RequestError
from support.waiting import eventually

COLUMNS = [
    ("h", "float32", (6,)),
    ("e", "bfloat16", (2, 3)),
    ("w", "float16", (5,)),
    ("i8", "int8", (3,)),
    ("signature", "uint8", (7,)),
    ("category", "int32", (2,)),
    ("count", "uint32", ()),
]


DTYPES = {name: np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for name, dtype, _ in COLUMNS}


LAST = 2**64 - 1


def u64(*keys: int) -> np.ndarray:
    return np.array(keys, np.uint64)


def rows(keys: np.ndarray, version: int = 0) -> dict[str, np.ndarray]:
    """Rows whose every element follows from the key, the version and its place."""
    columns = {}
    for name, _, shape in COLUMNS:
        size = int(np.prod(shape, dtype=int))
        code = (keys % np.uint64(97)).astype(np.int64)[:, None] + version + np.arange(size)
        columns[name] = (code % 120).reshape(len(keys), *shape).astype(DTYPES[name])
    return columns


def assert_rows(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(got) == list(expected)
    for name, column in expected.items():
        assert got[name].dtype == column.dtype
        np.testing.assert_array_equal(got[name], column, err_msg=name)


@pytest.fixture
def layout() -> RowLayout:
    return RowLayout(COLUMNS)


@pytest.fixture
def cache(layout: RowLayout) -> EmbeddingCache:
    return EmbeddingCache(layout)


def test_row_layout_aligns_columns_and_rows(layout: RowLayout):
    sizes = {name: int(np.prod(shape, dtype=int)) * DTYPES[name].itemsize for name, _, shape in COLUMNS}
    assert layout.payload_bytes == sum(sizes.values())
    assert layout.row_bytes % 64 == 0
    end = 0
    for name, offset in layout.offsets.items():
        assert offset % 4 == 0
        assert end <= offset < end + 4
        end = offset + sizes[name]
    assert end <= layout.row_bytes < end + 64
    assert layout.columns == COLUMNS


def test_row_layout_compares_by_value(layout: RowLayout):
    same = RowLayout(COLUMNS)
    other = RowLayout(COLUMNS[1:])
    assert layout == same
    assert hash(layout) == hash(same)
    assert layout != other
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert "signature: uint8[7]" in repr(layout)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ([], "at least one column"),
        ([("a", "float64", (1,))], "bfloat16"),
        ([("a", "int8", (1,)), ("a", "int8", (1,))], "twice"),
        ([("a", "int8", (0,))], "dimension of 0"),
    ],
)
def test_row_layout_impossible_columns_are_refused(columns, says: str):
    with pytest.raises(LayoutError, match=says):
        RowLayout(columns)


def test_cache_gather_returns_rows_as_written(cache: EmbeddingCache):
    keys = u64(0, 1, LAST, 2**63, 2**40 + 5, 5)
    cache.upsert(keys, rows(keys))
    assert len(cache) == len(keys)
    got, found = cache.gather(keys[::-1].copy())
    assert found.dtype == np.bool_
    assert found.all()
    assert_rows(got, rows(keys[::-1]))
    assert sorted(cache.keys()) == sorted(keys)


def test_cache_gather_missing_rows_are_masked_and_zeroed(cache: EmbeddingCache):
    keys = u64(1, 2**32 + 1)
    cache.upsert(keys[:1], rows(keys[:1], 1))
    out = {name: np.full_like(column, 9) for name, column in rows(keys).items()}
    got, found = cache.gather(keys, out)
    assert found.tolist() == [True, False]
    expected = rows(keys, 1)
    for column in expected.values():
        column[1] = 0
    assert_rows(got, expected)
    assert cache.contains(keys).tolist() == [True, False]
    ages_s = cache.ages_s(keys)
    assert ages_s.dtype == np.float32
    assert 0 <= ages_s[0] < 60
    assert np.isnan(ages_s[1])


def test_cache_upsert_replaces_and_delete_removes(cache: EmbeddingCache):
    keys = np.arange(1000, dtype=np.uint64)
    for version in range(3):
        cache.upsert(keys, rows(keys, version))
    assert cache.delete(u64(3, 3, 5000)) == 1
    got, found = cache.gather(keys)
    assert np.flatnonzero(~found).tolist() == [3]
    expected = rows(keys, 2)
    for column in expected.values():
        column[3] = 0
    assert_rows(got, expected)
    cache.clear()
    assert len(cache) == 0
    assert not cache.contains(keys).any()


def test_cache_upsert_repeated_key_keeps_last_row(cache: EmbeddingCache):
    keys = u64(8, 8, 8)
    columns = {name: np.concatenate([rows(keys[:1], v)[name] for v in (1, 2, 3)]) for name, _, _ in COLUMNS}
    cache.upsert(keys, columns)
    row = cache.get(8)
    assert row is not None
    assert_rows(row, {name: column[0] for name, column in rows(keys[:1], 3).items()})
    assert cache.get(9) is None


def test_cache_empty_batches_are_no_ops(cache: EmbeddingCache):
    none = u64()
    cache.upsert(none, rows(none))
    got, found = cache.gather(none)
    assert_rows(got, rows(none))
    assert found.shape == (0,)
    assert cache.delete(none) == 0


def test_cache_gather_out_is_written_in_place(cache: EmbeddingCache):
    keys = np.arange(10, dtype=np.uint64)
    cache.upsert(keys, rows(keys))
    out = {name: np.empty_like(column) for name, column in rows(keys).items()}
    got, _ = cache.gather(keys, out)
    assert all(got[name] is out[name] for name in out)
    assert_rows(out, rows(keys))


def test_cache_gather_arrays_are_aligned_and_jax_takes_them_without_copy(cache: EmbeddingCache):
    keys = np.arange(33, dtype=np.uint64)
    cache.upsert(keys, rows(keys))
    got, _ = cache.gather(keys)
    for column in got.values():
        assert column.ctypes.data % 64 == 0
        assert column.flags.c_contiguous
        assert column.flags.writeable
    on_device = jax.device_put(got["h"], jax.devices("cpu")[0])
    assert on_device.unsafe_buffer_pointer() == got["h"].ctypes.data


@pytest.mark.parametrize(
    "keys",
    [
        [1, 2],
        np.array([1, 2], np.int64),
        np.array([[1, 2]], np.uint64),
        np.arange(4, dtype=np.uint64)[::2],
        np.array([1, 2], np.uint64).astype(">u8"),
    ],
)
def test_cache_malformed_keys_are_refused(cache: EmbeddingCache, keys):
    for call in (cache.gather, cache.delete, cache.contains, cache.ages_s):
        with pytest.raises(RequestError, match=r"contiguous one-dimensional NumPy array of uint64"):
            call(keys)
    with pytest.raises(RequestError, match="got"):
        cache.upsert(keys, rows(u64(1, 2)))


def wrong(name: str, array) -> dict:
    return {**rows(u64(1, 2)), name: array}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (wrong("h", np.zeros((2, 6))), "float64"),
        (wrong("h", np.zeros((3, 6), np.float32)), r"shape \[2, 6\]; got shape \[3, 6\]"),
        (wrong("h", np.zeros((2, 3), np.float32)), r"got shape \[2, 3\]"),
        (wrong("h", np.float32(0)), "got float32"),
        (wrong("h", np.zeros((6, 2), np.float32).T), "strides"),
        (wrong("h", np.zeros((2, 6), ">f4")), "byte order"),
        (wrong("e", np.zeros((2, 2, 3), np.float16)), "bfloat16"),
        (wrong("w", np.zeros((2, 5), ml_dtypes.bfloat16)), "float16"),
        (wrong("other", np.zeros(2)), r'unknown: \["other"\]'),
        ({"h": np.zeros((2, 6), np.float32)}, "missing"),
        ([1, 2], "must map"),
    ],
)
def test_cache_columns_that_do_not_fit_are_refused(cache: EmbeddingCache, columns, says: str):
    keys = u64(1, 2)
    with pytest.raises(LayoutError, match=says):
        cache.upsert(keys, columns)
    assert len(cache) == 0
    with pytest.raises(LayoutError, match=says):
        cache.gather(keys, columns)


def test_cache_gather_read_only_or_shared_out_is_refused(cache: EmbeddingCache):
    keys = np.arange(4, dtype=np.uint64)
    locked = rows(keys)
    locked["h"].flags.writeable = False
    cache.upsert(keys, locked)  # reading is fine
    with pytest.raises(LayoutError, match="cannot be written to"):
        cache.gather(keys, locked)
    shared = rows(keys)
    memory = np.zeros(4 * 7 + 4 * 4, np.uint8)
    shared["signature"] = memory[: 4 * 7].reshape(4, 7)
    shared["count"] = memory[12:28].view(np.uint32)
    with pytest.raises(LayoutError, match="shares memory"):
        cache.gather(keys, shared)


def test_cache_bounded_evicts_rows_not_read():
    layout = RowLayout([("state", "float32", (250,))])
    capacity = 2_000_000
    cache = EmbeddingCache(layout, capacity_bytes=capacity)
    limit = cache.stats()["max_rows"]
    assert 0.85 * capacity / layout.row_bytes < limit < capacity / layout.row_bytes
    popular = np.arange(50, dtype=np.uint64)
    cache.upsert(popular, {"state": np.ones((50, 250), np.float32)})
    for start in range(1000, 1000 + 20 * limit, 100):
        keys = np.arange(start, start + 100, dtype=np.uint64)
        cache.upsert(keys, {"state": np.zeros((100, 250), np.float32)})
        assert cache.gather(popular)[1].all()
        assert len(cache) <= limit
        usage = cache.memory_usage()
        assert usage["total_bytes"] - usage["new_table_bytes"] <= capacity
    stats = cache.stats()
    assert stats["evictions"] == stats["inserts"] - limit
    assert stats["overrun_rows"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity_bytes": 100},
        {"ttl_s": 0.0},
        {"ttl_s": -1.0},
        {"ttl_s": float("nan")},
        {"initial_keys": 2**40},
    ],
)
def test_cache_impossible_configuration_is_refused(layout: RowLayout, wrong: dict):
    with pytest.raises(ConfigError, match=r"capacity_bytes|ttl|initial_keys"):
        EmbeddingCache(layout, **wrong)


def test_cache_rows_expire_after_time_to_live(layout: RowLayout):
    cache = EmbeddingCache(layout, ttl_s=1.0)
    keys = u64(1, 2)
    cache.upsert(keys, rows(keys))
    assert cache.contains(keys).all()
    assert eventually(lambda: not cache.contains(keys).any())
    cache.upsert(keys[1:], rows(keys[1:]))
    got, found = cache.gather(keys)
    assert found.tolist() == [False, True]
    assert not got["h"][0].any()
    stats = cache.stats()
    assert (stats["hits"], stats["misses"], stats["expiries"]) == (1, 1, 1)
    assert cache.keys().tolist() == [2]


def test_cache_stats_count_operations(cache: EmbeddingCache, layout: RowLayout):
    keys = np.arange(100, dtype=np.uint64)
    cache.upsert(keys, rows(keys))
    cache.upsert(keys[:40], rows(keys[:40]))
    cache.delete(keys[:10])
    cache.gather(keys)
    stats = cache.stats()
    counts = [stats[name] for name in ("inserts", "updates", "deletes", "hits", "misses", "live_rows")]
    assert counts == [100, 40, 10, 90, 10, 90]
    usage = cache.memory_usage()
    assert usage["payload_bytes"] == stats["payload_bytes"] == 90 * layout.payload_bytes
    parts = ("payload", "padding", "retired", "free", "table", "side", "order")
    assert usage["total_bytes"] == sum(usage[f"{part}_bytes"] for part in parts)


def test_cache_at_70_percent_load_has_at_most_24_bytes_overhead_a_key():
    keys = np.arange(200_000, dtype=np.uint64) << np.uint64(20)
    cache = EmbeddingCache(RowLayout([("x", "float32", (16,))]), initial_keys=len(keys))
    cache.upsert(keys, {"x": np.zeros((len(keys), 16), np.float32)})
    assert cache.stats()["overhead_bytes"] / len(keys) <= 24


def test_cache_handles_are_unique_and_never_reused(layout: RowLayout):
    first, second = EmbeddingCache(layout), EmbeddingCache(layout)
    handles = {first.handle, second.handle}
    assert len(handles) == 2
    assert 0 not in handles
    del first
    gc.collect()
    assert EmbeddingCache(layout).handle not in handles


def test_cache_threads_gather_whole_rows_while_others_write():
    """Each row says its key and version in every element; a torn or misplaced row would not agree."""
    cache = EmbeddingCache(RowLayout([("a", "int32", (40,)), ("b", "uint32", (3,))]), initial_keys=100)
    keys = np.arange(3000, dtype=np.uint64)
    errors: list[BaseException] = []
    stop = threading.Event()
    barrier = threading.Barrier(5)
    checked = [0, 0, 0]

    def write(own: np.ndarray) -> None:
        barrier.wait()
        version = 0
        while not stop.is_set():
            version += 1
            code = (own.astype(np.int64) * 1000 + version % 1000)[:, None]
            columns = {"a": np.tile(code, 40).astype(np.int32), "b": np.tile(code, 3).astype(np.uint32)}
            cache.upsert(own, columns)
            cache.delete(own[version % 7 :: 7].copy())

    def read(thread: int) -> None:
        barrier.wait()
        rng = np.random.default_rng(thread)
        while not stop.is_set():
            asked = rng.integers(0, 3100, 512).astype(np.uint64)
            got, found = cache.gather(asked)
            whole = np.concatenate([got["a"].astype(np.int64), got["b"].astype(np.int64)], axis=1)
            assert (whole == whole[:, :1]).all()
            np.testing.assert_array_equal(whole[found, 0] // 1000, asked[found].astype(np.int64))
            assert not whole[~found].any()
            assert not found[asked >= 3000].any()
            checked[thread] += int(found.sum())

    def guarded(work, *args) -> None:
        try:
            work(*args)
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(write, keys[i::2].copy())) for i in range(2)]
    threads += [threading.Thread(target=guarded, args=(read, i)) for i in range(3)]
    for thread in threads:
        thread.start()
    enough = eventually(lambda: errors or min(checked) > 50_000)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert enough, checked
    stats = cache.stats()
    assert stats["inserts"] - stats["deletes"] == stats["live_rows"] == len(cache.keys())


def test_hash_strings_keys_are_stable_and_spread():
    keys = hash_strings(["", "item-1", "item-2", "ключ"])
    assert keys.dtype == np.uint64
    # The specification's value for the empty input; and the same string gives the same key.
    assert keys[0] == 0x2D06800538D394C2
    assert len(set(keys.tolist())) == 4
    np.testing.assert_array_equal(hash_strings(["item-1"]), keys[1:2])
    assert hash_strings([]).shape == (0,)


@pytest.mark.parametrize(
    ("strings", "says"),
    [("abc", "list of str"), (["a", 1], "id 1"), ([b"a"], "id 0"), (["\ud800"], "surrogate")],
)
def test_hash_strings_other_values_are_refused(strings, says: str):
    with pytest.raises(RequestError, match=says):
        hash_strings(strings)


def test_cache_gather_column_equals_column_of_gather(cache: EmbeddingCache):
    rng = np.random.default_rng(3)
    keys = rng.permutation(5000).astype(np.uint64)
    cache.upsert(keys[:3000], rows(keys[:3000]))
    asked = rng.choice(keys, 4096)
    columns, found = cache.gather(asked)
    for name, column in columns.items():
        alone, there = cache.gather_column(asked, name)
        assert (alone.dtype, alone.shape) == (column.dtype, column.shape)
        assert alone.tobytes() == column.tobytes()
        assert there.tolist() == found.tolist()
    empty, there = cache.gather_column(asked[:0], "h")
    assert (empty.shape, len(there)) == ((0, 6), 0)
    with pytest.raises(LayoutError, match=r'no column "nothing".*name one of its columns'):
        cache.gather_column(asked, "nothing")
    with pytest.raises(RequestError, match="keys must be a contiguous"):
        cache.gather_column(asked[::2], "h")


def test_distinct_random_keys_gives_first_places():
    rng = np.random.default_rng(5)
    for n in (0, 1, 2, 100, 8192, 8193, 50_000):
        keys = rng.integers(0, 2**63, n, dtype=np.uint64)
        assert distinct(keys) is None
        again = np.concatenate([keys, keys[: n // 2], np.zeros(2, np.uint64)])
        rng.shuffle(again)
        _, first = np.unique(again, return_index=True)
        np.testing.assert_array_equal(distinct(again), np.sort(first))
    with pytest.raises(RequestError, match="contiguous one-dimensional"):
        distinct(np.arange(4))
