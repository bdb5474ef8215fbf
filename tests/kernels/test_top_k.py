"""Every implementation of the best scores against a stable sort in NumPy."""

import functools

import jax
import numpy as np
import pytest

from aif_jax import kernels
from aif_jax.errors import ConfigError

IMPLEMENTATIONS = ("reference", "native", "auto")


def best(implementation, scores, k):
    return jax.jit(functools.partial(kernels.top_k, k=k, implementation=implementation))(scores)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_top_k_orders_by_score_then_position(implementation):
    rng = np.random.default_rng(0)
    for n, k in [(1, 1), (16, 0), (16, 16), (301, 53), (4096, 500), (4096, 4095)]:
        smooth = rng.normal(size=n).astype(np.float32)
        ties = rng.integers(-2, 3, n).astype(np.float32)
        ties[rng.random(n) < 0.2] = -np.inf
        ties[rng.random(n) < 0.1] = np.inf
        for scores in (smooth, ties, np.full(n, -np.inf, np.float32)):
            found, order = best(implementation, scores, k)
            expected = np.argsort(-scores, kind="stable")[:k]
            np.testing.assert_array_equal(order, expected)
            np.testing.assert_array_equal(found, scores[expected])
            assert (found.dtype, order.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_top_k_zeros_of_both_signs_are_equal(implementation):
    scores = np.asarray([-0.0, 0.0, -1.0, -0.0, 0.0, 1.0], np.float32)
    found, order = best(implementation, scores, 6)
    assert order.tolist() == [5, 0, 1, 3, 4, 2]
    assert not np.signbit(found[1:5]).any()


def test_top_k_of_batch_axes_equals_vmap():
    scores = np.random.default_rng(1).normal(size=(3, 2, 40)).astype(np.float32)
    expected = best("reference", scores, 7)
    native = best("native", scores, 7)
    mapped = jax.vmap(jax.vmap(lambda row: kernels.top_k(row, 7, implementation="native")))(scores)
    for found in (native, mapped):
        for array, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(
    ("scores", "k", "words"),
    [
        (np.zeros(5, np.float64), 2, "float32"),
        (np.float32(1.0), 1, r"\[\.\.\., N\]|axes|dimensions|shape"),
        (np.zeros(5, np.float32), 6, "k is 6, expected 0 to 5"),
        (np.zeros(5, np.float32), -1, "k is -1, expected 0 to 5"),
    ],
)
def test_top_k_bad_operands_are_refused(scores, k, words):
    with pytest.raises(ConfigError, match=words):
        kernels.top_k(scores, k)
