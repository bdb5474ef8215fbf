"""The service that is loaded: numbered users and requests over the small world, and their right answers."""

import dataclasses
import threading
from functools import cached_property
from typing import Any

import numpy as np

from aif_jax.nearline import Tables
from aif_jax.serving import EngineConfig, Shapes
from aif_jax.types import Candidates, UserRecord
from support.served import CONFIG, World

TOLERANCE = 1e-4
"""Largest difference of scores from the definition."""

REQUESTS, TURNS = 32, 8
"""Different users, and different sets of candidates."""

CONTEXT = {"hour": 7}
"""Raw context features of every request."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Item ids of the best candidates, best first, their scores, and the rung; 0 is full quality."""

    ids: np.ndarray
    scores: np.ndarray
    rung: int = 0


@dataclasses.dataclass(frozen=True)
class Service:
    """A small model that is served to many users; request ``i`` asks the same as ``i + REQUESTS``.

    Every number is a user of its own to the engine, so that no user state is ever found in its cache.
    """

    world: World
    bundle: Any
    tables: Tables
    n: int = 64
    k: int = 16
    length: int = CONFIG.long_length

    @cached_property
    def _users(self) -> list[UserRecord]:
        return [self.world.record(seed, length=self.length) for seed in range(REQUESTS)]

    @cached_property
    def _found(self) -> list[Candidates]:
        return [Candidates(*self.world.candidates(self.n, seed)) for seed in range(TURNS)]

    def user(self, number: int) -> UserRecord:
        """Return the record of the user who asks."""
        return self._users[number % REQUESTS]

    def candidates(self, number: int) -> Candidates:
        """Return what retrieval finds for a request."""
        return self._found[number % TURNS]

    def engine_config(self, **changes: Any) -> EngineConfig:
        """Return the settings of an engine: sizes only, unless changed."""
        shapes = Shapes(candidates=(self.n,), histories=(self.length,))
        return EngineConfig(**{"k": self.k, "shapes": shapes, **changes})


class Truth:
    """Every request's right answer by the unfolded model; on a lower rung it knows that much less."""

    def __init__(self, service: Service):
        self._service = service
        self._answers: dict[tuple[int, int], Answer] = {}
        self._lock = threading.Lock()

    def wrong(self, number: int, answer: Answer) -> str:
        """Return what is wrong with an answer, or nothing."""
        if answer.rung not in range(4):
            return f"no definition of rung {answer.rung}"
        return difference(answer, self.answer(number, answer.rung))

    def answer(self, number: int, rung: int = 0) -> Answer:
        """Return the right answer to a request, computed when it is first asked for."""
        key = (number % REQUESTS, rung)
        with self._lock:
            if key not in self._answers:
                self._answers[key] = self._computed(*key)
            return self._answers[key]

    def _computed(self, number: int, rung: int) -> Answer:
        world, found = self._service.world, self._service.candidates(number)
        record = self._service.user(number) if rung < 2 else UserRecord()
        if rung < 3:
            scores, _ = world.scores(record, found.ids, found.pair, CONTEXT, long=rung == 0)
        else:  # by the heads alone: nothing is known of context and pair
            _, heads = world.scores(record, found.ids, {}, {})
            scores = heads[:, 0] * (heads[:, 1] + 0.1) * np.asarray(found.pair["bid"], np.float32)
        order = np.argsort(-scores, kind="stable")[: self._service.k]
        return Answer(np.asarray(found.ids)[order], scores[order], rung)


def difference(answer: Answer, expected: Answer) -> str:
    """Return how an answer differs from what is expected, or nothing.

    Scores, best first, must be the same, and so must the score of every candidate that both return; those
    that only one returns must be ones that the tolerance cannot tell from the last.
    """
    if answer.ids.shape != expected.ids.shape:
        return f"{len(answer.ids)} results instead of {len(expected.ids)}"
    worst = float(np.abs(answer.scores - expected.scores).max())
    if not worst <= TOLERANCE:
        return f"scores differ by {worst:.2g}"
    if len(np.unique(answer.ids)) != len(answer.ids):
        return "a candidate is there twice"
    _, mine, theirs = np.intersect1d(answer.ids, expected.ids, return_indices=True)
    if (np.abs(answer.scores[mine] - expected.scores[theirs]) > TOLERANCE).any():
        return "a candidate has another one's score"
    left_out = np.setdiff1d(np.arange(len(expected.ids)), theirs)
    if (expected.scores[left_out] > expected.scores[-1] + 2 * TOLERANCE).any():
        return "better candidates were left out"
    return ""
