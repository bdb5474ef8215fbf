"""The counted features see what there is, and no label of their own row."""

import dataclasses

import numpy as np
import pytest

from aif_jax.data import TRAIN, synthetic, synthetic_small
from counted_features import FOLDS, Known, features, history_features, training_rows
from history_signal import measure


@pytest.fixture(scope="module")
def data():
    return synthetic_small()


def test_no_label_of_a_training_row_is_in_its_own_features(data):
    rows, ends = training_rows(data, "ctr", 10**6)
    before, _ = features(Known.of(data), "ctr", rows, ends)
    impressions = data.impressions
    first = impressions.user % FOLDS == 0
    dealt = np.flatnonzero(first & (impressions.split == TRAIN))
    labels = impressions.labels["ctr"].copy()
    labels[dealt] = np.random.default_rng(0).permutation(labels[dealt])  # the mean of all stays
    changed = dataclasses.replace(impressions, labels={**impressions.labels, "ctr": labels})
    after, _ = features(Known.of(dataclasses.replace(data, impressions=changed)), "ctr", rows, ends)
    own = first[rows]
    assert np.array_equal(before[own], after[own], equal_nan=True)
    assert not np.array_equal(before[~own], after[~own], equal_nan=True)


def test_matches_are_those_of_the_history(data):
    known, rows = Known.of(data), np.flatnonzero(data.impressions.split == TRAIN)[:50]
    ends = data.impressions.history_end[rows]
    rates, matches = history_features(known, rows, ends)
    for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
        seen = slice(data.events.offsets[data.impressions.user[row]], end)
        assert rates["length"][place] == end - seen.start
        if end == seen.start:
            continue
        item = data.impressions.item[row]
        assert rates["rate"][place] == known.positive[seen].mean()
        own = set(known.categories[item].tolist()) - {0, 1}
        shared = [bool(own & set(known.categories[other].tolist())) for other in data.events.item[seen]]
        assert matches["matches of category"][place] == sum(shared)
        likeness = data.content.vectors[data.events.item[seen]] @ data.content.vectors[item]
        if known.positive[seen].any():
            assert matches["nearest positive"][place] == pytest.approx(likeness[known.positive[seen]].max())


def test_trees_find_what_a_history_says_where_it_says_something():
    steps, trained, tested = measure(synthetic(n_users=500, n_items=800), "ctr", seeds=1, most=20_000)
    assert 0 < tested < trained <= 20_000
    gain = steps[-1].gain
    assert gain is not None
    assert gain.value > 4 * gain.standard_error
    assert steps[0].gain is None
