"""Safetensors with every dtype that a bundle may hold."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save

from aif_jax.bundle.programs import Operand
from aif_jax.bundle.tensors import load_tensors

DTYPES = ("bool", "int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")


def test_load_tensors_reads_saved_arrays() -> None:
    rng = np.random.default_rng(0)
    given = {name: (100 * rng.random((2, 3))).astype(name) for name in DTYPES}
    given["bfloat16"] = rng.normal(size=(4, 1, 5)).astype(ml_dtypes.bfloat16)
    given["empty"] = np.zeros((0, 2), np.float32)
    given["scalar"] = np.array(3.5, np.float32)
    read = load_tensors(save(given))
    assert read.keys() == given.keys()
    for name, array in given.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)


def test_load_tensors_of_other_content_is_refused() -> None:
    with pytest.raises(SafetensorError):
        load_tensors(b"no such file")
    with pytest.raises(SafetensorError, match="odd is of dtype C64, expected one of BOOL, I8"):
        load_tensors(save({"odd": np.zeros(2, np.complex64)}))


@pytest.mark.parametrize(
    "name", [",", ",f4", "i4,f4", "object", "O", "V8", "str", "", None, ["f4"], "float31"]
)
def test_operand_dtype_that_is_no_name_of_a_number_is_refused(name: Any) -> None:
    with pytest.raises(TypeError, match=r"dtype|data type"):
        Operand("x", name, (1,)).at({})
