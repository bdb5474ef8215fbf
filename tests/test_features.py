import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_jax._native import standardise
from aif_jax.errors import RequestError, SchemaError
from aif_jax.features import (
    Categorical,
    EncodeReport,
    Hashing,
    MultiValued,
    Numeric,
    Ragged,
    Schema,
    Vocabulary,
    bucket_for,
    item_keys,
    pad_to,
    split_ids,
)


def film_schema() -> Schema:
    return Schema(
        user=(Categorical(name="gender"),),
        item=(
            Categorical(name="film"),
            MultiValued(name="genres", max_values=2),
            Numeric(name="length", transform="log1p"),
        ),
        behaviour_types=("click", "skip"),
        context=(Categorical(name="hour", encoder=Vocabulary(values=(0, 1, 2))),),
        pair=(Numeric(name="score"), Categorical(name="channel", encoder=Hashing(buckets=50))),
        category="genres",
        item_id="film",
    )


FILMS = {"film": [10, 20, 40], "genres": [["war"], ["crime", "drama"], []], "length": [90.0, 120.0, None]}


def fitted() -> Schema:
    return film_schema().fit(user={"gender": ["m", "f", None]}, item=FILMS, pair={"score": [0.0, 2.0]})


def encode_column(feature, column, n=None):
    report = EncodeReport()
    return feature.encode(column, len(column) if n is None else n, report), report.as_dict()


# Vocabularies


@given(
    known=st.sets(st.integers(-(2**62), 2**62), max_size=20),
    others=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    spread=st.sampled_from([1, 2**40]),
)
def test_vocabulary_of_integers_is_rank_plus_two(known, others, spread):
    # A spread of 1 with small values takes the lookup table, a wide one the binary search.
    known = sorted({value % 1000 * (1 if spread == 1 else spread) for value in known})
    column = np.array(known + [value % 1000 for value in others] + others, np.int64)
    codes, _ = encode_column(Categorical(name="x", encoder=Vocabulary(values=tuple(known))), column)
    expected = [known.index(value) + 2 if value in known else 1 for value in column.tolist()]
    assert codes.tolist() == expected
    assert codes.dtype == np.int32


@given(known=st.sets(st.text(min_size=1), max_size=10), others=st.lists(st.text(), max_size=10))
def test_vocabulary_of_strings_is_rank_plus_two(known, others):
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
def test_every_way_of_missing_integers_is_zero(column):
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
def test_every_way_of_missing_strings_is_zero(column):
    codes, _ = encode_column(Categorical(name="x", encoder=Vocabulary(values=("a",))), column)
    assert codes.tolist() == [2, 0, 1]


def test_all_missing_fits_either_kind():
    for values in ((1, 2), ("a", "b")):
        codes, _ = encode_column(Categorical(name="x", encoder=Vocabulary(values=values)), [None, None])
        assert codes.tolist() == [0, 0]


def test_unsigned_integers_beyond_63_bits_are_unknown_not_negative():
    encoder = Vocabulary(values=(-1, 5))
    codes, _ = encode_column(Categorical(name="x", encoder=encoder), np.array([2**64 - 1, 5], np.uint64))
    assert codes.tolist() == [1, 3]


def test_fit_keeps_the_frequent():
    column = ["c"] * 3 + ["b"] * 2 + ["a"] * 2 + ["d"]
    assert Categorical(name="x", encoder=Vocabulary(min_count=2)).fit(column).encoder.values == (
        "a",
        "b",
        "c",
    )
    assert Categorical(name="x", encoder=Vocabulary(max_size=2)).fit(column).encoder.values == ("a", "c")


def test_kinds_do_not_mix_silently():
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


# Hashing


def test_hashing_spreads_integers_over_the_buckets():
    buckets = 64
    codes, _ = encode_column(Categorical(name="x", encoder=Hashing(buckets=buckets)), np.arange(64_000))
    counts = np.bincount(codes, minlength=buckets + 2)
    assert counts[:2].tolist() == [0, 0]
    # A uniform hash puts 1,000 into each, give or take five times the square root.
    assert np.abs(counts[2:] - 1000).max() < 5 * np.sqrt(1000)


HASH_IN_ANOTHER_PROCESS = """
from aif_jax.features import *
feature = Categorical(name="x", encoder=Hashing(buckets=1000))
print(*feature.encode({column!r}, 3, EncodeReport()), *item_keys({column!r}))
"""


