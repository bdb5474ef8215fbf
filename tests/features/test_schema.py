"""Schemas: encoding, fitting, JSON, and the report of an encoding."""

import json
import sys
import threading
import time

import numpy as np
import pytest

from aif_jax.errors import SchemaError
from aif_jax.features import (
    Categorical,
    EncodeReport,
    Hashing,
    MultiValued,
    Numeric,
    Schema,
    Vocabulary,
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


def test_schema_encode_gives_every_feature_its_shape_and_dtype():
    schema = fitted()
    encoded = schema.encode("item", FILMS, 3)
    assert list(encoded) == ["film", "genres", "length"]
    for name, (shape, dtype) in schema.spec("item", (3,)).items():
        assert encoded[name].shape == shape
        assert encoded[name].dtype == dtype
    assert encoded["genres"].tolist() == [[4, 0], [2, 3], [0, 0]]
    assert schema.category_ids(encoded).tolist() == [[4, 0], [2, 3], [0, 0]]


def test_schema_absent_columns_are_missing_and_counted():
    report = EncodeReport()
    encoded = fitted().encode("pair", {"score": [1.0, 1.0]}, 2, report=report)
    assert encoded["channel"].tolist() == [0, 0]
    assert report.as_dict() == {"missing": {"channel": 2}}
    nothing = fitted().missing("pair", (2,))
    assert {k: v.shape for k, v in nothing.items()} == {"score": (2, 2), "channel": (2,)}
    assert not any(array.any() for array in nothing.values())


def test_schema_columns_without_feature_are_refused_or_counted():
    with pytest.raises(SchemaError, match=r"\['scroe'\].*\['score', 'channel'\]"):
        fitted().encode("pair", {"scroe": [1.0]}, 1)
    report = EncodeReport()
    fitted().encode("pair", {"scroe": [1.0], "score": [1.0], "channel": [1]}, 1, report=report, strict=False)
    assert report.as_dict() == {"ignored": {"scroe": 1}}


def test_encode_report_read_while_another_thread_counts_is_consistent():
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


def test_schema_encode_one_is_a_row_without_its_axis():
    schema = fitted()
    one = schema.encode_one("item", {"film": 20, "genres": ["crime", "drama"], "length": None})
    many = schema.encode("item", FILMS, 3)
    assert one["film"] == many["film"][1]
    assert one["genres"].tolist() == many["genres"][1].tolist()
    assert one["length"].tolist() == [0.0, 0.0]


def test_schema_group_that_is_none_is_refused_by_every_method():
    schema = fitted()
    for method in (schema.features, schema.names, schema.missing, schema.spec):
        with pytest.raises(SchemaError, match="group: got 'items', expected one of user, item"):
            method(*("items", (2,))[: 1 + (method == schema.missing)])
    with pytest.raises(SchemaError, match="group: got 'items'"):
        schema.encode("items", FILMS, 3)
    with pytest.raises(SchemaError, match="item: got None, expected values by feature name"):
        schema.encode_one("item", None)


def test_schema_to_json_and_back_is_equal():
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
def test_schema_broken_json_is_refused(broken):
    with pytest.raises(SchemaError):
        Schema.from_json({**film_schema().to_json(), **broken})


def test_schema_fit_without_a_column_is_refused():
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
def test_schema_contradictory_fields_are_refused(changes, message):
    fields = {**vars(film_schema()), **changes}
    with pytest.raises(SchemaError, match=message):
        Schema(**fields)


def test_schema_without_category_has_empty_category_axis():
    schema = Schema(item=(Numeric(name="x", mean=0.0, std=1.0),), behaviour_types=("click",))
    assert schema.category_ids(schema.encode("item", {"x": [1.0, 2.0]}, 2)).shape == (2, 0)


def test_schema_encode_large_request_takes_milliseconds():
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
