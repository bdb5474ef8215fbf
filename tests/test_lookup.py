"""One look-up in sorted keys."""

import numpy as np
import pytest

from aif_jax.lookup import find


@pytest.mark.parametrize("dtype", [np.uint64, np.int32, object])
def test_find_agrees_with_a_dictionary(dtype: type) -> None:
    random = np.random.default_rng(0)
    known = np.sort(random.choice(1000, 300, replace=False)).astype(dtype)
    wanted = random.integers(-5 if dtype is np.int32 else 0, 1010, (7, 50)).astype(dtype)
    place = {key: position for position, key in enumerate(known.tolist())}
    position, found = find(known, wanted)
    assert position.shape == found.shape == wanted.shape
    assert position.min() >= 0
    assert position.max() < len(known)
    for key, at, there in zip(wanted.ravel().tolist(), position.flat, found.flat, strict=True):
        assert there == (key in place)
        if there:
            assert at == place[key]


def test_find_in_no_keys_finds_nothing() -> None:
    position, found = find(np.zeros(0, np.uint64), np.array([[3, 4]], np.uint64))
    assert position.tolist() == [[0, 0]]
    assert found.tolist() == [[False, False]]