@pytest.mark.parametrize("column", [["anna", "bruno", "carla"], [1, 2**40, 3]], ids=["strings", "integers"])
def test_hashes_are_the_same_in_every_process(column):
    here, _ = encode_column(Categorical(name="x", encoder=Hashing(buckets=1000)), column)
    there = subprocess.run(
        [sys.executable, "-c", HASH_IN_ANOTHER_PROCESS.format(column=column)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)},
    )
    assert there.stdout.split() == [str(value) for value in [*here, *item_keys(column)]]


# Lists


def test_masked_entries_of_a_table_are_padding_whatever_stands_under_the_mask():
    table = np.ma.MaskedArray([[1, 2, 9], [-1, 9, 2]], mask=[[0, 0, 1], [0, 1, 0]])
    feature = MultiValued(name="x", max_values=3).fit(table)
    assert feature.encoder.values == (1, 2)
    codes, report = encode_column(feature, table)
    assert codes.tolist() == [[2, 3, 0], [3, 0, 0]]
    assert "unknown" not in report


SETS_IN_ANOTHER_PROCESS = """
from aif_jax.features import *
feature = MultiValued(name="x", max_values=2, encoder=Vocabulary(values=("a", "b", "c", "d")))
print(feature.encode([{"d", "b", "c"}, frozenset("ca")], 2, EncodeReport()).tolist())
"""


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_full_row_drops_the_same_of_a_set_in_every_process(seed):
    there = subprocess.run(
        [sys.executable, "-c", SETS_IN_ANOTHER_PROCESS],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
    )
    assert there.stdout.strip() == "[[3, 4], [2, 4]]"


@given(
    rows=st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=8), width=st.integers(1, 4)
)
def test_lists_fill_from_the_left_and_overflow_is_counted(rows, width):
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


def test_lists_must_be_lists():
    feature = MultiValued(name="x", max_values=2, encoder=Vocabulary(values=("a",)))
    with pytest.raises(SchemaError, match="split strings"):
        encode_column(feature, ["a|b"])
    with pytest.raises(SchemaError, match="expected 3"):
        encode_column(feature, [["a"]], n=3)
    with pytest.raises(SchemaError, match="offsets"):
        encode_column(feature, Ragged(["a"], np.array([0, 2])))
    codes, _ = encode_column(feature, [None, ["a"]])
    assert codes.tolist() == [[0, 0], [2, 0]]


def test_ragged_take_is_row_selection():
    column = Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3]))
    taken = column.take(np.array([2, 0, 1, 0]))
    assert taken.values.tolist() == [7, 5, 6, 5, 6]
    assert taken.offsets.tolist() == [0, 1, 3, 3, 5]


# Numbers


def test_numbers_are_standardised_with_a_mask():
    values = np.array([1.0, np.nan, 5.0, np.inf])
    feature = Numeric(name="x").fit(values)
    codes, report = encode_column(feature, values)
    mean, std = 3.0, 2.0
    np.testing.assert_allclose(codes, [[(1 - mean) / std, 1], [0, 0], [(5 - mean) / std, 1], [0, 0]])
    assert codes.dtype == np.float32
    assert report == {"missing": {"x": 1}, "non_finite": {"x": 1}}


def test_numbers_are_clipped_and_counted():
    feature = Numeric(name="x", mean=0.0, std=1.0, clip=3.0)
    codes, report = encode_column(feature, [2.0, -100.0])
    assert codes.tolist() == [[2.0, 1.0], [-3.0, 1.0]]
    assert report == {"clipped": {"x": 1}}


def test_log1p_is_odd_and_fitted_after_the_transform():
    values = [0.0, 10.0, -10.0]
    feature = Numeric(name="x", transform="log1p").fit(values)
    assert feature.mean == pytest.approx(0.0)
    assert feature.std == pytest.approx(np.log(11.0) * np.sqrt(2 / 3))
    codes, _ = encode_column(feature, values)
    assert codes[1, 0] == pytest.approx(-codes[2, 0])


def test_a_constant_column_encodes_as_zero():
    feature = Numeric(name="x").fit([4.0, 4.0])
    assert encode_column(feature, [4.0])[0].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("column", [["1"], np.array(["1"]), [[1.0]], np.array(["x"], dtype=object)])
