import numpy as np
import pytest

from aif_jax.data import load, synthetic
from aif_jax.errors import DataError


@pytest.fixture(scope="module")
def dataset():
    return synthetic(n_items=2000, n_users=400, n_categories=24, seed=1)


def auc(label, score):
    """Share of (positive, negative) pairs in the right order, ties by half."""
    positive, negative = np.sort(score[label]), np.sort(score[~label])
    below = np.searchsorted(negative, positive, side="left") + np.searchsorted(
        negative, positive, side="right"
    )
    return below.sum() / 2 / len(positive) / len(negative)


def test_synthetic_same_seed_gives_same_data():
    one, same, other = load("synthetic:small"), load("synthetic:small"), load("synthetic:small", seed=1)
    np.testing.assert_array_equal(one.events.item, same.events.item)
    np.testing.assert_array_equal(one.impressions.labels["ctr"], same.impressions.labels["ctr"])
    np.testing.assert_array_equal(one.content.vectors, same.content.vectors)
    assert not np.array_equal(one.impressions.item, other.impressions.item)


def test_synthetic_clicks_follow_stated_truth(dataset):
    truth, clicked = dataset.notes["truth"], dataset.impressions.labels["ctr"]
    # The sum of n independent draws lies within five standard deviations of the sum of their probabilities.
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        mine = (truth >= low) & (truth < high)
        spread = np.sqrt((truth[mine] * (1 - truth[mine])).sum())
        assert abs(clicked[mine].sum() - truth[mine].sum()) < 5 * spread
    test = dataset.impressions.split == 2
    assert dataset.notes["best_auc"]["test"] == pytest.approx(auc(clicked[test] > 0, truth[test]))


def test_synthetic_position_biases_only_truth(dataset):
    position = dataset.impressions.train_only["position"]
    odds = lambda p: p / (1 - p)  # noqa: E731
    ratio = odds(dataset.notes["truth"]) / odds(dataset.notes["truth_neutral"])
    np.testing.assert_allclose(ratio, (1.0 + position) ** -0.35, rtol=1e-6)
    assert dataset.notes["best_auc_neutral"]["train"] < dataset.notes["best_auc"]["train"]


def test_synthetic_impressions_become_events_with_outcome(dataset):
    rows, events = dataset.impressions, dataset.events
    # A request's rows follow its history in the log of events.
    place = rows.history_end + rows.train_only["position"]
    np.testing.assert_array_equal(events.item[place], rows.item)
    np.testing.assert_array_equal(events.user[place], rows.user)
    skip = dataset.schema.behaviour_types.index("skip")
    np.testing.assert_array_equal(events.type[place] != skip, rows.labels["ctr"] > 0)
    assert (events.time[place] == events.time[rows.history_end]).all()


def test_synthetic_likes_are_known_for_clicked_rows_only(dataset):
    rows = dataset.impressions
    np.testing.assert_array_equal(rows.label_mask["like"], rows.labels["ctr"])
    assert not (rows.labels["like"] > rows.labels["ctr"]).any()


def test_synthetic_has_cold_items_and_items_without_content(dataset):
    trained = dataset.trained_items()
    assert 0.9 < trained.mean() < 1.0
    tested = np.unique(dataset.impressions.item[dataset.impressions.split == 2])
    assert not trained[tested].all()
    assert 0 < np.count_nonzero(~dataset.content.has) < 0.03 * dataset.n_items


def test_synthetic_ids_exceed_32_bits(dataset):
    assert dataset.item_keys().min() > 2**32
    assert len(np.unique(dataset.item_keys().astype(np.uint32))) > 0.9 * dataset.n_items


def test_synthetic_long_history_predicts_better_than_last_fifty(dataset):
    # Score by the user's residual click rate in the candidate's category, over two lengths of history.
    rows, events = dataset.impressions, dataset.events
    assert np.mean(np.diff(events.offsets) > 300) > 0.3
    category = np.unique(dataset.items["category"], return_inverse=True)[1]
    test = np.flatnonzero(rows.split == 2)
    skip = dataset.schema.behaviour_types.index("skip")
    rate = np.mean(events.type[events.training] != skip)

    def affinity(length):
        items, types = dataset.history(rows.user[test], rows.history_end[test], length)
        same = (category[items] == category[rows.item[test]][:, None]) & (items >= 0)
        return (((types != skip) - rate) * same).sum(axis=1) / (same.sum(axis=1) + 4.0)

    clicked = rows.labels["ctr"][test] > 0
    assert auc(clicked, affinity(2000)) > auc(clicked, affinity(50)) + 0.02


def test_synthetic_schema_fits_and_counts_dropped_values(dataset):
    from aif_jax.features import EncodeReport

    report = EncodeReport()
    schema = dataset.fit_schema()
    catalogue = dataset.catalogue(schema, content_width=32, report=report)
    assert catalogue["content"].shape == (2000, 32)
    assert report.overflow["tags"] > 0
    assert report.unknown["item_id"] == np.count_nonzero(~dataset.trained_items())


@pytest.mark.parametrize("changes", [{"n_items": 5}, {"n_requests": 2}, {"n_users": 0}, {"n_categories": 1}])
def test_synthetic_invalid_sizes_raise(changes):
    with pytest.raises(DataError, match="expected at least"):
        synthetic(**{"n_items": 50, "n_users": 5, "n_categories": 10, **changes})
