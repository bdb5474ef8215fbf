import numpy as np

from aif_jax.data.digests import digest_of_arrays, is_older_digest


def test_digest_of_arrays_same_arrays_gives_same_digest():
    array = np.arange(6).reshape(2, 3)
    assert digest_of_arrays(array, array) == digest_of_arrays(array.copy(), array)
    assert digest_of_arrays(array.T) == digest_of_arrays(np.ascontiguousarray(array.T))


def test_digest_of_arrays_other_values_order_dtype_or_shape_gives_other_digest():
    zeros, ones = np.zeros(4, np.int32), np.ones(4, np.int32)
    digests = [
        digest_of_arrays(zeros, ones),
        digest_of_arrays(ones, zeros),
        digest_of_arrays(np.concatenate([zeros, ones])),
        digest_of_arrays(zeros.reshape(2, 2), ones),
        digest_of_arrays(zeros.view(np.float32), ones),
        digest_of_arrays(zeros),
        digest_of_arrays(zeros, ones[:3]),
    ]
    assert len(set(digests)) == len(digests)


def test_is_older_digest_separates_methods():
    assert is_older_digest("0123456789abcdef" * 2)
    assert not is_older_digest(digest_of_arrays(np.zeros(1)))
    assert not is_older_digest("synthetic")
    assert not is_older_digest(7)
