"""The time between behaviours, in steps that double."""

import numpy as np

GAP_STEPS = 32
"""Steps: 0 for an unknown gap, then ``[0, 1)``, ``[1, 3)``, ``[3, 7)`` seconds and so on, the last open."""


def gap_steps(times: np.ndarray) -> np.ndarray:
    """Return the step of the time from each behaviour's next older one to it.

    Milliseconds are the finest that counts, so that a time in another unit or precision gives the same step.

    Args:
        times: seconds since 1970, float64 ``[n]``, most recent first; NaN or negative where unknown.

    Returns:
        int32 ``[n]``: ``1 + floor(log2(1 + seconds))``, at most ``GAP_STEPS - 1``; 0 where either time is
        unknown, and for the oldest. Times in the wrong order have the gap 0.

    >>> gap_steps(np.array([86_400.0 + 7, 86_400.0, 0.0, -1.0])).tolist()
    [4, 17, 0, 0]
    """
    steps = np.zeros(len(times), np.int32)
    known = times >= 0
    both = np.flatnonzero(known[:-1] & known[1:])
    seconds = np.maximum(np.round(times[both] - times[both + 1], 3), 0.0)
    steps[both] = np.minimum(1 + np.floor(np.log2(1 + seconds)), GAP_STEPS - 1)
    return steps
