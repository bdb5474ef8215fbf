"""Multi-valued and numeric features."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_jax._native import standardise
from aif_jax.errors import SchemaError
from aif_jax.features import EncodeReport, MultiValued, Numeric, Ragged, Vocabulary
from support.encoding import encode_column


def test_multi_valued_masked_entries_are_padding():
    table = np.ma.MaskedArray([[1, 2, 9], [-1, 9, 2]], mask=[[0, 0, 1], [0, 1, 0]])
    feature = MultiValued(name="x", max_values=3).fit(table)
    assert feature.encoder.values == (1, 2)
    codes, report = encode_column(feature, table)
    assert codes.tolist() == [[2, 3, 0], [3, 0, 0]]
    assert "unknown" not in report


@given(
    rows=st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=8), width=st.integers(1, 4)
)
def test_multi_valued_rows_fill_from_the_left_and_count_overflow(rows, width):
    feature = MultiValued(name="x", max_values=width, encoder=Vocabulary(values=tuple(range(10))))
    expected = [([v + 2 if v < 10 else 1 for v in row] + [0] * width)[:width] for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    flat = np.array([v for row in rows for v in row], np.int64)
    rectangle = np.full((len(rows), 6), -1)
    for i, row in enumerate(rows):
        rectangle[i, : len(row)] = row
    for column in (rows, Ragged(flat, offsets), rectangle):
        codes, report = encode_column(feature, column)
        assert codes.tolist() == expected
        assert report.get("overflow", {}).get("x", 0) == sum(max(0, len(row) - width) for row in rows)
        assert report.get("missing", {}).get("x", 0) == sum(not row for row in rows)
        assert report.get("unknown", {}).get("x", 0) == sum(v >= 10 for row in rows for v in row)


@pytest.mark.parametrize("number", [0, 65_537, 10**15])
def test_multi_valued_of_more_values_than_memory_holds_is_refused_with_the_number(number):
    with pytest.raises(SchemaError, match="expected at least 1 and at most 65,536") as refused:
        MultiValued(name="x", max_values=number)
    assert len(str(refused.value)) < 200


def test_multi_valued_other_columns_are_refused():
    feature = MultiValued(name="x", max_values=2, encoder=Vocabulary(values=("a",)))
    with pytest.raises(SchemaError, match="split strings"):
        encode_column(feature, ["a|b"])
    with pytest.raises(SchemaError, match="expected 3"):
        encode_column(feature, [["a"]], n=3)
    with pytest.raises(SchemaError, match="offsets"):
        encode_column(feature, Ragged(["a"], np.array([0, 2])))
    codes, _ = encode_column(feature, [None, ["a"]])
    assert codes.tolist() == [[0, 0], [2, 0]]


def test_ragged_take_selects_rows():
    column = Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3]))
    taken = column.take(np.array([2, 0, 1, 0]))
    assert taken.values.tolist() == [7, 5, 6, 5, 6]
    assert taken.offsets.tolist() == [0, 1, 3, 3, 5]


# --- numbers ---------------------------------------------------------------------------------------


def test_numeric_values_are_standardised_with_a_mask():
    values = np.array([1.0, np.nan, 5.0, np.inf])
    feature = Numeric(name="x").fit(values)
    codes, report = encode_column(feature, values)
    mean, std = 3.0, 2.0
    np.testing.assert_allclose(codes, [[(1 - mean) / std, 1], [0, 0], [(5 - mean) / std, 1], [0, 0]])
    assert codes.dtype == np.float32
    assert report == {"missing": {"x": 1}, "non_finite": {"x": 1}}


def test_numeric_values_beyond_clip_are_clipped_and_counted():
    feature = Numeric(name="x", mean=0.0, std=1.0, clip=3.0)
    codes, report = encode_column(feature, [2.0, -100.0])
    assert codes.tolist() == [[2.0, 1.0], [-3.0, 1.0]]
    assert report == {"clipped": {"x": 1}}


def test_numeric_log1p_is_odd_and_fitted_after_transform():
    values = [0.0, 10.0, -10.0]
    feature = Numeric(name="x", transform="log1p").fit(values)
    assert feature.mean == pytest.approx(0.0)
    assert feature.std == pytest.approx(np.log(11.0) * np.sqrt(2 / 3))
    codes, _ = encode_column(feature, values)
    assert codes[1, 0] == pytest.approx(-codes[2, 0])


def test_numeric_constant_column_encodes_as_zero():
    feature = Numeric(name="x").fit([4.0, 4.0])
    assert encode_column(feature, [4.0])[0].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("column", [["1"], np.array(["1"]), [[1.0]], np.array(["x"], dtype=object)])
def test_numeric_other_values_are_refused(column):
    with pytest.raises(SchemaError, match="'x'"):
        encode_column(Numeric(name="x", mean=0.0, std=1.0), column)


def standardised(values: np.ndarray, feature: Numeric) -> tuple[np.ndarray, int, int, int]:
    """The definition, in NumPy: float64 throughout, rounded once."""
    wide = values.astype(np.float64)
    there = np.isfinite(wide)
    x = np.where(there, wide, 0.0)
    if feature.transform == "log1p":
        x = np.sign(x) * np.log1p(np.abs(x))
    standard = np.where(there, (x - feature.mean) / feature.std, 0.0)
    cut = np.abs(standard) > feature.clip
    encoded = np.stack([np.clip(standard, -feature.clip, feature.clip), there], axis=1).astype(np.float32)
    return encoded, int(np.isnan(wide).sum()), int(np.isinf(wide).sum()), int(cut.sum())


@pytest.mark.parametrize("transform", ["identity", "log1p"])
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", ">f8", "float16", "int64", "uint8", "bool"])
def test_numeric_any_dtype_is_standardised_as_defined(dtype, transform):
    rng = np.random.default_rng(7)
    for n in (0, 1, 50, 9_000):  # beyond 8,192 without the GIL
        values = (rng.normal(size=n) * 40 + 100).astype(dtype)
        if values.dtype.kind == "f" and n > 10:
            values[rng.integers(0, n, n // 10)] = np.nan
            values[rng.integers(0, n, n // 20)] = np.inf
            values[rng.integers(0, n, n // 20)] = -np.inf
        feature = Numeric(
            name="x", transform=transform, clip=1.5, mean=4.0 if transform == "log1p" else 90, std=20.0
        )
        read_only = values.copy()
        read_only.flags.writeable = False
        apart = np.repeat(values, 2)[::2]
        shifted = np.frombuffer(b"x" + values.tobytes(), values.dtype, offset=1)
        expected, missing, infinite, clipped = standardised(values, feature)
        for column in (values, read_only, apart, shifted):
            report = EncodeReport()
            codes = feature.encode(column, n, report)
            if transform == "identity":
                np.testing.assert_array_equal(codes, expected)
            else:  # two libraries' logarithms may differ in the last bit of a float64
                np.testing.assert_allclose(codes, expected, rtol=2e-7, atol=2e-7)
            counts = (report.missing["x"], report.non_finite["x"], report.clipped["x"])
            assert counts == (missing, infinite, clipped)


@pytest.mark.parametrize("column", [[1.0], np.ones((2, 2)), np.ones(4)[::2], np.ones(3, np.int64)])
def test_standardise_malformed_arguments_are_refused(column):
    with pytest.raises(
        SchemaError, match="standardise takes a contiguous one-dimensional NumPy array of float"
    ):
        standardise(column, 0.0, 1.0, 1.0, False)
    with pytest.raises(SchemaError, match="clip is -1; expected a bound of at least 0"):
        standardise(np.ones(3), 0.0, 1.0, -1.0, False)
