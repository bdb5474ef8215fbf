"""Embedding cache: gathering a request's rows by key, against NumPy by known position and a dictionary."""

import dataclasses
import itertools

import numpy as np
import pytest

from cache_rows import SIZES, Rows


@pytest.fixture(scope="module", params=SIZES)
def rows(request, sizes):
    size = SIZES[request.param]
    count, batch = (int(number * sizes.cache_share) for number in (size.rows, size.batch))
    return Rows(dataclasses.replace(size, rows=count, batch=max(16, batch)))


@pytest.fixture
def group(benchmark, rows, request):
    name = request.node.callspec.params["rows"]
    benchmark.group = f"gather {rows.size.batch:,} rows of {rows.size.rows:,}, {name}"


@pytest.mark.usefixtures("group")
class TestGather:
    def test_cache_gather_into_given_arrays(self, benchmark, rows):
        out = rows.split(np.empty((rows.size.batch, rows.size.row_bytes), np.uint8))
        columns, found = rows.cache.gather(rows.asked[3], out)
        assert found.all()
        for name, column in rows.split(rows.array[rows.batches[3]]).items():
            np.testing.assert_array_equal(columns[name].view(np.uint8), column.view(np.uint8))
        following = itertools.cycle(rows.asked)
        benchmark(lambda: rows.cache.gather(next(following), out))

    def test_cache_gather_into_leased_arrays(self, benchmark, rows):
        columns, found = rows.cache.gather(rows.asked[3])
        assert found.all()
        for name, column in rows.split(rows.array[rows.batches[3]]).items():
            np.testing.assert_array_equal(columns[name].view(np.uint8), column.view(np.uint8))
        del columns
        following = itertools.cycle(rows.asked)
        benchmark(lambda: rows.cache.gather(next(following)) and None)

    def test_numpy_take_by_position(self, benchmark, rows):
        out = np.empty((rows.size.batch, rows.size.row_bytes), np.uint8)
        np.take(rows.array, rows.batches[3], axis=0, out=out, mode="clip")
        np.testing.assert_array_equal(out, rows.array[rows.batches[3]])
        following = itertools.cycle(rows.batches)
        benchmark(lambda: np.take(rows.array, next(following), axis=0, out=out, mode="clip"))

    def test_dictionary_rows_stacked(self, benchmark, rows):
        table = dict(zip(rows.keys.tolist(), rows.array, strict=True))
        asked = [keys.tolist() for keys in rows.asked]

        def gather(keys):
            return np.stack([table[key] for key in keys])

        np.testing.assert_array_equal(gather(asked[3]), rows.array[rows.batches[3]])
        following = itertools.cycle(asked)
        benchmark(lambda: gather(next(following)))