def test_numbers_must_be_numbers(column):
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
def test_numbers_of_any_kind_are_standardised_as_defined(dtype, transform):
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
def test_the_native_encoder_says_what_it_takes(column):
    with pytest.raises(
        SchemaError, match="standardise takes a contiguous one-dimensional NumPy array of float"
    ):
        standardise(column, 0.0, 1.0, 1.0, False)
    with pytest.raises(SchemaError, match="clip is -1; expected a bound of at least 0"):
        standardise(np.ones(3), 0.0, 1.0, -1.0, False)


# Schemas


def test_encode_gives_every_feature_its_shape_and_dtype():
    schema = fitted()
    encoded = schema.encode("item", FILMS, 3)
    assert list(encoded) == ["film", "genres", "length"]
    for name, (shape, dtype) in schema.spec("item", (3,)).items():
        assert encoded[name].shape == shape
        assert encoded[name].dtype == dtype
    assert encoded["genres"].tolist() == [[4, 0], [2, 3], [0, 0]]
    assert schema.category_ids(encoded).tolist() == [[4, 0], [2, 3], [0, 0]]


def test_absent_columns_are_missing_and_counted():
    report = EncodeReport()
    encoded = fitted().encode("pair", {"score": [1.0, 1.0]}, 2, report=report)
    assert encoded["channel"].tolist() == [0, 0]
    assert report.as_dict() == {"missing": {"channel": 2}}
    nothing = fitted().missing("pair", (2,))
    assert {k: v.shape for k, v in nothing.items()} == {"score": (2, 2), "channel": (2,)}
    assert not any(array.any() for array in nothing.values())


def test_columns_without_a_feature_are_refused_or_counted():
    with pytest.raises(SchemaError, match=r"\['scroe'\].*\['score', 'channel'\]"):
        fitted().encode("pair", {"scroe": [1.0]}, 1)
    report = EncodeReport()
    fitted().encode("pair", {"scroe": [1.0], "score": [1.0], "channel": [1]}, 1, report=report, strict=False)
    assert report.as_dict() == {"ignored": {"scroe": 1}}


def test_a_report_can_be_read_while_another_thread_counts():
    report, enough, names = EncodeReport(), threading.Event(), []

    def count():
        while not enough.is_set():
            names.append(f"name {len(names)}")
            report.ignored[names[-1]] += 1
            if len(names) % 1_000 == 0:
                time.sleep(1e-3)  # or reading would take ever longer

    counting, sizes, until_s = threading.Thread(target=count), [], time.monotonic() + 20
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        counting.start()
        while len(set(sizes)) < 20 and time.monotonic() < until_s:
            sizes.append(len(report.as_dict().get("ignored", {})))
    finally:
        enough.set()
        counting.join()
        sys.setswitchinterval(interval)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 20, "it was read while the other thread counted"
    assert report.as_dict()["ignored"] == dict.fromkeys(names, 1)


def test_one_record_is_a_row_without_its_axis():
    schema = fitted()
    one = schema.encode_one("item", {"film": 20, "genres": ["crime", "drama"], "length": None})
    many = schema.encode("item", FILMS, 3)
    assert one["film"] == many["film"][1]
    assert one["genres"].tolist() == many["genres"][1].tolist()
    assert one["length"].tolist() == [0.0, 0.0]


def test_schema_survives_json():
    schema = fitted()
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert Schema.from_json(film_schema().to_json()) == film_schema()
    for group, columns, n in (("item", FILMS, 3), ("user", {"gender": ["m", "x"]}, 2)):
        for name, array in schema.encode(group, columns, n).items():
            np.testing.assert_array_equal(array, again.encode(group, columns, n)[name])


@pytest.mark.parametrize(
    "broken",
    [
        {"version": 99},
        {"item": [{"kind": "tensor", "name": "x"}]},
        {"item": [{"kind": "categorical", "name": "x"}]},
        {"item": [{"kind": "categorical", "name": "x", "encoder": {"kind": "hashing"}}]},
        {"surprise": 1},
    ],
)
def test_broken_json_is_refused(broken):
    with pytest.raises(SchemaError):
        Schema.from_json({**film_schema().to_json(), **broken})


