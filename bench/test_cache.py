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
def timed(benchmark, rows, request):
    """Check what a gather of one batch returns, and time it over all batches in turns."""
    name = request.node.callspec.params["rows"]
    benchmark.group = f"gather {rows.size.batch:,} rows of {rows.size.rows:,}, {name}"

    def timed(gather, batches):
        found = gather(batches[3])
        expected = rows.array[rows.batches[3]]
        if isinstance(found, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        else:
            assert found[1].all()
            for column, wanted in rows.split(expected).items():
                np.testing.assert_array_equal(found[0][column].view(np.uint8), wanted.view(np.uint8))
        del found
        following = itertools.cycle(batches)

        def run():
            gather(next(following))  # which frees leased arrays

        benchmark(run)

    return timed


def test_cache_gather_into_given_arrays(rows, timed):
    out = rows.split(np.empty((rows.size.batch, rows.size.row_bytes), np.uint8))
    timed(lambda keys: rows.cache.gather(keys, out), rows.asked)


def test_cache_gather_into_leased_arrays(rows, timed):
    timed(rows.cache.gather, rows.asked)


def test_numpy_take_by_position(rows, timed):
    out = np.empty((rows.size.batch, rows.size.row_bytes), np.uint8)
    timed(lambda batch: np.take(rows.array, batch, axis=0, out=out, mode="clip"), rows.batches)


def test_dictionary_rows_stacked(rows, timed):
    table = dict(zip(rows.keys.tolist(), rows.array, strict=True))
    timed(lambda keys: np.stack([table[key] for key in keys]), [keys.tolist() for keys in rows.asked])
