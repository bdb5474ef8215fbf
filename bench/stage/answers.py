"""Answers are checked before anything is timed."""

import numpy as np

from stage.timing import Contender

TOLERANCE = 1e-4
TURNS_CHECKED = (0, 5)


def check_same(contender: Contender, definition: Contender) -> float:
    """Check that a contender computes what the definition says.

    Its scores, best first, are the definition's; candidates that both return have the same score; and the
    candidates are the same ones but for those whose scores the tolerance cannot tell apart.

    Returns:
        The largest difference of scores.

    Raises:
        AssertionError: it computes something else.
    """
    worst = 0.0
    for turn in TURNS_CHECKED:
        order, scores = contender.run(turn)
        expected_order, expected = definition.run(turn)
        where = f"{contender.name} against {definition.name}"
        np.testing.assert_allclose(scores, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=where)
        _, mine, theirs = np.intersect1d(order, expected_order, return_indices=True)
        np.testing.assert_allclose(
            scores[mine], expected[theirs], rtol=TOLERANCE, atol=TOLERANCE, err_msg=where
        )
        left_out = np.setdiff1d(np.arange(len(expected)), theirs)
        assert (expected[left_out] <= expected[-1] + 2 * TOLERANCE).all(), f"{where}: other candidates"
        worst = max(worst, float(np.abs(scores - expected).max()))
    return worst


def overlap(contender: Contender, definition: Contender) -> float:
    """Return the share of the definition's best that a contender of lower precision finds too.

    Raises:
        AssertionError: it is under 90 %.
    """
    shares = []
    for turn in TURNS_CHECKED:
        order, expected = contender.run(turn)[0], definition.run(turn)[0]
        shares.append(len(np.intersect1d(order, expected)) / len(expected))
    assert min(shares) >= 0.9, f"{contender.name}: only {min(shares):.0%} of the best of {definition.name}"
    return min(shares)
