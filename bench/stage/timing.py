"""Contenders: their answers checked against a definition, then timed in turns.

Every round times each contender once, in an order drawn anew. A turn begins with runs that are not timed, on
other requests: a service answers one request after the other, with its threads awake and its weights in the
caches, and not one after eleven other programs, of which some leave threads behind that spin for a while
(ONNX Runtime's do). The rows of the timed request are as cold as they would be there.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence

import numpy as np

from stage.request import TURNS

SETTLING_S = 0.03
"""How long a contender runs before the run that is timed, at least once."""

WARMUP = 3
"""Rounds before those that are timed."""

TOLERANCE = 1e-4
TURNS_CHECKED = (0, 5)


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that answers a request: ``run`` takes the number of a turn and returns positions of the best
    candidates and their scores, ready in memory."""

    name: str
    run: Callable[[int], tuple[np.ndarray, np.ndarray]]


Times = dict[str, np.ndarray]
"""Milliseconds by contender, one a round."""


def check_answer(
    ids: np.ndarray, scores: np.ndarray, expected_ids: np.ndarray, expected: np.ndarray
) -> float:
    """Return the largest difference of an answer's scores from the right ones.

    Scores, best first, must be the same, and so must the score of every candidate that both return; those
    that only one returns must be ones that the tolerance cannot tell from the last.

    Raises:
        AssertionError: the answer is another one.
    """
    assert ids.shape == expected_ids.shape, f"{len(ids)} results instead of {len(expected_ids)}"
    worst = float(np.abs(scores - expected).max())
    assert worst <= TOLERANCE, f"scores differ by {worst:.2g}"
    assert len(np.unique(ids)) == len(ids), "a candidate is there twice"
    _, mine, theirs = np.intersect1d(ids, expected_ids, return_indices=True)
    apart = np.abs(scores[mine] - expected[theirs])
    assert (apart <= TOLERANCE).all(), "a candidate has another one's score"
    left_out = np.setdiff1d(np.arange(len(expected)), theirs)
    assert (expected[left_out] <= expected[-1] + 2 * TOLERANCE).all(), "better candidates were left out"
    return worst


def check_same(contender: Contender, definition: Contender) -> float:
    """Return the largest difference of scores from the definition; see `check_answer`."""
    try:
        return max(check_answer(*contender.run(turn), *definition.run(turn)) for turn in TURNS_CHECKED)
    except AssertionError as error:
        raise AssertionError(f"{contender.name} against {definition.name}: {error}") from error


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


def interleaved(contenders: Sequence[Contender], rounds: int) -> Times:
    """Time contenders whose answers were checked, each round with the same request for all."""
    order = random.Random(0)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(-WARMUP, rounds):
        for contender in order.sample(contenders, len(contenders)):
            began, other = time.perf_counter(), number + 1
            while time.perf_counter() - began < SETTLING_S:
                contender.run(other % TURNS)
                # Any request but the one that is timed.
                other += 1 + ((other + 1 - number) % TURNS == 0)
            began = time.perf_counter()
            contender.run(number % TURNS)
            spent = (time.perf_counter() - began) * 1e3
            if number >= 0:
                times[contender.name].append(spent)
    return {name: np.asarray(ms) for name, ms in times.items()}


def fastest(times: Times) -> str:
    return min(times, key=lambda name: float(np.median(times[name])))
