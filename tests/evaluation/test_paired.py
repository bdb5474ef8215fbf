import numpy as np
import pytest

from aif_jax.errors import DataError
from aif_jax.evaluation.paired import PairedBootstrap
from aif_jax.training.metrics import gauc, gauc_difference, user_aucs

Runs = dict[str, list[np.ndarray]]


def bootstrap(user: np.ndarray, labels: np.ndarray, scores: Runs, **options: int) -> PairedBootstrap:
    found = {name: [user_aucs(user, labels, run) for run in runs] for name, runs in scores.items()}
    weights = next(iter(found.values()))[0].impressions
    return PairedBootstrap(weights, {n: [each.aucs for each in runs] for n, runs in found.items()}, **options)


def world(seed: int = 0, users: int = 150, seeds: int = 3) -> tuple[np.ndarray, np.ndarray, Runs]:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 20)
    truth = rng.normal(size=user.size)
    labels = (truth + rng.normal(size=user.size) > 0).astype(np.float64)

    def runs(noise: float) -> list[np.ndarray]:
        return [truth + rng.normal(size=user.size) * noise for _ in range(seeds)]

    return user, labels, {"exact": runs(0.3), "aif": runs(0.5), "cold": runs(2.0)}


def test_values_are_means_over_seeds_of_the_plain_metric() -> None:
    user, labels, scores = world()
    paired = bootstrap(user, labels, scores, resamples=200)
    mean = {name: np.mean([gauc(user, labels, run) for run in runs]) for name, runs in scores.items()}
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


def test_with_one_seed_it_is_the_bootstrap_over_users() -> None:
    user, labels, scores = world(seeds=1)
    mine = bootstrap(user, labels, scores, resamples=3000).difference("exact", "cold")
    known = gauc_difference(user, labels, scores["exact"][0], scores["cold"][0], resamples=3000)
    assert mine.value == pytest.approx(known.difference)
    assert mine.standard_error == pytest.approx(known.standard_error, rel=0.1)
    assert (mine.low, mine.high) == pytest.approx((known.low, known.high), abs=known.standard_error * 0.3)


def test_seeds_that_disagree_widen_the_error() -> None:
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
def test_the_error_of_a_mean_of_few_seeds_is_as_large_as_such_means_spread(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    squares = []
    for _ in range(150):  # users who are all alike, so that only seeds move anything
        runs = [np.full(4, 0.7 + 0.01 * rng.normal()) for _ in range(seeds)]
        paired = PairedBootstrap(np.ones(4), {"a": runs, "b": [np.full(4, 0.6)] * seeds}, resamples=150)
        squares.append(paired.difference("a", "b").standard_error ** 2)
    assert np.mean(squares) == pytest.approx(0.01**2 / seeds, rel=0.25)


def test_a_gain_that_is_none_has_no_share() -> None:
    user, labels, scores = world()
    scores["exact"] = scores["cold"]
    lost = bootstrap(user, labels, scores, resamples=50).lost("aif", "exact", "cold")
    assert (lost.share, lost.upper) == (None, None)
    assert lost.gain.value == 0


def test_models_need_the_same_number_of_seeds() -> None:
    user, labels, scores = world()
    scores["aif"] = scores["aif"][:2]
    with pytest.raises(DataError, match="the same number"):
        bootstrap(user, labels, scores)


def test_users_are_those_of_the_weights_and_at_least_two() -> None:
    aucs = np.full(3, 0.5)
    with pytest.raises(DataError, match=r"AUCs of \[3\] users, expected those of the 2"):
        PairedBootstrap(np.ones(2), {"a": [aucs]})
    with pytest.raises(DataError, match="1 users have both classes"):
        PairedBootstrap(np.ones(1), {"a": [aucs[:1]]})
