"""Item ids as keys."""

import numpy as np
import pytest

from aif_jax.errors import RequestError
from aif_jax.features import item_keys
from aif_jax.features.ids import KeySet


def test_item_keys_integers_pass_and_strings_are_hashed():
    assert item_keys([3, 2**64 - 1]).tolist() == [3, 2**64 - 1]
    assert item_keys(np.array([7], np.int16)).tolist() == [7]
    given_keys = np.array([1, 2], np.uint64)
    assert item_keys(given_keys) is given_keys
    assert item_keys([]).shape == (0,)
    words = ["anna", "bruno"]
    keys = item_keys(words)
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 2
    for same in (np.array(words), np.array(words, dtype=object), tuple(words)):
        assert item_keys(same).tolist() == keys.tolist()


def test_item_keys_of_strings_are_xxh3():
    # The digest of the empty string that the reference implementation of XXH3 (64 bits, seed 0) publishes.
    assert item_keys([""]).tolist() == [0x2D06800538D394C2]


@pytest.mark.parametrize(
    "ids",
    [
        [-1],
        np.array([1, -5]),
        [1.0],
        np.array([1.5]),
        ["a", 1],
        [None],
        [True],
        [2**64],
        [[1, 2]],
        "abc",
        [b"a"],
    ],
    ids=repr,
)
def test_item_keys_malformed_ids_are_refused(ids):
    with pytest.raises(RequestError, match="ids"):
        item_keys(ids)


@pytest.mark.parametrize("seed", range(20))
def test_key_set_random_keys_agree_with_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.choice([0, 1, 2, 50, 1000, 100_000]))
    # Both keys spread out and keys side by side, those at the ends of their range among them.
    pool = rng.integers(0, 2**64, 3000, np.uint64) if seed % 2 else np.arange(5000, dtype=np.uint64)
    pool[:2] = 0, 2**64 - 1
    members, asked = rng.choice(pool, size), rng.choice(pool, 4096)
    found = KeySet(members).has(asked)
    assert found.tolist() == np.isin(asked, members).tolist()
    assert len(KeySet(members)) == len(set(members.tolist()))
