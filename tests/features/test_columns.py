"""Columns of other libraries as plain ones."""

import pyarrow as pa

from aif_jax.features.columns import plain_column, read_ids


def test_plain_column_arrow_keeps_values_and_nulls() -> None:
    big = 2**63 + 1  # no float can hold it
    column = plain_column(pa.array([big, None], pa.uint64()))
    assert (int(column[0]), column.mask.tolist()) == (big, [False, True])
    assert plain_column(pa.array([True, None, False])) == [True, None, False]
    assert plain_column(pa.array([True, False])).tolist() == [True, False]
    assert plain_column(pa.array([[1, 2], None, []], pa.list_(pa.int32()))) == [[1, 2], None, []]
    assert plain_column(pa.nulls(2)) == [None, None]
    ids, keys, strings = read_ids(pa.array(["a", "b"], pa.large_string()))
    assert (ids.tolist(), len(keys), strings) == (["a", "b"], 2, True)
