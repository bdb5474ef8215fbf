"""The check of answers refuses wrong ones."""

import numpy as np
import pytest

from stage.timing import TOLERANCE, Contender, check_same, overlap

ORDER, SCORES = np.arange(100), np.linspace(0.9, 0.1, 100, dtype=np.float32)


def answering(order: np.ndarray, scores: np.ndarray) -> Contender:
    return Contender("given", lambda _: (order, scores))


DEFINITION = answering(ORDER, SCORES)
WRONG = {
    "a score is off": (ORDER, SCORES + np.float32(10 * TOLERANCE)),
    "two candidates have each other's score": (np.r_[ORDER[1::-1], ORDER[2:]], SCORES),
    "another candidate in the middle": (np.where(ORDER == 50, 1000, ORDER), SCORES),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_check_same_refuses_wrong_answers(wrong):
    check_same(DEFINITION, DEFINITION)
    with pytest.raises(AssertionError):
        check_same(answering(*WRONG[wrong]), DEFINITION)


def test_overlap_refuses_other_candidates():
    assert overlap(answering(ORDER[::-1], SCORES), DEFINITION) == 1
    with pytest.raises(AssertionError):
        overlap(answering(ORDER + 11, SCORES), DEFINITION)
