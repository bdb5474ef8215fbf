"""The converters of `aif_jax.inputs` by themselves: what they return, and what their errors say."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from aif_jax.errors import AifError, DataError, ItemIndexError, RequestError, SchemaError
from aif_jax.features import EncodeReport, MultiValued, Schema, Vocabulary
from aif_jax.features.records import read_features
from aif_jax.inputs import (
    Ragged,
    item_keys,
    read_column,
    read_content,
    read_flag,
    read_flags,
    read_ids,
    read_number,
    read_numbers,
    read_table,
    read_user_ids,
)
from aif_jax.shown import shown
from aif_jax.types import UserRecord

BIG = 2**63 + 1
"""An id that no float can hold."""


@pytest.mark.parametrize(
    "column",
    [
        pa.array([BIG, None], pa.uint64()),
        pa.chunked_array([[BIG], [None]], pa.uint64()),
        pd.Series([BIG, None], dtype="UInt64"),
        pd.Series([BIG, None], dtype=pd.ArrowDtype(pa.uint64())),
        pd.Series([BIG, None], dtype="UInt64").astype("category"),
        pl.Series([BIG, None], dtype=pl.UInt64),
        np.ma.MaskedArray(np.array([BIG, 0], np.uint64), [False, True]),
    ],
    ids=["arrow", "chunked", "nullable", "pandas of arrow", "categorical", "polars", "masked"],
)
def test_read_column_missing_integers_are_masked_and_others_exact(column: Any) -> None:
    read = read_column(column, "column")
    assert (int(read[0]), read.mask.tolist()) == (BIG, [False, True])
    with pytest.raises(RequestError, match=r"^ids: row 1 is missing"):
        read_ids(column)


def test_read_column_arrow_keeps_values_and_nulls() -> None:
    assert read_column(pa.array([True, None, False]), "x").tolist() == [True, None, False]
    assert read_column(pa.array([True, False]), "x").tolist() == [True, False]
    lists = read_column(pa.array([[1, 2], None, []], pa.list_(pa.int32())), "x")
    assert (lists.values.tolist(), lists.offsets.tolist()) == ([1, 2], [0, 2, 2, 2])
    hidden = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4]), 2, mask=pa.array([True, False]))
    lists = read_column(hidden, "x")  # what a null row holds is not read
    assert (lists.values.tolist(), lists.offsets.tolist()) == ([3, 4], [0, 0, 2])
    assert read_column(pa.nulls(2), "x") == [None, None]
    assert read_column(pa.RunEndEncodedArray.from_arrays([1, 3], [7, 8]), "x").tolist() == [7, 8, 8]


def test_read_column_fitting_arrays_are_not_copied() -> None:
    for column in (np.arange(3), np.zeros((2, 2)), [1, 2], ("a",)):
        assert read_column(column, "x") is column
    ids = np.arange(3, dtype=np.uint64)
    assert read_ids(ids).keys is ids
    assert item_keys(ids[::2]).flags.c_contiguous
    strided = read_column(np.repeat(ids, 2)[::2], "x")
    assert strided.flags.c_contiguous


def test_read_column_bfloat16_is_read_as_floats() -> None:
    assert read_column(np.ones(2, ml_dtypes.bfloat16), "x").dtype == np.float32


class Broken:
    """A column whose library fails."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise KeyError("no such chunk" * 100)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ((n for n in range(3)), "got a generator, which can be read only once.*list"),
        ({3, 4}, "got a set, whose order is arbitrary.*sort"),
        (pl.LazyFrame({"a": [1]}), r"got a LazyFrame, which is not computed yet.*collect\(\)"),
        (pd.DataFrame({"a": [1]}), "got a DataFrame, which is a table; give one of its columns"),
        ({"a": [1]}, "got a dict, which is a table"),
        ("abc", "got 'abc', expected an array or list"),
        (None, "got None, expected an array or list"),
        (np.array(7), "got the single value 7"),
        (np.zeros(1, [("a", int)]), r"got a structured array of \['a'\], a table"),
        (Broken(), r"got a Broken that cannot be read \(KeyError: 'no such chunk"),
        (object(), "got a object, expected an array or list"),
    ],
)
def test_read_column_of_no_column_is_refused_by_name(column: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^prices: {message}") as caught:
        read_column(column, "prices", error=DataError)
    assert len(str(caught.value)) < 400


def test_read_ids_signed_hashes_are_told_how_to_enter() -> None:
    hashes = np.array([5, -(2**62)])
    with pytest.raises(RequestError, match=rf"^ids: row 1 is -{2**62}, .*\.view\(np.uint64\)"):
        read_ids(hashes)
    assert read_ids(hashes.view(np.uint64)).keys.tolist() == [5, 2**64 - 2**62]
    with pytest.raises(RequestError, match="row 1 is -1"):
        read_ids([4, -1])


@pytest.mark.parametrize("ids", [np.array([5, -1, 6, -1]), [5, -1, 6, -1], pd.Series([5, -1, 6, -1])])
def test_read_ids_padding_is_marked_where_it_is_taken(ids: Any) -> None:
    read = read_ids(ids, padded=True)
    assert read.padding is not None
    assert read.padding.tolist() == [False, True, False, True]
    assert read.keys[~read.padding].tolist() == [5, 6]
    with pytest.raises(RequestError, match="row 2 is -2"):
        read_ids([5, -1, -2], padded=True)
    assert read_ids([5, 6], padded=True).padding is None


@pytest.mark.parametrize(
    "flags", [["true"], [2], [1.0], [None], np.array([0.0]), pd.Series([np.nan]), ["false"], [""]]
)
def test_read_flags_truth_of_other_values_is_no_flag(flags: Any) -> None:
    with pytest.raises(ItemIndexError, match=r"^deleted: row 0 is .*, expected true or false"):
        read_flags(flags, 1, "deleted")


def test_read_flags_missing_ones_are_what_the_caller_documents() -> None:
    column = pd.Series([True, None, False], dtype="boolean")
    assert read_flags(column, 3, "x", missing=True).tolist() == [True, True, False]
    assert read_flags([1, None, 0], 3, "x", missing=False).tolist() == [True, False, False]
    with pytest.raises(ItemIndexError, match="x: got 3 flags, expected"):
        read_flags([1, 0, 1], 2, "x")
    assert read_flag(np.array(True), "x") is True
    with pytest.raises(RequestError, match=r"^x: got 'no', expected True or False"):
        read_flag("no", "x")


@pytest.mark.parametrize("value", ["5", True, float("nan"), 10**400, None, [5], -1, np.float32(-2), object()])
def test_read_number_others_are_refused_with_their_value(value: Any) -> None:
    with pytest.raises(RequestError, match=r"^limit: got .*, expected a positive number") as caught:
        read_number(value, "limit", lambda number: number > 0, "a positive number")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [5, 5.0, np.float32(5), np.int8(5), np.array(5)])
