import dataclasses

import numpy as np
import pytest

from aif_jax.data import TEST, TRAIN, load
from aif_jax.evaluation.cold_items import AT_MOST, cold_item_metrics, of_cold_items
from aif_jax.evaluation.user_pairs import UserPairs
from aif_jax.training.metrics import gauc, gauc_difference


def test_items_are_cold_by_their_training_impressions() -> None:
    dataset = load("synthetic:small", content_width=4)
    rows = dataset.impressions
    found = of_cold_items(dataset, "test")
    for place, row in enumerate(np.flatnonzero(rows.split == TEST)[:200]):
        shown = int(np.count_nonzero((rows.split == TRAIN) & (rows.item == rows.item[row])))
        assert found[place] == (shown <= AT_MOST)
    assert 0 < found.sum() < len(found)
    # What trains too after a refit counts.
    item = rows.item[np.flatnonzero(rows.split == TEST)[np.flatnonzero(found)[0]]]
    validation = np.where(rows.split == 1, item, rows.item).astype(np.int32)
    refit = dataclasses.replace(dataset, impressions=dataclasses.replace(rows, item=validation))
    assert of_cold_items(refit.with_validation_in_training(), "test").sum() < found.sum()


def test_differences_are_paired_and_few_users_say_nothing() -> None:
    rng = np.random.default_rng(0)
    users, labels = np.repeat(np.arange(60), 8), rng.integers(0, 2, 480)
    runs = {name: [labels + rng.normal(0, s, 480) for _ in range(2)] for name, s in (("a", 1), ("b", 3))}
    pairs = {name: [UserPairs.of(users, labels, run) for run in each] for name, each in runs.items()}
    found = cold_item_metrics(pairs, {"a": [0.9, 0.8], "b": [0.7, 0.6]}, "a")
    assert found is not None
    assert found["users"] == 60
    assert found["models"]["b"]["auc"] == [0.7, 0.6]
    assert found["models"]["b"]["gauc"] == [gauc(users, labels, run) for run in runs["b"]]
    apart = found["models"]["b"]["difference"]
    one = [gauc_difference(users, labels, b, a) for a, b in zip(runs["a"], runs["b"], strict=True)]
    assert apart["value"] == pytest.approx(np.mean([each.difference for each in one]))
    assert apart["high"] < 0
    assert found["models"]["a"]["difference"] is None
    for few in (0, 8):
        alone = UserPairs.of(users[:few], labels[:few], np.zeros(few))
        assert cold_item_metrics({"a": [alone]}, {"a": [0.5]}, "a") is None
