import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from aif_jax.errors import DataError
from aif_jax.training import metrics


def naive_auc(labels, scores):
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, y in zip(scores, labels, strict=True)
        if y == 1
        for n, z in zip(scores, labels, strict=True)
        if z == 0
    ]
    return sum(wins) / len(wins) if wins else float("nan")


def naive_gauc(users, labels, scores):
    total, weight = 0.0, 0
    for user in set(users.tolist()):
        mine = users == user
        value = naive_auc(labels[mine], scores[mine])
        if not np.isnan(value):
            total, weight = total + mine.sum() * value, weight + mine.sum()
    return total / weight if weight else float("nan")


rows = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(-4, 4)), min_size=1, max_size=40
).map(lambda r: tuple(np.array(column) for column in zip(*r, strict=True)))


@settings(deadline=None, max_examples=200)
@given(rows)
def test_auc_and_gauc_equal_their_definitions_ties_included(data):
    users, labels, scores = data
    np.testing.assert_allclose(metrics.auc(labels, scores / 7), naive_auc(labels, scores))
    np.testing.assert_allclose(metrics.gauc(users, labels, scores / 7), naive_gauc(users, labels, scores))


def test_user_aucs_leaves_out_users_with_one_class():
    users = np.array([5, 5, 9, 9, 9, 2])
    labels = np.array([0, 1, 1, 1, 1, 0])
    result = metrics.user_aucs(users, labels, np.arange(6.0))
    assert result.users.tolist() == [5]
    assert result.aucs.tolist() == [1.0]
    assert result.impressions.tolist() == [2]


def test_log_loss_equals_its_definition_and_survives_large_logits():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 50), rng.normal(size=50)
    p = 1 / (1 + np.exp(-logits))
    expected = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    np.testing.assert_allclose(metrics.log_loss(labels, logits), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.log_loss(np.array([0, 1]), np.array([1000.0, 1000.0])), 500.0)


def test_hit_rate_places_the_positive_among_its_ties():
    scores = np.array(
        [[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 0.0]]
    )
    assert metrics.hit_rate_at_k(scores[:1], 1) == 1.0
    assert metrics.hit_rate_at_k(scores[1:2], 3) == 0.0
    assert metrics.hit_rate_at_k(scores[2:3], 1) == 0.25
    # one above, two tied for places 2 and 3: in the first two half of the time
    assert metrics.hit_rate_at_k(scores[3:], 2) == 0.5
    assert metrics.hit_rate_at_k(scores, 4) == 1.0


def test_hit_rate_of_lists_with_several_positives_is_the_mean_of_their_shares():
    scores = np.array([[3.0, 1.0, 2.0, 0.0, -np.inf], [0.0, 1.0, 2.0, 2.0, 4.0]])
    positives = np.array([[True, True, False, False, False], [False, False, True, False, False]])
    # the first list keeps one of its two; in the second one is above, and two tie for places 2 and 3
    assert metrics.hit_rate_at_k(scores, 2, positives) == (0.5 + 0.5) / 2
    assert metrics.hit_rate_at_k(scores, 3, positives) == 1.0
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, (40, 12)).astype(float)
    positives = rng.random(scores.shape) < 0.3
    positives[:, 3] = True
    alone = [
        np.mean(
            [
                metrics.hit_rate_at_k(np.r_[mine[c], np.delete(mine, c)][None], 4)
                for c in np.flatnonzero(liked)
            ]
        )
        for mine, liked in zip(scores, positives, strict=True)
    ]
    np.testing.assert_allclose(metrics.hit_rate_at_k(scores, 4, positives), np.mean(alone))


@pytest.mark.parametrize("positives", [np.ones((2, 3), bool), np.array([[True, False], [False, False]])])
def test_hit_rate_without_a_positive_in_every_list_raises(positives):
    with pytest.raises(DataError, match="at least one in every list"):
        metrics.hit_rate_at_k(np.zeros((2, 2)), 1, positives)


def test_hit_rate_ignores_padding():
    assert metrics.hit_rate_at_k(np.array([[0.5, 1.0, -np.inf, -np.inf]]), 2) == 1.0


finite = st.integers(-9, 9).map(lambda n: n / 4)
tables = st.integers(2, 9).flatmap(
    lambda width: st.lists(
        st.tuples(
            st.lists(finite, min_size=width, max_size=width),
            st.lists(st.booleans(), min_size=width, max_size=width).filter(any),
        ),
        min_size=1,
        max_size=8,
    )
)


