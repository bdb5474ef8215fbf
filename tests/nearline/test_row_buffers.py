"""Buffers that calls borrow."""

import numpy as np

from aif_jax.nearline.row_buffers import RowBuffers


def test_row_buffers_lent_buffer_is_used_by_one_call() -> None:
    staging = RowBuffers({"h": (np.dtype(np.float32), (3,)), "sig": (np.dtype(np.uint8), (5,))})
    first, second = staging.lend(16), staging.lend(16)
    assert first is not second
    assert first.columns["h"].shape == (16, 3)
    assert first.columns["sig"].dtype == np.uint8
    assert all(column.ctypes.data % 64 == 0 for column in first.columns.values())
    staging.give_back(first)
    assert staging.lend(16) is first
    assert staging.lend(32).size == 32
