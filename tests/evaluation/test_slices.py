import dataclasses

import numpy as np
import pytest

from aif_jax.data import TEST, TRAIN, Dataset
from aif_jax.errors import DataError
from aif_jax.evaluation.slices import HISTORY, POPULARITY, Slice, slices_of
from aif_jax.features import Ragged


def by_dimension(found: list[Slice]) -> dict[str, dict[str, np.ndarray]]:
    dimensions: dict[str, dict[str, np.ndarray]] = {}
    for each in found:
        dimensions.setdefault(each.dimension, {})[each.name] = each.rows
    return dimensions


def test_slices_of_counts_hold_each_impression_once_where_it_belongs(dataset: Dataset) -> None:
    every = dataset.impressions
    rows = np.flatnonzero(every.split == TEST)
    found = by_dimension(slices_of(dataset, rows))
    assert set(found) == {"history length", "training impressions of the item", "user"}
    for slices in found.values():
        assert (np.sum(list(slices.values()), axis=0) == 1).all()
        assert all(each.any() for each in slices.values())
    trained = every.split == TRAIN
    for place, row in enumerate(rows[:200]):
        history = int(every.history_end[row] - dataset.events.offsets[every.user[row]])
        shown = int(np.sum(trained & (every.item == every.item[row])))
        for dimension, starts, value in (
            ("history length", HISTORY, history),
            ("training impressions of the item", POPULARITY, shown),
        ):
            name = next(name for name, mine in found[dimension].items() if mine[place])
            low = int(name.split()[0].replace(",", ""))
            assert low == max(start for start in starts if start <= value)
        new = not np.any(trained & (every.user == every.user[row]))
        assert found["user"]["new" if new else "in training"][place]


def test_slices_of_a_feature_follow_its_values(dataset: Dataset) -> None:
    rows = np.flatnonzero(dataset.impressions.split == TEST)
    found = by_dimension(slices_of(dataset, rows, ["category"]))["item category"]
    values = np.asarray(dataset.items["category"]).astype(str)[dataset.impressions.item[rows]]
    assert (np.sum(list(found.values()), axis=0) == 1).all()
    for name, mine in found.items():
        if name != "other values":
            np.testing.assert_array_equal(mine, values == name)


def test_slices_of_a_list_column_hold_an_impression_for_each_value(dataset: Dataset) -> None:
    n = dataset.n_items
    plain = [["a", "b"] if item % 3 == 0 else ["b"] if item % 3 == 1 else [] for item in range(n)]
    flat = Ragged(np.array([value for each in plain for value in each]), np.cumsum([0, *map(len, plain)]))
    rows = np.flatnonzero(dataset.impressions.split == TEST)
    item = dataset.impressions.item[rows]
    for column in (plain, flat):
        changed = dataclasses.replace(dataset, items={**dataset.items, "tags": column})
        found = by_dimension(slices_of(changed, rows, ["tags"]))["item tags"]
        np.testing.assert_array_equal(found["a"], item % 3 == 0)
        np.testing.assert_array_equal(found["b"], item % 3 < 2)
        np.testing.assert_array_equal(found["missing"], item % 3 == 2)


def test_slices_of_an_unknown_or_real_column_are_refused(dataset: Dataset) -> None:
    rows = np.arange(5)
    with pytest.raises(DataError, match=r"no column 'moon', expected one of .*item category"):
        slices_of(dataset, rows, ["moon"])
    real = dataclasses.replace(dataset, items={**dataset.items, "price": np.ones(dataset.n_items)})
    with pytest.raises(DataError, match="'price' holds real numbers"):
        slices_of(real, rows, ["price"])