@settings(deadline=None, max_examples=100)
@given(tables, st.integers(1, 10))
def test_ndcg_equals_scikit_learns_ties_included(table, k):
    scores, positives = (np.array(column) for column in zip(*table, strict=True))
    found = metrics.ndcg_at_k(scores, k, positives)
    want = [ndcg_score(liked[None], mine[None], k=k) for mine, liked in zip(scores, positives, strict=True)]
    np.testing.assert_allclose(found, want, rtol=1e-9)


def test_ndcg_of_a_first_positive_is_one_and_padding_counts_for_nothing():
    scores = np.array([[3.0, 2.0, -np.inf], [1.0, 2.0, -np.inf], [0.0, 1.0, 2.0]])
    np.testing.assert_allclose(metrics.ndcg_at_k(scores, 2), [1.0, 1 / np.log2(3), 0.0])


@settings(deadline=None, max_examples=100)
@given(tables)
def test_reciprocal_ranks_equal_the_mean_over_all_orders_of_ties(table):
    scores, positives = (np.array(column)[:, :5] for column in zip(*table, strict=True))
    positives[:, 0] |= ~positives.any(axis=1)
    want = []
    for mine, liked in zip(scores, positives, strict=True):
        orders = [np.array(each) for each in itertools.permutations(range(mine.size))]
        # A stable sort of a shuffled list leaves ties in the order of the shuffle.
        ranked = [liked[each][np.argsort(-mine[each], kind="stable")] for each in orders]
        want.append(np.mean([1 / (1 + np.argmax(each)) for each in ranked]))
    np.testing.assert_allclose(metrics.reciprocal_ranks(scores, positives), want, rtol=1e-9)


def test_reciprocal_ranks_ignore_padding_and_no_list_has_none():
    scores = np.array([[2.0, 3.0, -np.inf], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(metrics.reciprocal_ranks(scores), [1 / 2, (1 + 1 / 2 + 1 / 3) / 3])
    assert metrics.reciprocal_ranks(np.zeros((0, 3))).size == 0


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=60).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    ),
    st.integers(1, 8),
)
def test_calibration_equals_scikit_learns(rows, bins):
    labels, probabilities = (np.array(column) for column in zip(*rows, strict=True))
    found = metrics.calibration(labels, probabilities, bins)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=bins, strategy="quantile")
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    assert found.counts.sum() == labels.size
    np.testing.assert_array_equal(np.bincount(found.bin), found.counts)
    assert found.error == pytest.approx(np.abs(predicted - observed) @ found.counts / labels.size)


def test_calibration_of_impossible_probabilities_raises():
    with pytest.raises(DataError, match=r"probabilities from -0.5 to 2"):
        metrics.calibration(np.array([0, 1]), np.array([-0.5, 2.0]))
    with pytest.raises(DataError, match="got 0 bins"):
        metrics.calibration(np.array([0, 1]), np.array([0.5, 0.5]), 0)
    assert np.isnan(metrics.calibration(np.zeros(0), np.zeros(0)).error)


@settings(deadline=None, max_examples=100)
@given(rows)
def test_auc_and_log_loss_equal_scikit_learns(data):
    _, labels, scores = data
    if len(set(labels.tolist())) == 2:
        assert metrics.auc(labels, scores / 7) == pytest.approx(roc_auc_score(labels, scores))
    probabilities = 1 / (1 + np.exp(-scores / 7))
    want = log_loss(labels, probabilities, labels=[0, 1])
    assert metrics.log_loss(labels, scores / 7) == pytest.approx(want)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [0.0], "same length"),
        ([0, 0.5], [0.0, 1.0], "only 0 and 1"),
        ([0, 1], [0.0, np.nan], "1 of 2 are not finite"),
    ],
)
def test_auc_of_wrong_arrays_names_what_is_wrong(labels, scores, words):
    with pytest.raises(DataError, match=words):
        metrics.auc(np.array(labels), np.array(scores))


def test_auc_of_one_class_is_nan():
    assert np.isnan(metrics.auc(np.ones(3), np.arange(3.0)))
    assert np.isnan(metrics.gauc(np.zeros(3, int), np.ones(3), np.arange(3.0)))
