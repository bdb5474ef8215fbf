"""The self-check passes here, and notices a kernel that differs from its definition or does not run."""

import numpy as np
import pytest

from aif_jax import kernels
from aif_jax.kernels import ffi

KERNELS = {"simtier (simhash)", "simtier (int8)", "table_sum", "gather_rows", "interaction", "top_k"}


@pytest.mark.parametrize("seed", range(3))
def test_self_check_all_kernels_agree(seed: int) -> None:
    assert kernels.self_check(seed) == dict.fromkeys(KERNELS, "")


def test_self_check_names_kernel_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ffi.call

    def wrong(name, result, *operands, **attributes):
        given = right(name, result, *operands, **attributes)
        if name == "aif_table_sum":
            return given + np.float32(1e-3)
        if name == "aif_gather_rows":
            raise RuntimeError("no such cache")
        return given

    monkeypatch.setattr(ffi, "call", wrong)
    found = kernels.self_check()
    assert {name for name, complaint in found.items() if complaint} == {"table_sum", "gather_rows"}
    assert "differs from its definition" in found["table_sum"]
    assert found["gather_rows"] == "RuntimeError: no such cache"
