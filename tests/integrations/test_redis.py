"""JSON documents of users and updates, without a server; test_redis_server.py has one."""

import json

import numpy as np
import pytest

from aif_jax.errors import ConfigError, DataError, RequestError
from aif_jax.features import Ragged
from aif_jax.integrations.redis import (
    decode_update,
    decode_user,
    encode_update,
    encode_user,
    user_key,
)
from aif_jax.integrations.redis_stream import RedisStream
from aif_jax.nearline import Delete, Upsert
from aif_jax.types import UserRecord

BIG = 2**64 - 3


def test_user_encoded_and_decoded_keeps_64_bits():
    record = UserRecord(
        features={"country": "de", "age": np.float32(0.5), "tags": np.array(["a", "b"]), "gone": np.nan},
        items=np.array([BIG, 7], np.uint64),
        types=np.array([1, 0], np.int32),
        revision=5,
        times=np.array([1.5, np.nan]),
    )
    text = encode_user(record, "k", keep_revision=True)
    assert json.loads(text) == {
        "version": 1,
        "features": {"country": "de", "age": 0.5, "tags": ["a", "b"], "gone": None},
        "items": [BIG, 7],
        "types": [1, 0],
        "revision": 5,
        "times": [1.5, None],
    }
    back = decode_user(text, "k")
    assert back == decode_user(text.encode(), "k")
    assert back.items == [BIG, 7]
    assert back.types == [1, 0]
    assert back.times == [1.5, None]
    assert back.revision == 5
    assert back.features["gone"] is None


def test_user_without_revision_gets_one_of_its_content():
    def revision(**changes):
        record = UserRecord(**{"items": [1, 2], "types": ["click", "click"], "revision": 9, **changes})
        return decode_user(encode_user(record, "k"), "k").revision

    assert revision() == revision(revision=10)
    assert len({revision(), revision(items=[2, 1]), revision(features={"age": 1})}) == 3


def test_decode_user_absent_fields_are_empty():
    record = decode_user('{"version": 1}', "k")
    assert (record.features, record.items, record.types, record.times) == ({}, [], [], ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff\xfe", r"aif:user:5: is not JSON .*it begins with b'\\xff\\xfe'"),
        ("{", r"aif:user:5: is not JSON .*it begins with '\{'"),
        ('{"version": 1, "features": {"a": NaN}}', "NaN is not allowed; write null"),
        ("[1]", "aif:user:5: got a JSON list, expected an object"),
        ("{}", "got version None, this release reads 1"),
        ('{"version": 2}', "got version 2, this release reads 1"),
        ('{"version": 1, "item": []}', r"got the fields \['item'\], expected only version, features, items"),
        ('{"version": 1, "items": "abc"}', "'items' is a str, expected a list: 'abc'"),
        ('{"version": 1, "features": null}', "'features' is a NoneType, expected a dict"),
        ('{"version": 1, "revision": true}', "'revision' is a bool, expected a int"),
        ('{"version": 1, "items": [1, 2], "types": [0]}', "holds 2 items and 1 types"),
    ],
)
def test_decode_user_broken_is_refused_by_key(value, message):
    with pytest.raises(DataError, match=message) as caught:
        decode_user(value, "aif:user:5")
    assert str(caught.value).startswith("aif:user:5: ")


def test_encode_user_values_outside_json_are_refused():
    with pytest.raises(DataError, match="k: holds inf"):
        encode_user(UserRecord(features={"a": np.inf}), "k")
    with pytest.raises(DataError, match="k: holds a bytes"):
        encode_user(UserRecord(features={"a": [b"x"]}), "k")
    with pytest.raises(DataError, match="k: the record has 1 items and 0 types"):
        encode_user(UserRecord(items=[1]), "k")


def test_user_key_accepts_integers_and_strings():
    assert user_key(5) == user_key("5") == user_key(np.int64(5)) == "aif:user:5"
    assert user_key(BIG, "u/") == f"u/{BIG}"
    for bad in (None, True, 1.0, b"5"):
        with pytest.raises(RequestError, match="expected an integer or a string"):
            user_key(bad)


@pytest.mark.parametrize("encode_bytes", [False, True])
def test_update_encoded_and_decoded_is_the_same(encode_bytes):
    def there_and_back(update):
        text = encode_update(update, "s")
        return decode_update({b"update": text.encode()} if encode_bytes else {"update": text}, "s")

    assert there_and_back(Delete(np.array([BIG], np.uint64))) == Delete([BIG])
    content = np.array([[0.1, 0.2], [np.nan, np.nan]], np.float32)
    columns = {
        "price": np.array([1.5, np.nan]),
        "genres": Ragged(np.array(["a", "b", "c"]), np.array([0, 2, 3])),
        "shop": ["x", None],
    }
    back = there_and_back(Upsert(["i", "j"], columns, content, np.array([True, False])))
    assert back.ids == ["i", "j"]
    assert back.columns == {"price": [1.5, None], "genres": [["a", "b"], ["c"]], "shop": ["x", None]}
    np.testing.assert_array_equal(back.content, content)
    assert back.content.dtype == np.float32
    np.testing.assert_array_equal(back.rankable, [True, False])
    assert there_and_back(Upsert([BIG, 1], {})) == Upsert([BIG, 1], {})
    assert there_and_back(Upsert([], {}, np.zeros((0, 2), np.float32))) == Upsert([], {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({b"data": b"{}"}, r"got the fields \['data'\], expected one, 'update'"),
        ({"update": '{"version": 1}'}, r"got \[\], expected either 'upsert' or 'delete'"),
        ({"update": '{"version": 1, "upsert": {}, "delete": {}}'}, "expected either 'upsert' or 'delete'"),
        ({"update": '{"version": 1, "delete": {}}'}, "'delete' has no 'ids'"),
        ({"update": '{"version": 1, "delete": {"ids": 5}}'}, "'ids' is a int, expected a list: '5'"),
        ({"update": '{"version": 1, "delete": {"ids": [], "columns": {}}}'}, r"got the fields \['columns'\]"),
        (
            {"update": '{"version": 1, "upsert": {"ids": [1], "content": [0.5]}}'},
            "'content': row 0: got 0.5, expected an array or list",
        ),
        (
            {"update": '{"version": 1, "upsert": {"ids": [1, 2], "content": [[1, 0], [1]]}}'},
            "'content': row 1 has 1 numbers, expected 2",
        ),
        (
            {"update": '{"version": 1, "upsert": {"ids": [1], "rankable": ["false"]}}'},
            r"'rankable': row 0 is 'false', expected true or false",
        ),
    ],
)
def test_decode_update_broken_is_refused_by_entry(fields, message):
    with pytest.raises(DataError, match=message) as caught:
        decode_update(fields, "stream 's', entry 1-0")
    assert str(caught.value).startswith("stream 's', entry 1-0: ")


def test_redis_stream_limit_below_one_is_refused():
    with pytest.raises(ConfigError, match="limit: got 0, expected at least 1"):
        RedisStream(None, "items", "mine", limit=0)
