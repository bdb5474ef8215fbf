"""Copies of what others may change, and revisions of records by their content."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from aif_jax.errors import RequestError
from aif_jax.features.copies import copied, own_record
from aif_jax.types import UserRecord

RECORD: dict[str, Any] = {
    "features": {"town": "York", "tags": ["a"]},
    "items": [9, 7, 5],
    "types": ["buy"] * 3,
}


def revision(longest: int = 3, **changes: Any) -> Any:
    return own_record("ann", UserRecord(**{**RECORD, **changes}), {"town", "tags"}, longest).revision


@pytest.mark.parametrize(
    "changes",
    [
        {"features": {"town": "Bath", "tags": ["a"]}},
        {"features": {"town": "York", "tags": ["b"]}},
        {"features": {"town": "York"}},
        {"features": {"town": "York", "tags": None}},
        {"items": [9, 7, 6]},
        {"items": [7, 9, 5]},
        {"items": ["9", "7", "5"]},
        {"items": [9, 7, 5, 3], "types": ["buy"] * 4},
        {"types": ["buy", "buy", "click"]},
        {"times": [3.0, 2.0, 1.0]},
    ],
)
def test_revision_of_changed_content_is_another(changes: dict[str, Any]) -> None:
    assert revision() != revision(**changes)


@pytest.mark.parametrize(
    "items",
    [
        np.array([9, 7, 5]), np.array(["x", "y", "z"], object), pd.Series([9, 7, 5], index=[2, 0, 1]),
        pa.array([9, 7, 5]), (9, 7, 5), [np.int64(9), np.int64(7), np.int64(5)],
    ],
)  # fmt: skip
def test_revision_of_equal_columns_of_any_library_is_the_same(items: Any) -> None:
    assert revision(items=items) == revision(items=copied(items))
    assert revision(items=items) != revision(items=items[::-1])


def test_revision_ignores_what_the_model_does_not_read() -> None:
    features = {**RECORD["features"], "fetched_at": 17.5}
    assert revision(features=features) == revision()
    assert revision(2, items=[9, 7, 1]) == revision(2)
    assert revision(1, times=[3.0, 2.0, 1.0]) == revision(1, times=[3.0, 2.0, 0.0])
    assert revision(1, times=[3.0, 2.0, 1.0]) != revision(1, times=[3.0, 1.0, 1.0])
    assert revision(revision=0) == 0


def test_revision_of_what_cannot_be_written_is_new_each_time() -> None:
    features = {"town": lambda: "York"}
    assert revision(features=features) != revision(features=features)


@pytest.mark.parametrize(
    "value",
    [np.arange(3), [1, 2, 3], [[1], [2]], {"id": np.arange(3), "tags": [["a"], []]}, pd.Series([1, 2])],
)
def test_copied_is_equal_and_shares_nothing(value: Any) -> None:
    copy = copied(value)
    assert repr(copy) == repr(value)
    parts = zip(copy.values(), value.values(), strict=True) if isinstance(value, dict) else [(copy, value)]
    for mine, theirs in parts:
        assert mine is not theirs
        assert not np.shares_memory(mine, theirs) if isinstance(mine, np.ndarray) else True


def test_copied_nested_lists_share_nothing() -> None:
    value = {"tags": [["a"], []], "pairs": ([1], [2])}
    copy = copied(value)
    value["tags"][0].append("b")
    value["pairs"][1].append(3)
    assert copy == {"tags": [["a"], []], "pairs": ([1], [2])}


def test_copied_what_cannot_be_copied_is_refused() -> None:
    with pytest.raises(RequestError, match="got a generator that cannot be copied"):
        copied(number for number in (1, 2))
