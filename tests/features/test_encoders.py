"""Encoders of categorical features: vocabularies and hashing."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_jax.errors import SchemaError
from aif_jax.features import Categorical, Hashing, Vocabulary, item_keys
from support.encoding import encode_column


@given(
    known=st.sets(st.integers(-(2**62), 2**62), max_size=20),
    others=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    spread=st.sampled_from([1, 2**40]),
)
def test_vocabulary_integers_encode_as_rank_plus_two(known, others, spread):
    # A spread of 1 with small values takes the lookup table, a wide one the binary search.
    known = sorted({value % 1000 * (1 if spread == 1 else spread) for value in known})
    column = np.array(known + [value % 1000 for value in others] + others, np.int64)
    codes, _ = encode_column(Categorical(name="x", encoder=Vocabulary(values=tuple(known))), column)
    expected = [known.index(value) + 2 if value in known else 1 for value in column.tolist()]
    assert codes.tolist() == expected
    assert codes.dtype == np.int32


@given(known=st.sets(st.text(min_size=1), max_size=10), others=st.lists(st.text(), max_size=10))
def test_vocabulary_strings_encode_as_rank_plus_two(known, others):
    ordered = sorted(known)
    column = ordered + others
    codes, report = encode_column(Categorical(name="x", encoder=Vocabulary(values=tuple(known))), column)
    expected = [ordered.index(v) + 2 if v in known else (1 if v else 0) for v in column]
    assert codes.tolist() == expected
    assert report.get("unknown", {}).get("x", 0) == expected.count(1)
    assert report.get("missing", {}).get("x", 0) == expected.count(0)


@pytest.mark.parametrize(
    "column",
    [
        [7, None, 9],
        [7.0, float("nan"), 9.0],
        np.array([7, np.nan, 9]),
        np.array([7, None, 9], dtype=object),
        np.ma.MaskedArray([7, 7, 9], mask=[False, True, False]),
    ],
    ids=["list", "list of floats", "floats", "objects", "masked"],
)
def test_vocabulary_missing_integers_encode_as_zero(column):
    codes, report = encode_column(Categorical(name="x", encoder=Vocabulary(values=(7, 8))), column)
    assert codes.tolist() == [2, 0, 1]
    assert report == {"missing": {"x": 1}, "unknown": {"x": 1}}


@pytest.mark.parametrize(
    "column",
    [
        ["a", None, "b"],
        ["a", "", "b"],
        ["a", float("nan"), "b"],
        np.array(["a", "", "b"]),
        np.array(["a", None, "b"], dtype=object),
        np.ma.MaskedArray(["a", "a", "b"], mask=[False, True, False]),
    ],
    ids=["list", "empty", "nan", "unicode", "objects", "masked"],
)
def test_vocabulary_missing_strings_encode_as_zero(column):
    codes, _ = encode_column(Categorical(name="x", encoder=Vocabulary(values=("a",))), column)
    assert codes.tolist() == [2, 0, 1]


def test_vocabulary_all_missing_fits_either_kind():
    for values in ((1, 2), ("a", "b")):
        codes, _ = encode_column(Categorical(name="x", encoder=Vocabulary(values=values)), [None, None])
        assert codes.tolist() == [0, 0]


def test_vocabulary_integers_beyond_63_bits_are_unknown_not_negative():
    encoder = Vocabulary(values=(-1, 5))
    codes, _ = encode_column(Categorical(name="x", encoder=encoder), np.array([2**64 - 1, 5], np.uint64))
    assert codes.tolist() == [1, 3]


def test_vocabulary_fit_keeps_the_frequent():
    column = ["c"] * 3 + ["b"] * 2 + ["a"] * 2 + ["d"]
    assert Categorical(name="x", encoder=Vocabulary(min_count=2)).fit(column).encoder.values == (
        "a",
        "b",
        "c",
    )
    assert Categorical(name="x", encoder=Vocabulary(max_size=2)).fit(column).encoder.values == ("a", "c")


def test_categorical_values_of_another_kind_are_refused():
    numbers, words = Vocabulary(values=(1, 2)), Vocabulary(values=("1", "2"))
    with pytest.raises(SchemaError, match=r"'x'.*strings.*integers"):
        encode_column(Categorical(name="x", encoder=numbers), ["1"])
    with pytest.raises(SchemaError, match=r"'x'.*integers.*strings"):
        encode_column(Categorical(name="x", encoder=words), [1])
    with pytest.raises(SchemaError, match="mixes"):
        encode_column(Categorical(name="x", encoder=words), ["1", 2])
    with pytest.raises(SchemaError, match=r"1\.5"):
        encode_column(Categorical(name="x", encoder=numbers), [1.5])
    with pytest.raises(SchemaError, match="expected 2"):
        encode_column(Categorical(name="x", encoder=numbers), [1], n=2)
    with pytest.raises(SchemaError, match="not fitted"):
        encode_column(Categorical(name="x"), [1])


@pytest.mark.parametrize("values", ["abc", 5, {1, 2}, {"a": 1}], ids=repr)
def test_vocabulary_of_values_that_are_no_list_is_refused(values):
    with pytest.raises(SchemaError, match=r"values: got .*, expected a list of integers, or of strings"):
        Vocabulary(values=values)


def test_hashing_spreads_integers_over_the_buckets():
    buckets = 64
    codes, _ = encode_column(Categorical(name="x", encoder=Hashing(buckets=buckets)), np.arange(64_000))
    counts = np.bincount(codes, minlength=buckets + 2)
    assert counts[:2].tolist() == [0, 0]
    # A uniform hash puts 1,000 into each, give or take five times the square root.
    assert np.abs(counts[2:] - 1000).max() < 5 * np.sqrt(1000)


IN_ANOTHER_PROCESS = """
from aif_jax.features import *
feature = Categorical(name="x", encoder=Hashing(buckets=1000))
for column in {columns!r}:
    print(*feature.encode(column, 3, EncodeReport()), *item_keys(column))
tags = MultiValued(name="x", max_values=2, encoder=Vocabulary(values=("a", "b", "c", "d")))
print(tags.encode([{{"d", "b", "c"}}, frozenset("ca")], 2, EncodeReport()).tolist())
"""


@pytest.mark.parametrize("seed", ["1", "12345"])
def test_encoders_in_another_process_give_the_same_codes(seed):
    """Hashes, and what a full row drops of a set, whatever the seed of Python's own hashes."""
    columns = (["anna", "bruno", "carla"], [1, 2**40, 3])
    there = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS.format(columns=columns)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
    )
    *hashed, dropped = there.stdout.splitlines()
    for line, column in zip(hashed, columns, strict=True):
        here, _ = encode_column(Categorical(name="x", encoder=Hashing(buckets=1000)), column)
        assert line.split() == [str(value) for value in [*here, *item_keys(column)]]
    assert dropped == "[[3, 4], [2, 4]]"


def test_vocabulary_of_many_values_is_shown_by_the_first_and_their_number():
    values = tuple(range(100_000, 104_096))
    assert "values=(100000, 100001, 100002, ...: 4,096 in all), " in repr(Vocabulary(values=values))
    assert eval(repr(Vocabulary(values=("a", "b")))) == Vocabulary(values=("a", "b"))
