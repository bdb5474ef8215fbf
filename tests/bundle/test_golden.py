"""Differences from the golden vectors that are accepted, and those that are not, in each precision."""

import ml_dtypes
import numpy as np
import pytest

from aif_jax.bundle.golden import RELATIVE, difference

BF16 = np.dtype(ml_dtypes.bfloat16)


def rows(precision: str, noise: float = 0.0, factor: float = 1.0) -> dict[str, np.ndarray]:
    """Item rows computed with errors: random ones of a size, and a factor common to all."""
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    columns = {}
    for name, width in (("h", 16), ("e", 8), ("bridge", 4)):
        x = rng.normal(size=(64, width)) * (0.1 if name == "bridge" else 1.0)
        columns[name] = (x * factor + noise * other.normal(size=x.shape)).astype(np.float32)
    if precision == "bfloat16":
        return {name: x.astype(BF16) for name, x in columns.items()}
    if precision == "int8":
        scale = {name: np.abs(x).max(axis=1, keepdims=True) / 127 for name, x in columns.items()}
        out = {name: np.rint(x / scale[name]).astype(np.int8) for name, x in columns.items()}
        return {**out, "scale": np.concatenate(list(scale.values()), axis=1).astype(np.float32)}
    return columns


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_difference_of_other_summation_order_is_accepted(precision: str) -> None:
    want = rows(precision)
    assert difference("item", want, want) is None
    for noise in (1e-7, 1e-6, 1e-5):
        given = rows(precision, noise=noise)
        assert any((want[name] != given[name]).any() for name in want) or precision != "float32"
        assert difference("item", want, given) is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_difference_of_many_small_steps_is_refused(precision: str) -> None:
    want = rows(precision)
    for factor in (1.002, 0.998):
        given = rows(precision, factor=factor)
        if precision == "bfloat16":  # no value is further away than rounding may put it
            apart = np.abs(want["h"].astype(np.float32) - given["h"].astype(np.float32))
            assert (apart <= 2.0**-7 * np.abs(given["h"].astype(np.float32))).all()
        found = difference("item", want, given)
        assert found is not None
        assert "differs by" in found
    for name in want:
        broken = dict(want)
        broken[name] = np.roll(want[name], 1, axis=0)
        assert difference("item", want, broken) is not None


def test_difference_of_one_step_is_accepted_and_of_two_refused() -> None:
    want = rows("bfloat16")
    given = {name: x.copy() for name, x in want.items()}
    bits = given["e"].view(np.uint16)
    bits[5, 3] += 1
    assert difference("item", want, given) is None
    bits[5, 3] += 1
    assert "e: differs by" in str(difference("item", want, given))

    want = rows("int8")
    place = int(np.argmin(np.abs(want["h"][7])))
    given = {name: x.copy() for name, x in want.items()}
    given["h"][7, place] += 1
    assert difference("item", want, given) is None
    given["h"][7, place] += 1
    assert "h: differs by" in str(difference("item", want, given))


def test_difference_of_wrong_scale_is_refused() -> None:
    want = rows("int8")
    given = dict(want, scale=want["scale"] * np.float32(1.002))
    # The scales themselves are small enough to pass for equal.
    assert np.abs(given["scale"] - want["scale"]).max() < RELATIVE * max(1.0, want["scale"].max())
    assert "in the mean" in str(difference("item", want, given))


def test_difference_of_zeros_is_none_and_of_non_finite_values_is_refused() -> None:
    zeros = {"M": np.zeros((1, 4, 8), BF16)}
    assert difference("user", zeros, zeros) is None
    tiny = {"M": np.full((1, 4, 8), 1e-3, BF16)}
    assert difference("user", zeros, tiny) is not None
    broken = {"M": np.full((1, 4, 8), np.nan, BF16)}
    assert "not finite" in str(difference("user", zeros, broken))
    assert difference("user", broken, broken) is None
    odd = {"h": np.zeros((2, 3), np.int8), "scale": np.array([[np.inf], [1.0]], np.float32)}
    assert difference("item", odd, odd) is None
    assert "h is float32" in str(difference("item", odd, dict(odd, h=np.zeros((2, 3), np.float32))))