def test_fit_wants_every_column():
    with pytest.raises(SchemaError, match="item feature 'film'"):
        film_schema().fit(user={"gender": ["m"]}, pair={"score": [1.0]})
    with pytest.raises(SchemaError, match="groups"):
        film_schema().fit(items=FILMS)
    assert not film_schema().fitted
    assert fitted().fitted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": "length"}, "numeric"),
        ({"category": "no_such"}, "no feature 'no_such'"),
        ({"item_id": "genres"}, "not a categorical"),
        ({"behaviour_types": ()}, "behaviour_types"),
        ({"item": (), "category": None, "item_id": None}, "at least one; the item's id"),
        ({"item": (Numeric(name="content"),), "category": None, "item_id": None}, "catalogue's own"),
        ({"user": (Numeric(name="a"), Categorical(name="a"))}, "twice"),
    ],
)
def test_contradictory_schemas_are_refused(changes, message):
    fields = {**vars(film_schema()), **changes}
    with pytest.raises(SchemaError, match=message):
        Schema(**fields)


def test_categories_of_a_schema_without_any_are_an_empty_axis():
    schema = Schema(item=(Numeric(name="x", mean=0.0, std=1.0),), behaviour_types=("click",))
    assert schema.category_ids(schema.encode("item", {"x": [1.0, 2.0]}, 2)).shape == (2, 0)


# Ids


def test_ids_pass_or_are_hashed():
    assert item_keys([3, 2**64 - 1]).tolist() == [3, 2**64 - 1]
    assert item_keys(np.array([7], np.int16)).tolist() == [7]
    given_keys = np.array([1, 2], np.uint64)
    assert item_keys(given_keys) is given_keys
    assert item_keys([]).shape == (0,)
    words = ["anna", "bruno"]
    keys = item_keys(words)
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 2
    for same in (np.array(words), np.array(words, dtype=object), tuple(words)):
        assert item_keys(same).tolist() == keys.tolist()


def test_string_keys_are_xxh3():
    # The digest of the empty string that the reference implementation of XXH3 (64 bits, seed 0) publishes.
    assert item_keys([""]).tolist() == [0x2D06800538D394C2]


@pytest.mark.parametrize(
    "ids",
    [
        [-1],
        np.array([1, -5]),
        [1.0],
        np.array([1.5]),
        ["a", 1],
        [None],
        [True],
        [2**64],
        [[1, 2]],
        "abc",
        [b"a"],
    ],
    ids=repr,
)
def test_malformed_ids_are_refused(ids):
    with pytest.raises(RequestError, match="ids"):
        item_keys(ids)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=10))
def test_split_ids_keeps_all_64_bits(values):
    halves = split_ids(np.array(values, np.uint64))
    assert halves.dtype == np.uint32
    assert halves.shape == (len(values), 2)
    assert [int(low) + (int(high) << 32) for low, high in halves] == values


def test_split_ids_takes_keys_only():
    assert split_ids(np.zeros((2, 3), np.uint64)).shape == (2, 3, 2)
    with pytest.raises(RequestError, match="item_keys"):
        split_ids(np.array([1, 2]))


# Buckets and padding


def test_bucket_is_the_smallest_that_holds():
    assert [bucket_for(n, (64, 16, 32)) for n in (0, 16, 17, 64)] == [16, 16, 32, 64]
    for n in (65, -1):
        with pytest.raises(RequestError, match="buckets"):
            bucket_for(n, (64, 16, 32))


def test_padding_goes_to_the_end():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    padded = pad_to(array, 5, axis=-1, fill=-1)
    assert padded.tolist() == [[0, 1, 2, -1, -1], [3, 4, 5, -1, -1]]
    assert padded.dtype == np.int32
    assert pad_to(array, 2) is array
    with pytest.raises(RequestError, match="longer"):
        pad_to(array, 1)


def test_pair_features_of_a_large_request_encode_in_milliseconds():
    n = 4096
    random = np.random.default_rng(0)
    schema = Schema(
        item=(Categorical(name="id", encoder=Vocabulary(values=(1,))),),
        behaviour_types=("click",),
        pair=(
            Numeric(name="score", mean=0.0, std=1.0),
            Numeric(name="bid", mean=0.0, std=1.0, transform="log1p"),
            Categorical(name="channel", encoder=Vocabulary(values=("a", "b", "c"))),
        ),
    )
    columns = {
        "score": random.normal(size=n),
        "bid": random.normal(size=n).tolist(),
        "channel": random.choice(["a", "b", "x"], n),
    }
    took = []
    for _ in range(20):
        start = time.perf_counter()
        schema.encode("pair", columns, n)
        took.append(time.perf_counter() - start)
    # One row at a time, this takes longer than 40 ms; together about 0.5 ms on an idle machine.
    assert min(took) < 10e-3
