"""Sizes that programs are compiled for, and padding to them."""

import numpy as np
import pytest

from aif_jax.errors import RequestError
from aif_jax.features import bucket_for, pad_to


def test_bucket_for_gives_smallest_that_holds():
    assert [bucket_for(n, (64, 16, 32)) for n in (0, 16, 17, 64)] == [16, 16, 32, 64]
    for n in (65, -1):
        with pytest.raises(RequestError, match="buckets"):
            bucket_for(n, (64, 16, 32))


def test_pad_to_appends_at_the_end():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    padded = pad_to(array, 5, axis=-1, fill=-1)
    assert padded.tolist() == [[0, 1, 2, -1, -1], [3, 4, 5, -1, -1]]
    assert padded.dtype == np.int32
    assert pad_to(array, 2) is array
    with pytest.raises(RequestError, match="longer"):
        pad_to(array, 1)
