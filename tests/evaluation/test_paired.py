import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from aif_jax.errors import DataError
from aif_jax.evaluation.paired import PairedBootstrap, PooledAuc, Ratio
from aif_jax.training.metrics import gauc, user_aucs

Runs = dict[str, list[np.ndarray]]


def bootstrap(user: np.ndarray, labels: np.ndarray, scores: Runs, **options: int) -> PairedBootstrap[str]:
    found = {name: [user_aucs(user, labels, run) for run in runs] for name, runs in scores.items()}
    weights = next(iter(found.values()))[0].impressions
    aucs = {name: [each.aucs for each in runs] for name, runs in found.items()}
    return PairedBootstrap.of_gauc(weights, aucs, **options)


def world(seed: int = 0, users: int = 150, seeds: int = 3) -> tuple[np.ndarray, np.ndarray, Runs]:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 20)
    truth = rng.normal(size=user.size)
    labels = (truth + rng.normal(size=user.size) > 0).astype(np.float64)

    def runs(noise: float) -> list[np.ndarray]:
        return [truth + rng.normal(size=user.size) * noise for _ in range(seeds)]

    return user, labels, {"exact": runs(0.3), "aif": runs(0.5), "cold": runs(2.0)}


def test_difference_of_several_seeds_is_that_of_their_mean_metrics() -> None:
    user, labels, scores = world()
    paired = bootstrap(user, labels, scores, resamples=200)
    mean = {name: np.mean([gauc(user, labels, run) for run in runs]) for name, runs in scores.items()}
    assert paired.estimate("aif").value == pytest.approx(mean["aif"])
    gap = paired.difference("aif", "cold")
    assert gap.value == pytest.approx(mean["aif"] - mean["cold"])
    assert gap.low < gap.value < gap.high
    back = paired.difference("cold", "aif")
    assert (back.value, back.standard_error) == pytest.approx((-gap.value, gap.standard_error))
    lost = paired.lost("aif", "exact", "cold")
    share = (mean["exact"] - mean["aif"]) / (mean["exact"] - mean["cold"])
    assert lost.share == pytest.approx(share)
    assert lost.upper is not None
    assert lost.upper > share


def test_error_of_a_difference_agrees_with_the_spread_of_independent_samples() -> None:
    rng = np.random.default_rng(1)

    def sample(users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        user = np.repeat(np.arange(users), 12)
        labels = rng.integers(0, 2, user.size)
        signal = labels + rng.normal(size=user.size)
        return user, labels, signal, signal + rng.normal(size=user.size)

    samples = [sample(150) for _ in range(60)]
    for name in ("gauc", "auc"):
        measure = (
            gauc if name == "gauc" else (lambda user, labels, scores: float(roc_auc_score(labels, scores)))
        )
        spread = np.std([measure(u, y, a) - measure(u, y, b) for u, y, a, b in samples])
        user, labels, a, b = samples[0]
        if name == "gauc":
            found = bootstrap(user, labels, {"a": [a], "b": [b]}, resamples=400).difference("a", "b")
        else:
            pooled = {"a": [PooledAuc(user, labels, a)], "b": [PooledAuc(user, labels, b)]}
            found = PairedBootstrap(150, pooled, resamples=400).difference("a", "b")
        assert found.value == pytest.approx(measure(user, labels, a) - measure(user, labels, b))
        assert 0.6 * spread < found.standard_error < 1.6 * spread
        assert found.low < found.value < found.high
        assert found.low > 0.0, "A sees the label through less noise than B"


def test_difference_of_scores_of_one_order_has_no_error() -> None:
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(50), 10)
    labels, scores = rng.integers(0, 2, user.size), rng.normal(size=user.size)
    found = bootstrap(user, labels, {"a": [scores], "b": [2 * scores + 1]}).difference("a", "b")
    assert found.value == found.standard_error == 0.0


def test_error_of_seeds_that_disagree_is_wider() -> None:
    user, labels, scores = world(seeds=1)
    good, bad = scores["exact"][0], scores["cold"][0]
    alike = {"a": [good] * 4, "b": [bad] * 4}
    unlike = {"a": [good, good, bad, bad], "b": [bad] * 4}
    errors = [
        bootstrap(user, labels, runs, resamples=500).difference("a", "b").standard_error
        for runs in (alike, unlike)
    ]
    assert errors[1] > 1.5 * errors[0]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_error_of_a_mean_of_few_seeds_is_as_large_as_such_means_spread(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    squares = []
    for _ in range(150):  # users who are all alike, so that only seeds move anything
        runs = [np.full(4, 0.7 + 0.01 * rng.normal()) for _ in range(seeds)]
        aucs = {"a": runs, "b": [np.full(4, 0.6)] * seeds}
        paired = PairedBootstrap.of_gauc(np.ones(4), aucs, resamples=150)
        squares.append(paired.difference("a", "b").standard_error ** 2)
    assert np.mean(squares) == pytest.approx(0.01**2 / seeds, rel=0.25)


def test_lost_of_a_gain_within_its_error_has_no_share() -> None:
    user, labels, scores = world()
    scores["exact"] = scores["cold"]
    lost = bootstrap(user, labels, scores, resamples=50).lost("aif", "exact", "cold")
    assert (lost.share, lost.upper) == (None, None)
    assert lost.gain.value == 0


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
)
def test_pooled_auc_equals_that_of_impressions_repeated_with_their_users(
    rows: list[tuple[int, int, int]], times: list[int]
) -> None:
    users, labels, scores = map(np.array, zip(*rows, strict=True))
    again = np.repeat(np.arange(len(rows)), np.array(times)[users])
    found = PooledAuc(users, labels, scores / 7)(np.array(times, float))
    if len(set(labels[again])) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(labels[again], scores[again]))


def test_draws_without_anybody_who_counts_are_left_out() -> None:
    few = Ratio(np.array([0.5, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    found = PairedBootstrap(3, {"few": [few]}, resamples=60).estimate("few")
    assert (found.value, found.standard_error) == (0.5, 0.0)
    nobody = Ratio(np.zeros(3), np.zeros(3))
    assert np.isnan(PairedBootstrap(3, {"none": [nobody]}).estimate("none").value)


def test_bootstrap_refuses_what_cannot_be_paired() -> None:
    user, labels, scores = world()
    scores["aif"] = scores["aif"][:2]
    with pytest.raises(DataError, match="the same number"):
        bootstrap(user, labels, scores)
    aucs = np.full(3, 0.5)
    with pytest.raises(DataError, match=r"AUCs of \[3\] users, expected those of the 2"):
        PairedBootstrap.of_gauc(np.ones(2), {"a": [aucs]})
    with pytest.raises(DataError, match="got 1 users"):
        PairedBootstrap.of_gauc(np.ones(1), {"a": [aucs[:1]]})
    with pytest.raises(DataError, match=r"statistics of \[3\] users, expected 4"):
        PairedBootstrap(4, {"a": [Ratio(aucs, aucs)]})
