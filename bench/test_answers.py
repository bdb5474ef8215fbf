"""The check of answers refuses wrong ones. (Each test is a benchmark so that it runs beside them.)"""

import numpy as np
import pytest

from stage.answers import TOLERANCE, check_same, overlap
from stage.timing import Contender

ORDER, SCORES = np.arange(100), np.linspace(0.9, 0.1, 100, dtype=np.float32)


def answering(order: np.ndarray, scores: np.ndarray) -> Contender:
    return Contender("given", lambda _: (order, scores))


WRONG = {
    "a score is off": (ORDER, SCORES + np.float32(10 * TOLERANCE)),
    "two candidates have each other's score": (np.r_[ORDER[1::-1], ORDER[2:]], SCORES),
    "another candidate in the middle": (np.where(ORDER == 50, 1000, ORDER), SCORES),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.benchmark(group="checking an answer")
def test_wrong_answers_are_refused(benchmark, wrong):
    definition = answering(ORDER, SCORES)
    benchmark.pedantic(check_same, (definition, definition), rounds=1)
    with pytest.raises(AssertionError):
        check_same(answering(*WRONG[wrong]), definition)


@pytest.mark.benchmark(group="checking an answer")
def test_other_candidates_are_refused(benchmark):
    definition = answering(ORDER, SCORES)
    assert benchmark.pedantic(overlap, (answering(ORDER[::-1], SCORES), definition), rounds=1) == 1
    with pytest.raises(AssertionError):
        overlap(answering(ORDER + 11, SCORES), definition)
