import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
def test_hit_rate_wants_a_positive_in_every_list(positives):
    with pytest.raises(DataError, match="at least one in every list"):
        metrics.hit_rate_at_k(np.zeros((2, 2)), 1, positives)


def test_hit_rate_ignores_padding():
    assert metrics.hit_rate_at_k(np.array([[0.5, 1.0, -np.inf, -np.inf]]), 2) == 1.0


def test_bootstrap_error_agrees_with_the_spread_of_independent_samples():
    rng = np.random.default_rng(1)

    def sample(users):
        user = np.repeat(np.arange(users), 12)
        labels = rng.integers(0, 2, user.size)
        signal = labels + rng.normal(size=user.size)
        return user, labels, signal, signal + rng.normal(size=user.size)

    spread = np.std(
        [metrics.gauc(u, y, a) - metrics.gauc(u, y, b) for u, y, a, b in (sample(150) for _ in range(60))]
    )
    user, labels, a, b = sample(150)
    result = metrics.gauc_difference(user, labels, a, b, resamples=400)
    np.testing.assert_allclose(
        result.difference, metrics.gauc(user, labels, a) - metrics.gauc(user, labels, b)
    )
    assert 0.6 * spread < result.standard_error < 1.6 * spread
    assert result.low < result.difference < result.high
    assert result.low > 0.0, "A sees the label through less noise than B"


def test_bootstrap_is_paired():
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(50), 10)
    labels, scores = rng.integers(0, 2, user.size), rng.normal(size=user.size)
    result = metrics.gauc_difference(user, labels, scores, 2 * scores + 1)
    assert result.difference == result.standard_error == 0.0


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [0.0], "same length"),
        ([0, 0.5], [0.0, 1.0], "only 0 and 1"),
        ([0, 1], [0.0, np.nan], "1 of 2 are not finite"),
    ],
)
def test_errors_name_what_is_wrong(labels, scores, words):
    with pytest.raises(DataError, match=words):
        metrics.auc(np.array(labels), np.array(scores))


def test_one_class_has_no_auc():
    assert np.isnan(metrics.auc(np.ones(3), np.arange(3.0)))
    assert np.isnan(metrics.gauc(np.zeros(3, int), np.ones(3), np.arange(3.0)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=30), st.integers(1, 12)
)
def test_agreement_of_scores_equals_its_definition_ties_included(pairs, k):
    a, b = np.array(pairs, float).T

    def ranks(scores):  # half a place for each tie, the score itself included
        return np.array([np.sum(scores < s) + np.sum(scores == s) / 2 for s in scores])

    found = metrics.rank_correlation(a, b)
    if a.std() == 0 or b.std() == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1], abs=1e-9)
    best = [sorted(range(len(s)), key=lambda i, s=s: (-s[i], i))[:k] for s in (a, b)]
    assert metrics.top_k_overlap(a, b, k) == len(set(best[0]) & set(best[1])) / len(best[0])
    assert metrics.top_k_overlap(a, a, k) == 1.0


def test_agreement_of_scores_refuses_what_has_none():
    with pytest.raises(DataError, match=r"shapes \(2,\) and \(3,\)"):
        metrics.rank_correlation(np.zeros(2), np.zeros(3))
    with pytest.raises(DataError, match="1 of 4 are not finite"):
        metrics.top_k_overlap(np.array([0.0, np.inf]), np.zeros(2), 1)
    with pytest.raises(DataError, match="k=0 of 2 scores"):
        metrics.top_k_overlap(np.zeros(2), np.zeros(2), 0)
