"""The best of many scores."""

import numpy as np
import pytest

from aif_jax.features.score import best_first


@pytest.mark.parametrize("seed", range(60))
def test_best_first_random_scores_are_start_of_stable_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    scores = rng.integers(0, int(rng.choice([2, 5, 1_000])), n).astype(np.float32)
    scores[rng.random(n) < 0.3] = -np.inf
    for k in {0, 1, n // 2, n}:
        want = np.argsort(-scores, kind="stable")[:k]
        np.testing.assert_array_equal(best_first(scores, k), want)