def test_read_number_numbers_of_python_and_numpy_are_floats(value: Any) -> None:
    read = read_number(value, "limit", lambda number: number > 0, "a positive number")
    assert (type(read), read) == (float, 5.0)


def test_read_numbers_first_bad_value_is_located() -> None:
    for column, found in (([1, 10**400], "row 1 is an integer of 1,329 bits"), ([1.0, "x"], "row 1 is 'x'")):
        with pytest.raises(SchemaError, match=f"^price: {found}"):
            read_numbers(column, "price")
    assert read_numbers([True, None, pd.NA, np.float32(2), pd.NaT], "x").tolist()[3] == 2.0


def test_read_content_missing_rows_are_nan_and_broken_ones_located() -> None:
    rows = [[0.5, 1.0], None, [np.nan, np.nan]]
    for column in (rows, pa.array([[0.5, 1.0], None, None]), pl.Series(rows)):
        read = read_content(column, 3, 2)
        assert read is not None
        assert (read.dtype, np.isnan(read).tolist()) == (np.float32, [[False] * 2, [True] * 2, [True] * 2])
    assert read_content(pa.array([None, None], pa.list_(pa.float32())), 2, None) is None
    for bad, message in (
        ([[1, 2], [3, np.inf]], "row 1 has inf in column 1"),
        ([[1, 2], [3, np.nan]], "row 1 has nan in column 1"),
        ([[1, 2], [3]], "row 1 has 1 numbers, expected 2"),
        ([[1, 2], [3, 1e300]], "row 1 has inf in column 1"),
        ([[1, 2], ["3", 4]], "row 1: row 0 is '3'"),
        (np.ones((2, 3)), r"got shape \(2, 3\), expected \(2, 2\)"),
    ):
        with pytest.raises(ItemIndexError, match=f"^content: {message}"):
            read_content(bad, 2, 2)


def test_read_table_reads_frames_by_position() -> None:
    frame = pd.DataFrame({"id": [3, 4], "name": ["a", None]}, index=[1, 0])
    for table in (
        frame,
        pl.DataFrame({"id": [3, 4], "name": ["a", None]}),
        pa.table({"id": [3, 4], "name": ["a", None]}),
    ):
        read = read_table(table, "items")
        assert (read["id"].tolist(), list(read["name"])) == ([3, 4], ["a", None])
    with pytest.raises(DataError, match="items: got a LazyFrame, which is not computed yet"):
        read_table(pl.LazyFrame({"id": [3]}), "items", error=DataError)
    with pytest.raises(RequestError, match="items: got the column name 7, expected a string"):
        read_table(pd.DataFrame({7: [1]}), "items")


def test_read_user_ids_others_are_refused_by_row() -> None:
    assert read_user_ids(pd.Series([5, 6], index=[1, 0])) == [5, 6]
    with pytest.raises(RequestError, match=r"^users: row 1 is nan, expected an integer or a string"):
        read_user_ids(["ann", float("nan")])


def test_read_features_column_of_a_user_is_read_by_position() -> None:
    likes = MultiValued(name="likes", max_values=3, encoder=Vocabulary(values=("a", "b", "c")))
    schema = Schema(user=(likes,), item=(likes,), behaviour_types=("click",))
    filtered = pd.Series(["x", "c", "x", "a"])[[False, True, False, True]]
    for value in (["c", "a"], filtered, pl.Series(["c", "a"]), pa.array(["c", "a"]), np.array(["c", "a"])):
        read = read_features(5, UserRecord({"likes": value}), schema, EncodeReport())
        assert read["likes"].tolist() == [[4, 2, 0]]


@pytest.mark.parametrize(
    "value",
    ["x" * 500, [1] * 10**6, 10**5000, -(10**50), np.arange(10**6), {"a": "b" * 500}],
    ids=["text", "list", "digits", "negative", "array", "mapping"],
)
def test_shown_is_short_whatever_is_given(value: Any) -> None:
    assert len(shown(value)) <= 200


def test_ragged_offsets_that_describe_no_rows_are_refused() -> None:
    feature = MultiValued(name="x", max_values=2, encoder=Vocabulary(values=("a",)))
    with pytest.raises(
        AifError, match=re.escape("offsets of shape (3,) over 2 values do not describe 2 rows")
    ):
        feature.encode(Ragged(["a", "a"], np.array([0, 2, 1])), 2, EncodeReport())
