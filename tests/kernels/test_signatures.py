"""Signatures estimate angles, and do not depend on the batch they are computed in."""

import jax
import numpy as np
import pytest

from aif_jax import kernels
from aif_jax.errors import ConfigError


def unit(rng, *shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_pack_signs_is_lowest_bit_first_and_zero_is_positive():
    values = np.asarray([[1.0, -1.0, 0.0, -2.0, 3.0, -0.5, -1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(kernels.pack_signs(values), [[0b10010101]])
    with pytest.raises(ConfigError, match="multiple of 8"):
        kernels.pack_signs(values[:, :7])
    with pytest.raises(ConfigError, match="multiple of 8"):
        kernels.hyperplanes(0, 4, 12)


def test_hyperplanes_depend_on_seed():
    planes = kernels.hyperplanes(7, 32, 64)
    assert planes.shape == (32, 64)
    assert planes.dtype == np.float32
    np.testing.assert_array_equal(planes, kernels.hyperplanes(7, 32, 64))
    assert (planes != kernels.hyperplanes(8, 32, 64)).any()


def test_simhash_share_of_equal_bits_estimates_angle():
    rng = np.random.default_rng(0)
    bits = 4096
    planes = kernels.hyperplanes(0, 64, bits)
    first, second = unit(rng, 200, 64), unit(rng, 200, 64)
    second = first + 2 * rng.random((200, 1), dtype=np.float32) * second
    second /= np.linalg.norm(second, axis=-1, keepdims=True)
    pairs = [np.unpackbits(np.asarray(kernels.simhash(x, planes)), axis=-1) for x in (first, second)]
    equal = (pairs[0] == pairs[1]).mean(axis=-1)
    angle = np.arccos(np.sum(first * second, axis=-1))
    # A share of `bits` independent bits is off by more than five standard errors once in a million.
    assert np.abs(equal - (1 - angle / np.pi)).max() < 5 * np.sqrt(0.25 / bits)


def test_simhash_in_any_batch_equals_integer_arithmetic():
    rng = np.random.default_rng(1)
    simhash = jax.jit(kernels.simhash)
    for width in (32, 128, 1024):
        planes = kernels.hyperplanes(0, width, 256)
        content = unit(rng, 300, width)
        together = np.asarray(simhash(content, planes))
        exact = np.rint(content * 2048).astype(np.int64) @ planes.astype(np.int64)
        np.testing.assert_array_equal(together, np.packbits(exact >= 0, axis=-1, bitorder="little"))
        for n in (1, 7, 33):
            np.testing.assert_array_equal(simhash(content[-n:], planes), together[-n:])


def test_quantize_int8_keeps_cosine():
    rng = np.random.default_rng(2)
    first, second = unit(rng, 50, 64), unit(rng, 50, 64)
    signature = np.asarray(kernels.quantize_int8(first))
    assert signature.dtype == np.uint8
    np.testing.assert_array_equal(signature.view(np.int8), np.rint(first * 127))
    dot = signature.view(np.int8).astype(np.int64) * np.asarray(kernels.quantize_int8(second)).view(np.int8)
    # Rounding is off by at most 0.5 / 127 in each of 64 components of either side.
    bound = 2 * 0.5 / 127 * np.sqrt(64) + 64 * (0.5 / 127) ** 2
    assert np.abs(dot.sum(axis=-1) / 127**2 - np.sum(first * second, axis=-1)).max() < bound
    np.testing.assert_array_equal(
        np.asarray(kernels.quantize_int8(np.asarray([-2.0, 2.0], np.float32))).view(np.int8), [-127, 127]
    )
