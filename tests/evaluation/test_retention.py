import math

import numpy as np
import pytest

from aif_jax.evaluation.retention import NDCG_K, NDCG_M, POSITIVES, SURVIVORS, Retention, retention


def plainly(ranker: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> Retention:
    """The same list by list, with Python's own sort."""
    survivors = {f"{k}@{m}": [] for k, m in SURVIVORS}
    positives = {str(m): [] for m in POSITIVES}
    ndcg = []
    for judged, mine, liked in zip(ranker.tolist(), scores.tolist(), chosen.tolist(), strict=True):
        columns = range(len(judged))
        by_ranker = sorted(columns, key=lambda c: (-judged[c], liked[c], c))
        by_mine = sorted(columns, key=lambda c: (-mine[c], liked[c], c))
        wanted = {c for c in columns if liked[c]}
        for k, m in SURVIVORS:
            survivors[f"{k}@{m}"].append(len(set(by_ranker[:k]) & set(by_mine[:m])) / k)
        for m in POSITIVES:
            positives[str(m)].append(len(wanted & set(by_mine[:m])) / len(wanted))

        def gain(column: int, judged: list[float] = judged) -> float:
            return 0.0 if judged[column] == -math.inf else 1 / (1 + math.exp(-judged[column]))

        def dcg(order: list[int]) -> float:
            return sum(gain(c) / math.log2(place + 2) for place, c in enumerate(order[:NDCG_K]))

        kept = set(by_mine[:NDCG_M])
        ndcg.append(dcg([c for c in by_ranker if c in kept]) / dcg(by_ranker))
    return Retention(
        survivors={name: float(np.mean(values)) for name, values in survivors.items()},
        positives={name: float(np.mean(values)) for name, values in positives.items()},
        ndcg=float(np.mean(ndcg)),
        lists=len(ranker),
        candidates=sum(value > -math.inf for judged in ranker.tolist() for value in judged) / len(ranker),
        positive=sum(map(sum, chosen.tolist())) / len(ranker),
    )


def first(ranker: np.ndarray) -> np.ndarray:
    chosen = np.zeros(ranker.shape, bool)
    chosen[:, 0] = True
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_plain_sorting_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = int(rng.integers(201, 400))
    ranker = rng.normal(size=(12, candidates))
    scores = ranker + rng.normal(size=ranker.shape) * rng.random()
    chosen = first(ranker)
    if seed % 2:  # ties, several positives, and lists that are not full
        ranker, scores = np.round(ranker, 1), np.round(scores, 1)
        chosen[:, 1:5] = rng.random((12, 4)) < 0.4
        absent = (rng.random(ranker.shape) < 0.05) & ~chosen
        ranker[absent] = scores[absent] = -np.inf
    found, expected = retention(ranker, scores, chosen), plainly(ranker, scores, chosen)
    assert found.survivors == pytest.approx(expected.survivors)
    assert found.positives == pytest.approx(expected.positives)
    assert found.ndcg == pytest.approx(expected.ndcg)
    assert (found.lists, found.candidates, found.positive) == (
        expected.lists, pytest.approx(expected.candidates), pytest.approx(expected.positive),
    )  # fmt: skip


def test_the_ranker_itself_keeps_all_and_a_constant_keeps_no_positive() -> None:
    ranker = np.random.default_rng(0).normal(size=(30, 1000))
    own = retention(ranker, ranker, first(ranker))
    assert set(own.survivors.values()) == {1.0}
    assert own.ndcg == pytest.approx(1.0)
    constant = retention(ranker, np.zeros_like(ranker), first(ranker))
    assert set(constant.positives.values()) == {0.0}
    assert constant.survivors["10@100"] == pytest.approx(0.1, abs=0.05)
